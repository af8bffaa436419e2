"""Attention inside segments: the form each platform runs fast. Out of scope: projections (`bert`).

On a CPU its products are float32 in training and for short rows under every policy, else as the policy says.

Figures in comments: 16 rows of 64 tokens, 12 heads of 32, 2 cores with AMX, medians.
"""

import functools
import re
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from ltrec_jax.encoder import dense
from ltrec_jax.encoder.config import AttentionKernel
from ltrec_jax.errors import UserError
from ltrec_jax.types import Array

_NEVER = -1e30
_AMPERE, _HOPPER = (8, 0), (9, 0)
_USE_XLA = "set encoder.attention (--attention) to xla"
_ROW_MAJOR = Layout((0, 1, 2, 3))
# Tokens per row from which on a CPU's products are faster in bfloat16. MiniLM, 512 tokens on one core: rows of 256 take
# 38.7 ms instead of 41.9, of 128 32.5 and 33.4, of 64 28.3 both, of 48 26.9 and 26.1.
_ROUNDED_FROM = 64
# The queries of longer rows are taken in blocks, each with all keys. MiniLM on both cores of an AMD EPYC, two calls of
# four rows side by side: rows of 304 tokens in two blocks go from 12.1 (keys in blocks of 160) to 13.2 thousand
# tokens/s in bfloat16, rows of 352 in three from 11.9 to 12.6; float32 stays as it was. Whole, one row of 304 takes
# 6.2 ms of attention, in two blocks 1.2: XLA's fused kernel gets and gives back megabytes of memory. Rows of 256 gain
# nothing.
_WHOLE_ROW, _QUERIES_OF_LONG_ROWS = 256, 160


def segment_mask(segment_ids_RxL: Array) -> jax.Array:
    """Which tokens see each other, bool [R, L, L]: those of one segment. Padding (0) sees padding: no row is empty."""
    return segment_ids_RxL[:, :, None] == segment_ids_RxL[:, None, :]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask_RxLxL: jax.Array,
    policy: dense.Policy,
    kernel: AttentionKernel = "xla",
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v among the tokens that see each other. All arrays but the mask are [R, L, H, d].

    `kernel` "cudnn": cuDNN's fused attention, which never stores the [L, L] weights. It takes an NVIDIA GPU, bfloat16,
    d a multiple of 8 up to 128 (from Hopper on 256) and, where a gradient is asked for, an even L; anything else is a
    `UserError`.
    """
    if kernel == "cudnn":
        _check_cudnn(policy, query.shape[-1])
        query, key, value = _differentiable_by_cudnn(query, key, value)
    if jax.default_backend() != "cpu":
        dtype = jnp.float32 if policy == "float32" else jnp.bfloat16
        with jax.default_matmul_precision("highest" if policy == "float32" else "default"):
            query, key, value = (x.astype(dtype) for x in (query, key, value))
            chosen: Literal["cudnn"] | None = "cudnn" if kernel == "cudnn" else None
            context = jax.nn.dot_product_attention(query, key, value, mask=mask_RxLxL[:, None], implementation=chosen)
        return context.astype(jnp.float32)
    # On a CPU `dot_product_attention` takes 2.2 ms, and 5.9 with its gradient, against 1.3 and 3.6: heads before
    # tokens, an added mask and a division at the end let XLA run the whole chain as one kernel.
    # The barrier binds the mask to the layer: what all layers add XLA would store once for every head, [R, H, L, L].
    query, bias = jax.lax.optimization_barrier((query * query.shape[-1] ** -0.5, _additive(mask_RxLxL)))
    return _on_cpu(query, key, value, bias, policy != "float32" and query.shape[1] >= _ROUNDED_FROM)


def _check_cudnn(policy: dense.Policy, head_size: int) -> None:
    """What JAX would refuse while it compiles, in words that name the setting."""
    capability = _compute_capability()
    if capability is None:
        raise UserError(
            f"Attention by cuDNN needs an NVIDIA GPU, and this process computes on "
            f"{jax.devices()[0].device_kind}: {_USE_XLA}."
        )
    if capability < _AMPERE:
        raise UserError(
            "Attention by cuDNN needs a GPU of compute capability 8.0 (Ampere) or later, and this one has "
            f"{'.'.join(map(str, capability))}: {_USE_XLA}."
        )
    if policy == "float32":
        raise UserError(
            "Attention by cuDNN needs bfloat16: set encoder.precision (--precision) to it, or attention to xla."
        )
    widest = 256 if capability >= _HOPPER else 128
    if head_size % 8 or head_size > widest:
        raise UserError(
            f"Attention by cuDNN needs heads of a multiple of 8 up to {widest} on this GPU, and this encoder has heads "
            f"of {head_size}: {_USE_XLA}."
        )


def _compute_capability() -> tuple[int, ...] | None:
    """That of the NVIDIA GPU which computes; None for anything else (AMD's GPUs are a "gpu" to JAX as well)."""
    found = str(getattr(jax.devices()[0], "compute_capability", "")) if jax.default_backend() == "gpu" else ""
    return tuple(map(int, found.split("."))) if re.fullmatch(r"\d+\.\d+", found) else None


@jax.custom_vjp
def _differentiable_by_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The arrays themselves. To ask for their gradient where cuDNN has none is a `UserError`."""
    return query, key, value


def _differentiable_forward(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
    if query.shape[1] % 2:
        raise UserError(
            f"The gradient of attention by cuDNN needs rows of an even length, and these have {query.shape[1]} tokens: "
            "set train.row_length (--row-length in pretraining) to an even number, or encoder.attention (--attention) "
            "to xla."
        )
    return (query, key, value), None


_differentiable_by_cudnn.defvjp(_differentiable_forward, lambda _, gradients: gradients)


def attention_with_dropout(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask_RxLxL: jax.Array,
    dropout: Callable[[jax.Array], jax.Array],
    policy: dense.Policy,
    kernel: AttentionKernel = "xla",
) -> jax.Array:
    """`attention` with `dropout` applied to the weights [R, H, L, L].

    It stores them: `kernel` "cudnn" is a `UserError`.
    """
    if kernel == "cudnn":
        _check_cudnn(policy, query.shape[-1])
        raise UserError(
            "Attention by cuDNN has no dropout by token: set train.encoder_dropout (in pretraining: dropout) to false, "
            "or encoder.attention (--attention) to xla."
        )
    scores_RxHxLxL = _product("rqhd,rkhd->rhqk", query * query.shape[-1] ** -0.5, key, policy) + _additive(mask_RxLxL)
    return _product("rhqk,rkhd->rqhd", dropout(jax.nn.softmax(scores_RxHxLxL)), value, policy)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _product(indices: str, left: jax.Array, right: jax.Array, policy: dense.Policy) -> jax.Array:
    """An einsum of two arrays, float32, its operands in both directions as the policy says; on a CPU float32."""
    if policy != "float32" and jax.default_backend() != "cpu":
        left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    # Without it, GPU and TPU round float32 operands to TF32 or bfloat16.
    precision = jax.lax.Precision.HIGHEST if policy == "float32" else None
    return jnp.einsum(indices, left, right, precision=precision, preferred_element_type=jnp.float32)


def _product_forward(
    indices: str, left: jax.Array, right: jax.Array, policy: dense.Policy
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(indices, left, right, policy), (left, right)


def _product_backward(
    indices: str, policy: dense.Policy, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    operands, result = indices.split("->")
    of_left, of_right = operands.split(",")
    left, right = residuals
    return (
        _product(f"{result},{of_right}->{of_left}", g, right, policy),
        _product(f"{result},{of_left}->{of_right}", g, left, policy),
    )


_product.defvjp(_product_forward, _product_backward)


def _additive(mask_RxLxL: jax.Array) -> jax.Array:
    return jnp.where(mask_RxLxL, 0.0, _NEVER)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _on_cpu(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, rounded: bool) -> jax.Array:
    """softmax(q k^T + bias) v, float32 [R, L, H, d]; no gradient of the bias [R, 1, L, L].

    `rounded`: the products' operands in bfloat16 where no gradient is asked for. In a training step it gained nothing.
    """
    query, key, value = map(_heads_first, (query, key, value))
    if rounded:
        query, key, value = map(_laid_out, (query, key, value))
    found = []
    for block in _blocks(query.shape[2]):
        scores = _outer(query[:, :, block], key) + bias[:, :, block]
        raised = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        found.append(_apply(raised.astype(value.dtype), value) / raised.sum(axis=-1, keepdims=True))
    context = jnp.concatenate(found, axis=2)
    return _heads_first(_laid_out(context).astype(jnp.float32) if rounded else context)


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, rounded: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    query, key, value = map(_heads_first, (query, key, value))
    weights = jax.nn.softmax(_outer(query, key) + bias)
    return _heads_first(_apply(weights, value)), (query, key, value, weights)


def _backward(
    rounded: bool, residuals: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, weights = residuals
    g = _heads_first(g)
    g_weights = _outer(g, value)
    g_scores = weights * (g_weights - (g_weights * weights).sum(axis=-1, keepdims=True))
    found = _apply(g_scores, key), _apply_transposed(g_scores, query), _apply_transposed(weights, g)
    g_query, g_key, g_value = map(_heads_first, found)
    return g_query, g_key, g_value, None


_on_cpu.defvjp(_forward, _backward)


def _blocks(length: int) -> list[slice]:
    """Queries that attend at a time: all, or in long rows about equal parts of them, in multiples of 16."""
    if length <= _WHOLE_ROW:
        return [slice(length)]
    count = -(-length // _QUERIES_OF_LONG_ROWS)
    width = -(-length // (16 * count)) * 16
    return [slice(start, min(start + width, length)) for start in range(0, length, width)]


def _heads_first(x: jax.Array) -> jax.Array:
    """[R, L, H, d] to [R, H, L, d], and back."""
    return jnp.swapaxes(x, 1, 2)


def _laid_out(x_RxHxLxd: jax.Array) -> jax.Array:
    """Rounded, and laid out as XLA's bfloat16 products for CPUs need it: else it widens the operands again, unasked."""
    return with_layout_constraint(x_RxHxLxd.astype(jnp.bfloat16), _ROW_MAJOR)


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum("rhqd,rhkd->rhqk", left, right, preferred_element_type=jnp.float32)


def _apply(weights: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum("rhqk,rhkd->rhqd", weights, right, preferred_element_type=jnp.float32)


def _apply_transposed(weights: jax.Array, right: jax.Array) -> jax.Array:
    # Contracted over the first dimension, the product takes 0.63 ms; copy and product as here 0.38 (21 rows of 32).
    transposed = with_layout_constraint(jnp.swapaxes(weights, 2, 3), _ROW_MAJOR)
    return jnp.einsum("rhkq,rhqd->rhkd", transposed, right)
