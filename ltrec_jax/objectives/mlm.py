"""The masked-language-model objective: what the hidden words were, from scores over the vocabulary."""

import jax
import jax.numpy as jnp

from ltrec_jax.types import Array


def masked_cross_entropy(scores: Array, targets: Array, *, weights: Array) -> tuple[jax.Array, jax.Array]:
    """Weighted cross entropy of M masked tokens, in nats, as (sum, count): Devlin et al., BERT (NAACL 2019).

        sum = sum_m w_m (log sum_v exp s_mv - s_m,y_m)        count = sum_m w_m

    `scores` float [M, V] (logits), `targets` int32 [M] in 0..V-1, `weights` float [M]; computed in float32. Padding has
    weight 0 and never reaches the sum, whatever its scores; all-padding gives (0, 0). A NaN in a row of positive weight
    is not hidden. Shapes that do not match are refused with `ValueError`.
    """
    scores = _checked(scores, targets, weights)
    chosen = jnp.take_along_axis(scores, jnp.asarray(targets)[:, None], axis=1)[:, 0]
    loss = jax.nn.logsumexp(scores, axis=1) - chosen
    return _total(weights, loss)


def masked_hits(scores: Array, targets: Array, *, weights: Array) -> tuple[jax.Array, jax.Array]:
    """Weighted number of masked tokens whose highest score is the right one, as (sum, count). Arguments as above."""
    scores = _checked(scores, targets, weights)
    return _total(weights, (jnp.argmax(scores, axis=1) == targets).astype(jnp.float32))


def _checked(scores: Array, targets: Array, weights: Array) -> jax.Array:
    if not (scores.ndim == 2 and scores.shape[:1] == targets.shape == weights.shape):
        raise ValueError(f"shapes differ: scores {scores.shape}, targets {targets.shape}, weights {weights.shape}")
    return jnp.where(jnp.asarray(weights)[:, None] > 0, jnp.asarray(scores, jnp.float32), 0.0)


def _total(weights: Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(weights * values, dtype=jnp.float32), jnp.sum(weights, dtype=jnp.float32)
