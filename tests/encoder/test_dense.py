"""Products, activations and attention against their plain formulas, with gradients, in every policy."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ltrec_jax.encoder import attention, dense, int8

SHAPES = [(5, 16, 40), (5, 40, 16), (1, 8, 8), (64, 3, 1), (7, 1, 5)]


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    np.random.seed(3)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.normal(size=shape), jnp.float32)


def plain(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: str) -> jax.Array:
    y = jnp.einsum("ni,io->no", x, kernel) + bias[None]
    erf = jax.scipy.special.erf
    return {
        "none": lambda: y,
        "gelu": lambda: y * 0.5 * (1 + erf(y / math.sqrt(2))),
        "relu": lambda: jnp.maximum(y, 0),
    }[activation]()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_affine_and_its_gradient(shape: tuple[int, int, int], activation: str, policy: dense.Policy) -> None:
    rows, inputs, outputs = shape
    arguments = normal(rows, inputs), normal(inputs, outputs), normal(outputs)
    weights = normal(rows, outputs)

    def total(f: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(weights * f(*a)), argnums=(0, 1, 2)))

    value, gradients = total(lambda *a: dense.affine(*a, policy, activation))(*arguments)
    expected_value, expected = total(lambda *a: plain(*a, activation))(*arguments)
    tolerance = 1e-5 if policy == "float32" else 3e-2
    scale = float(jnp.sqrt(jnp.sum(weights**2))) * math.sqrt(inputs)
    assert abs(float(value - expected_value)) < tolerance * scale
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_a_consumer_may_want_the_transpose(policy: dense.Policy) -> None:
    """XLA's CPU has no bfloat16 product with a column-major result; a transposing consumer must not ask for one."""
    x, kernel, bias = normal(8, 16), normal(16, 40), normal(40)
    straight = dense.affine(x, kernel, bias, policy)
    transposed = jax.jit(lambda *a: dense.affine(*a, policy).T + 1.0)(x, kernel, bias)
    np.testing.assert_allclose(transposed.T - 1.0, straight, rtol=1e-5, atol=1e-5)
    gradient = jax.jit(lambda *a: jax.grad(lambda k: dense.affine(a[0], k, a[2], policy).sum())(a[1]).T)(
        x, kernel, bias
    )
    assert gradient.shape == (40, 16)


@pytest.mark.parametrize(
    ("platform", "chosen"),
    [("cpu", ["float32", "bfloat16", "int8"]), ("gpu", ["float32", "bfloat16_kept", "int8"])],
)
def test_inference_keeps_bfloat16_where_memory_is_what_costs(
    monkeypatch: pytest.MonkeyPatch, platform: str, chosen: list[dense.Policy]
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert [dense.for_inference(policy) for policy in ("float32", "bfloat16", "int8")] == chosen


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_a_kept_result_is_the_affine_one_rounded(activation: str) -> None:
    arguments = normal(16, 24), normal(24, 8), normal(8)
    found = dense.affine_kept(*arguments, activation)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), plain(*arguments, activation), rtol=2e-2, atol=5e-2)


def test_results_are_float32_whatever_the_operands() -> None:
    for policy in dense.TRAINING_POLICIES:
        assert dense.affine(normal(2, 3), normal(3, 4), normal(4), policy).dtype == jnp.float32


def test_bfloat16_accumulates_in_float32() -> None:
    """4,096 products of 1 and 1: a bfloat16 sum would stop at 256."""
    ones = jnp.ones((1, 4096))
    assert float(dense.affine(ones, ones.T, jnp.zeros(1), "bfloat16")[0, 0]) == 4096.0


@pytest.mark.parametrize("x", [-30.0, -6.0, -3.0, -1.0, -1e-4, 0.0, 1e-4, 0.5, 2.0, 6.0, 30.0])
def test_gelu_is_exact(x: float) -> None:
    expected = x * 0.5 * math.erfc(-x / math.sqrt(2))
    assert float(dense.gelu(jnp.float32(x))) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def softmax_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) / math.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("rhqk,rkhd->rqhd", weights, value)


def test_attention_and_its_gradient() -> None:
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [4, 4, 4, 4, 4, 4]])
    mask = attention.segment_mask(segments)
    arguments = tuple(3.0 * normal(2, 6, 3, 5) for _ in range(3))
    weights = normal(2, 6, 3, 5)

    def total(f: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(weights * f(*a, mask)), argnums=(0, 1, 2)))

    ours_float32 = functools.partial(attention.attention, policy="float32")
    np.testing.assert_allclose(
        ours_float32(*arguments, mask), softmax_attention(*arguments, mask), rtol=1e-5, atol=1e-5
    )
    for ours, theirs in zip(total(ours_float32)(*arguments)[1], total(softmax_attention)(*arguments)[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_attention_of_other_platforms(monkeypatch: pytest.MonkeyPatch, policy: dense.Policy, tolerance: float) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mask = attention.segment_mask(jnp.array([[1, 1, 1, 2, 2, 0]]))
    arguments = tuple(normal(1, 6, 3, 8) for _ in range(3))
    found = attention.attention(*arguments, mask, policy)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, softmax_attention(*arguments, mask), atol=tolerance)


def test_attention_survives_huge_scores() -> None:
    mask = attention.segment_mask(jnp.array([[1, 1, 2, 0]]))
    query, value = 1e4 * normal(1, 4, 1, 2), normal(1, 4, 1, 2)

    def total(query: jax.Array) -> jax.Array:
        return attention.attention(query, query, value, mask, "bfloat16").sum()

    assert bool(jnp.isfinite(attention.attention(query, query, value, mask, "bfloat16")).all())
    assert bool(jnp.isfinite(jax.grad(total)(query)).all())


def test_segments_do_not_leak() -> None:
    """Changing a key and value of another segment changes nothing, to the bit."""
    mask = attention.segment_mask(jnp.array([[1, 1, 2, 2]]))
    query, key, value = (normal(1, 4, 2, 3) for _ in range(3))
    before = attention.attention(query, key, value, mask, "float32")
    after = attention.attention(query, key.at[0, 3].add(50.0), value.at[0, 2].set(1e6), mask, "float32")
    np.testing.assert_array_equal(before[:, :2], after[:, :2])


def test_the_near_gelu_is_as_near_as_it_says() -> None:
    x = np.linspace(-12, 12, 100_001, dtype=np.float32)
    exact = x.astype(np.float64) * 0.5 * (1 + scipy.special.erf(x.astype(np.float64) / math.sqrt(2)))
    error = np.abs(np.asarray(dense.gelu_near(x)) - exact)
    far = np.abs(x) > 4
    assert error[~far].max() < 7e-5
    assert (error[far] / np.abs(x[far])).max() < 4e-5


def test_the_near_gelu_is_for_rounded_products_without_gradient() -> None:
    """Forward alone differs by less than a rounding; a gradient goes through the exact one."""
    x, kernel, bias = jnp.ones((1, 1)), jnp.full((1, 1), 0.625), jnp.zeros(1)
    exact = dense.gelu(jnp.float32(0.625))
    assert dense.affine(x, kernel, bias, "float32", "gelu")[0, 0] == exact
    near = dense.affine(x, kernel, bias, "bfloat16", "gelu")[0, 0]
    assert 0 < abs(near - exact) < 1e-4
    value, _ = jax.value_and_grad(lambda b: dense.affine(x, kernel, b, "bfloat16", "gelu").sum())(bias)
    assert value == exact


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_int8_is_near_and_keeps_zeros(activation: str) -> None:
    x, kernel, bias = normal(9, 64).at[4].set(0.0), normal(64, 32).at[:, 5].set(0.0), normal(32)
    found = dense.affine_int8(int8.round_rows(x), int8.round_kernel(kernel), bias, activation)
    expected = plain(x, kernel, bias, activation)
    assert found.dtype == jnp.float32
    # Roundings to 1/127 and 1/255 of what 64 numbers span, summed over 64 of them.
    np.testing.assert_allclose(found, expected, atol=0.5)
    near = 1e-4 if activation == "gelu" else 1e-6
    np.testing.assert_allclose(found[4], expected[4], rtol=1e-6, atol=near)
    np.testing.assert_allclose(found[:, 5], expected[:, 5], rtol=1e-6, atol=near)
