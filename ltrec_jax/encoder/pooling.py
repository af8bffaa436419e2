"""Token vectors to text vectors: mean, first token ("cls") or maximum over the tokens of each slot. Pure functions."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ltrec_jax.types import Array

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(hidden_RxLxE: Array, slot_RxL: Array, num_slots: int, kind: Pooling) -> jax.Array:
    """Vectors of K texts from their tokens' hidden states: float32 [K, E], K = `num_slots`.

    `slot_RxL` int32 names the slot of each token; K (or more) is padding. A slot's tokens are contiguous in one row.
    "mean" averages them, "cls" takes the first, "max" the largest per dimension. A slot without tokens gives zeros.
    Hidden states of padding never enter, whatever they hold.
    """
    hidden_NxE = jnp.asarray(hidden_RxLxE, jnp.float32).reshape(-1, hidden_RxLxE.shape[-1])
    slot_N = jnp.asarray(slot_RxL, jnp.int32).reshape(-1)
    ones_N = jnp.ones_like(slot_N)
    # The extra segment takes the padding, and is dropped.
    slot_N = jnp.minimum(slot_N, num_slots)
    if kind == "mean":
        sums = jax.ops.segment_sum(hidden_NxE, slot_N, num_slots + 1)[:num_slots]
        counts = jax.ops.segment_sum(ones_N, slot_N, num_slots + 1)[:num_slots]
        return sums / jnp.maximum(counts, 1).astype(jnp.float32)[:, None]
    filled_K = jax.ops.segment_sum(ones_N, slot_N, num_slots + 1)[:num_slots] > 0
    if kind == "cls":
        first_K = jax.ops.segment_min(jnp.arange(slot_N.size), slot_N, num_slots + 1)[:num_slots]
        picked = hidden_NxE[jnp.where(filled_K, first_K, 0)]
    elif kind == "max":
        picked = jax.ops.segment_max(hidden_NxE, slot_N, num_slots + 1)[:num_slots]
    else:
        raise ValueError(f"unknown pooling {kind!r}; one of {', '.join(POOLINGS)}")
    return jnp.where(filled_K[:, None], picked, 0.0)


def normalise(x_KxE: jax.Array) -> jax.Array:
    """Rows divided by their Euclidean length; a zero row stays zero, with zero gradient."""
    squares = jnp.sum(x_KxE * x_KxE, axis=-1, keepdims=True)
    positive = squares > 0.0
    return jnp.where(positive, x_KxE * jax.lax.rsqrt(jnp.where(positive, squares, 1.0)), 0.0)
