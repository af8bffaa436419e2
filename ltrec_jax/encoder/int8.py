"""Products of rounded matrices: how inputs and kernels become eight bits, and the product each platform has for them.

Out of scope: which layers are rounded (`bert`), smoothing and the tree of rounded kernels (`inference`).

Kernels are rounded once, symmetrically, per output channel; inputs per row as they come, in 255 steps between the
least and the largest value of the row: a few channels of BERT's states are far out on one side. With as many steps
below zero as above it the rank correlation of similarities of film titles with float32 falls from .9977 to .9955.
Where the CPU multiplies only unsigned by signed numbers fast, inputs are uint8, else int8. AVX-512 VNNI (Intel from
2019, AMD from 2022 on) has one instruction for the first and none for signed by signed: 1,024 x 384 times 384 x 1,536
on two cores of an AMD EPYC runs at 255 G operations/s for int8 times int8, 685 for uint8 times int8, 390 in bfloat16.
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


class Rounded(NamedTuple):
    """x = scale (values - zero): values uint8 or int8 [N, I], scale and zero float32 [N, 1], zero a whole number."""

    values_NxI: jax.Array
    scale_Nx1: jax.Array
    zero_Nx1: jax.Array


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


def everywhere() -> bool:
    """Whether products that do not follow a LayerNorm are worth rounding too.

    The least and the largest value of each row must be known before it is. With AMX that pass over the 1,536 columns
    behind an activation costs what the faster product saves (1.65 ms in bfloat16, 0.81 and 0.87 in int8; 2,048 tokens).
    """
    return unsigned()


def describe() -> str:
    """What is rounded here, and how: vectors agree where this does, up to the order of sums."""
    return f"{'all' if everywhere() else 'some'} products, {'unsigned' if unsigned() else 'signed'} inputs"


def round_kernel(kernel_IxO: jax.Array) -> Kernel:
    """One symmetric scale per column; zeros stay zeros."""
    scale_1xO = jnp.abs(kernel_IxO).max(axis=0, keepdims=True) / 127.0
    values_IxO = jnp.round(kernel_IxO / _not_zero(scale_1xO)).astype(jnp.int8)
    return Kernel(values_IxO, scale_1xO[0], values_IxO.sum(axis=0, dtype=jnp.int32))


def round_rows(x_NxI: jax.Array) -> Rounded:
    """One scale and one zero point per row; zeros stay zeros."""
    least_Nx1 = jnp.minimum(x_NxI.min(axis=1, keepdims=True), 0.0)
    largest_Nx1 = jnp.maximum(x_NxI.max(axis=1, keepdims=True), 0.0)
    scale_Nx1 = _not_zero((largest_Nx1 - least_Nx1) / 255.0)
    lowest, dtype = (0, jnp.uint8) if unsigned() else (-128, jnp.int8)
    zero_Nx1 = lowest - jnp.round(least_Nx1 / scale_Nx1)
    # Both ends may round away from each other.
    values_NxI = jnp.minimum(jnp.round(x_NxI / scale_Nx1) + zero_Nx1, lowest + 255)
    return Rounded(values_NxI.astype(dtype), scale_Nx1, zero_Nx1)


def product(x: Rounded, kernel: Kernel) -> jax.Array:
    """x W, float32 [N, O]. No gradient."""
    sums_NxO = sums(x.values_NxI, kernel.values_IxO).astype(jnp.float32)
    sums_NxO = sums_NxO - x.zero_Nx1 * kernel.sums_O[None, :].astype(jnp.float32)
    return sums_NxO * x.scale_Nx1 * kernel.scale_O[None, :]


def sums(values_NxI: jax.Array, values_IxO: jax.Array) -> jax.Array:
    """The product of uint8 or int8 by int8, int32 [N, O]."""
    if values_NxI.dtype == jnp.uint8:
        unsigned_NxO: jax.Array = _unsigned_times_signed.bind(values_NxI, values_IxO)
        return unsigned_NxO
    return jax.lax.dot(values_NxI, values_IxO, preferred_element_type=jnp.int32)


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
_unsigned_times_signed.def_impl(jax.jit(_unsigned_times_signed.bind))
