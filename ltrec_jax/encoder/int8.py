"""Products of rounded matrices: how inputs and kernels become eight bits, and the product each platform has for them.

Out of scope: which layers are rounded (`bert`), smoothing and the tree of rounded kernels (`inference`).

Kernels are rounded once, symmetrically, per output channel; inputs per row as they come. An input is int8, or uint8
with a zero point where the CPU multiplies only that fast: AVX-512 VNNI (Intel from 2019, AMD from 2022 on) has one
instruction for unsigned times signed, and none for signed times signed. 512 x 384 times 384 x 1,536 on two cores of an
AMD EPYC, medians: int8 x int8 230 G operations/s, uint8 x int8 430, at 1,024 rows 255 and 685 (bfloat16 393 and 390).
CPUs with AMX and GPUs multiply int8 by int8, fast.
"""

import functools
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

_CPU_DESCRIPTION = Path("/proc/cpuinfo")
# Below the least value of each activation, as `dense` computes it (GELU's least is -0.16997, its tanh form's -0.17004).
_LEAST = {"gelu": -0.1701, "gelu_tanh": -0.1701, "relu": 0.0}
_MIDDLE = 128.0


class Rounded(NamedTuple):
    """x = scale (values - zero): values uint8 or int8 [N, I], scale and zero float32 [N, 1]; no zero is 0."""

    values_NxI: jax.Array
    scale_Nx1: jax.Array
    zero_Nx1: jax.Array | None = None


class Kernel(NamedTuple):
    """W = values * scale, per column: int8 [I, O], float32 [O]; `sums` int32 [O], of each column's values."""

    values_IxO: jax.Array
    scale_O: jax.Array
    sums_O: jax.Array


@functools.cache
def _unsigned_is_fast() -> bool:
    # Linux alone says what the CPU can do; elsewhere int8 is right too, and slower.
    if platform.machine() not in ("x86_64", "AMD64") or not _CPU_DESCRIPTION.exists():
        return False
    words = set(_CPU_DESCRIPTION.read_text(encoding="utf-8", errors="replace").split())
    return "avx512_vnni" in words and "amx_int8" not in words


def unsigned() -> bool:
    """Whether inputs are uint8 where this process computes."""
    return jax.default_backend() == "cpu" and _unsigned_is_fast()


def rounds_activations() -> bool:
    """Whether a product behind an activation is worth rounding, where the largest value of each row must be known.

    With AMX that pass over 1,536 columns costs what the faster product saves (1.65 ms in bfloat16, 0.81 and 0.87 in
    int8; 2,048 tokens). Unsigned numbers lose less there as well: an activation's least value is their zero.
    """
    return unsigned()


def round_kernel(kernel_IxO: jax.Array) -> Kernel:
    """One symmetric scale per column; zeros stay zeros."""
    scale_1xO = jnp.abs(kernel_IxO).max(axis=0, keepdims=True) / 127.0
    values_IxO = jnp.round(kernel_IxO / _not_zero(scale_1xO)).astype(jnp.int8)
    return Kernel(values_IxO, scale_1xO[0], values_IxO.sum(axis=0, dtype=jnp.int32))


def round_rows(x_NxI: jax.Array) -> Rounded:
    """One symmetric scale per row; zeros stay zeros."""
    scale_Nx1 = jnp.abs(x_NxI).max(axis=1, keepdims=True) / 127.0
    steps_NxI = jnp.round(x_NxI / _not_zero(scale_Nx1))
    if not unsigned():
        return Rounded(steps_NxI.astype(jnp.int8), scale_Nx1)
    return Rounded((steps_NxI + _MIDDLE).astype(jnp.uint8), scale_Nx1, jnp.full_like(scale_Nx1, _MIDDLE))


def round_activations(x_NxI: jax.Array, activation: str) -> Rounded:
    """Rows of this activation's values (see `rounds_activations`): from its least one to the row's largest, in 255 steps."""
    least = _LEAST[activation]
    scale_Nx1 = _not_zero((x_NxI.max(axis=1, keepdims=True) - least) / 255.0)
    return Rounded(jnp.round((x_NxI - least) / scale_Nx1).astype(jnp.uint8), scale_Nx1, -least / scale_Nx1)


def product(x: Rounded, kernel: Kernel) -> jax.Array:
    """x W, float32 [N, O]: int32 sums of what is rounded. No gradient."""
    if x.values_NxI.dtype == jnp.uint8:
        sums_NxO = _unsigned_times_signed.bind(x.values_NxI, kernel.values_IxO).astype(jnp.float32)
    else:
        sums_NxO = jax.lax.dot(x.values_NxI, kernel.values_IxO, preferred_element_type=jnp.int32).astype(jnp.float32)
    if x.zero_Nx1 is not None:
        sums_NxO = sums_NxO - x.zero_Nx1 * kernel.sums_O[None, :].astype(jnp.float32)
    return sums_NxO * x.scale_Nx1 * kernel.scale_O[None, :]


def _not_zero(scale: jax.Array) -> jax.Array:
    return jnp.where(scale > 0.0, scale, 1.0)


# `jax.lax.dot` of two types widens both to the result's first; XLA itself takes them as they are.
_unsigned_times_signed = Primitive("ltrec_unsigned_times_signed")


@_unsigned_times_signed.def_abstract_eval
def _shape(left_NxI: Any, right_IxO: Any) -> Any:
    return jax.core.ShapedArray((left_NxI.shape[0], right_IxO.shape[1]), jnp.int32)


def _lowered(context: Any, left: ir.Value, right: ir.Value) -> list[ir.Value]:
    result = ir.RankedTensorType.get(context.avals_out[0].shape, ir.IntegerType.get_signless(32))
    rows = stablehlo.DotDimensionNumbers.get([], [], [1], [0])
    return [stablehlo.dot_general(result, left, right, rows)]


mlir.register_lowering(_unsigned_times_signed, _lowered, platform="cpu")
