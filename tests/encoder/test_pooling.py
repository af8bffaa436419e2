"""Pooling against plain loops, and its laws: padding never enters, empty slots are zero, nothing is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder.pooling import POOLINGS, normalise, pool

# Three texts packed in two rows, an empty slot (2) and padding (4).
SLOT = np.array([[1, 1, 1, 0, 0, 4], [3, 3, 4, 4, 4, 4]], np.int32)
HIDDEN = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
BY_HAND = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0)}


@pytest.mark.parametrize("kind", POOLINGS)
def test_equals_a_loop(kind: str) -> None:
    expected = np.zeros((4, 5), np.float32)
    for slot in (0, 1, 3):
        expected[slot] = BY_HAND[kind](HIDDEN[slot == SLOT])
    pooled = pool(HIDDEN, SLOT, 4, kind)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_never_enters(kind: str) -> None:
    spoilt = np.where((SLOT == 4)[..., None], np.nan, HIDDEN)
    np.testing.assert_array_equal(pool(spoilt, SLOT, 4, kind), pool(HIDDEN, SLOT, 4, kind))


@pytest.mark.parametrize("kind", POOLINGS)
def test_any_larger_slot_is_padding_too(kind: str) -> None:
    np.testing.assert_array_equal(pool(HIDDEN, np.where(SLOT == 4, 9, SLOT), 4, kind), pool(HIDDEN, SLOT, 4, kind))


@pytest.mark.parametrize("kind", POOLINGS)
def test_gradient_is_finite_and_zero_on_padding(kind: str) -> None:
    gradient = jax.grad(lambda hidden: jnp.sum(normalise(pool(hidden, SLOT, 4, kind)) ** 3))(jnp.asarray(HIDDEN))
    assert bool(jnp.isfinite(gradient).all())
    assert not np.any(np.asarray(gradient)[SLOT == 4])
    assert np.any(np.asarray(gradient)[SLOT == 0])


def test_all_padding_gives_zeros() -> None:
    for kind in POOLINGS:
        assert not np.any(pool(HIDDEN, np.full_like(SLOT, 4), 4, kind))


def test_rows_are_normalised_and_zero_stays_zero() -> None:
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalise(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert bool(jnp.isfinite(jax.grad(lambda x: jnp.sum(normalise(x)))(x)).all())


def test_tiny_rows_are_normalised_too() -> None:
    np.testing.assert_allclose(normalise(jnp.array([[3e-12, 4e-12]])), [[0.6, 0.8]], rtol=1e-5)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="median"):
        pool(HIDDEN, SLOT, 4, "median")  # type: ignore[arg-type]
