"""Rounded products: exact in int32, near in float32, the same formula whether inputs are signed or not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder import int8

GENERATOR = np.random.default_rng(7)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(GENERATOR.normal(size=shape), jnp.float32)


@pytest.fixture
def unsigned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(int8, "unsigned", lambda: request.param)
    return bool(request.param)


def restored(x: int8.Rounded) -> np.ndarray:
    """What the rounded numbers stand for, in float64."""
    values, scale, zero = (np.asarray(each, np.float64) for each in x)
    return scale * (values - zero)


@pytest.mark.parametrize("unsigned", [False, True], indirect=True)
def test_rows_are_within_half_a_step_and_zeros_stay_zeros(unsigned: bool) -> None:
    x = (normal(9, 64) * jnp.geomspace(1e-3, 1e3, 9)[:, None]).at[4].set(0.0).at[:, 7].set(0.0)
    rounded = int8.round_rows(x)
    assert rounded.values_NxI.dtype == (jnp.uint8 if unsigned else jnp.int8)
    assert (np.abs(restored(rounded) - x) <= 0.51 * np.asarray(rounded.scale_Nx1)).all()
    assert not restored(rounded)[4].any()
    assert not restored(rounded)[:, 7].any()


@pytest.mark.parametrize("unsigned", [False, True], indirect=True)
def test_steps_are_spread_over_what_a_row_spans(unsigned: bool) -> None:
    """A row above zero, or with one value far out on one side, has all 255 steps where its values are."""
    rows = jnp.asarray([[0.0, 1.0, 2.0, 10.0], [-10.0, -1.0, 0.0, 0.5], [5.0, 6.0, 7.0, 7.5], [-3.0, -3.0, -3.0, -3.0]])
    rounded = int8.round_rows(rows)
    np.testing.assert_allclose(rounded.scale_Nx1[:, 0], np.asarray([10.0, 10.5, 7.5, 3.0]) / 255.0, rtol=1e-6)
    assert (np.abs(restored(rounded) - rows) <= 0.51 * np.asarray(rounded.scale_Nx1)).all()


@pytest.mark.parametrize("unsigned", [False, True], indirect=True)
def test_no_value_wraps_around(unsigned: bool) -> None:
    """Least and largest value half a step from a whole number: the largest must not come back as the least."""
    least = -jnp.linspace(0.0, 3.0, 401)[:, None]
    rows = jnp.concatenate([least, jnp.zeros_like(least), jnp.full_like(least, 2.0)], axis=1)
    rounded = int8.round_rows(rows)
    assert (np.abs(restored(rounded) - rows) <= 1.01 * np.asarray(rounded.scale_Nx1)).all()


@pytest.mark.parametrize("unsigned", [False, True], indirect=True)
def test_the_product_is_that_of_the_rounded_numbers(unsigned: bool) -> None:
    x, kernel = int8.round_rows(normal(33, 384) + 0.5), int8.round_kernel(normal(384, 40).at[:, 5].set(0.0))
    expected = restored(x) @ (np.asarray(kernel.values_IxO, np.float64) * np.asarray(kernel.scale_O, np.float64))
    found = jax.jit(int8.product)(x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert not np.asarray(found)[:, 5].any()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(17, 1536, 48), (1, 384, 384), (7, 2000, 1), (2, 4, 4)])
def test_unsigned_times_signed_is_exact_at_the_ends_of_both(rows: int, inputs: int, outputs: int) -> None:
    """AVX2's instruction for it saturates at 16 bits between the steps; what runs here must not, at any shape."""
    left = jnp.asarray(GENERATOR.choice([0, 1, 254, 255], size=(rows, inputs)), jnp.uint8)
    right = jnp.asarray(GENERATOR.choice([-127, -1, 1, 127], size=(inputs, outputs)), jnp.int8)
    found = int8.sums(left, right)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.asarray(left, np.int64) @ np.asarray(right, np.int64))


def test_a_kernel_is_rounded_by_column() -> None:
    kernel = (normal(64, 32) * jnp.geomspace(1e-2, 1e2, 32)[None]).at[:, 5].set(0.0)
    rounded = int8.round_kernel(kernel)
    assert rounded.values_IxO.dtype == jnp.int8
    assert (np.abs(rounded.values_IxO * rounded.scale_O[None] - kernel) <= 0.51 * np.asarray(rounded.scale_O)).all()
    np.testing.assert_array_equal(rounded.sums_O, np.asarray(rounded.values_IxO, np.int32).sum(axis=0))


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx512f avx512_vnni", True),
        ("x86_64", "fpu avx512f avx512_vnni amx_tile amx_int8", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("aarch64", "fp asimd", False),
    ],
)
def test_inputs_are_unsigned_on_cpus_that_multiply_only_those_fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: str, expected: bool
) -> None:
    described = tmp_path / "cpuinfo"
    described.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(int8, "_CPU_DESCRIPTION", described)
    monkeypatch.setattr(int8.platform, "machine", lambda: machine)
    assert int8._unsigned_is_fast.__wrapped__() is expected
    monkeypatch.setattr(int8, "_CPU_DESCRIPTION", tmp_path / "none")
    assert int8._unsigned_is_fast.__wrapped__() is False


def test_a_gpu_has_signed_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_unsigned_is_fast", lambda: True)
    assert int8.unsigned()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not int8.unsigned()
