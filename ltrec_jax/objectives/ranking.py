"""Objectives that only ask for an order: softmax over the items of a batch, BPR, pairs of texts."""

import jax
import jax.numpy as jnp

from ltrec_jax.types import Array


def in_batch_softmax(
    scores: Array, targets: Array, *, weights: Array, log_q_K: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each pair's item among the K items of the batch, in nats, as (sum, count).

        sum = sum_p w_p (log sum_k exp(s_pk - log q_k) - (s_p,y_p - log q_y_p))        count = sum_p w_p

    `scores` float [P, K], `targets` int32 [P] in 0..K-1, `weights` float [P]; in float32. `log_q_K`: log of the
    probability with which an item gets into a batch; without the correction frequent items are pushed down for being
    frequent negatives (Yi et al., RecSys 2019). Padding slots have scores of -inf. Padding pairs have weight 0 and
    never reach the sum; all-padding gives (0, 0). Shapes that do not match are refused with `ValueError`.
    """
    if not (scores.ndim == 2 and scores.shape[:1] == targets.shape == weights.shape):
        raise ValueError(f"shapes differ: scores {scores.shape}, targets {targets.shape}, weights {weights.shape}")
    logits = jnp.asarray(scores, jnp.float32)
    if log_q_K is not None:
        if log_q_K.shape != scores.shape[1:]:
            raise ValueError(f"shapes differ: scores {scores.shape}, log_q_K {log_q_K.shape}")
        logits = logits - jnp.asarray(log_q_K, jnp.float32)[None, :]
    logits = jnp.where(jnp.asarray(weights)[:, None] > 0, logits, 0.0)
    chosen = jnp.take_along_axis(logits, jnp.asarray(targets)[:, None], axis=1)[:, 0]
    return _total(weights, jax.nn.logsumexp(logits, axis=1) - chosen)


def bayesian_personalised_ranking(scores: Array, targets: Array, *, weights: Array) -> tuple[jax.Array, jax.Array]:
    """How far liked items stand above others, as (sum, count): Rendle et al., BPR (UAI 2009).

        sum = sum_p w_p log(1 + exp(o_p - s_p))        count = sum_p w_p

    `scores` s [P] of liked items, `targets` o [P] the scores of another item for the same user, one shape, float.
    Padding as `squared_error`; unequal shapes are refused with `ValueError`.
    """
    if not (scores.shape == targets.shape == weights.shape):
        raise ValueError(f"shapes differ: scores {scores.shape}, targets {targets.shape}, weights {weights.shape}")
    return _total(weights, jax.nn.softplus(jnp.where(jnp.asarray(weights) > 0, targets - scores, 0.0)))


def text_contrast(scores: Array, targets: Array, *, weights: Array) -> tuple[jax.Array, jax.Array]:
    """Two views of N texts find each other, in both directions, as (sum, count): InfoNCE, symmetric.

    `scores` float [N, N]: cosine of view a of text n and view b of text m, divided by the temperature. `targets` int32
    [N]: which b belongs to each a, a permutation. The mean of `in_batch_softmax` over rows and over columns, the
    weight of a pair counted once in each; `weights` float [N] are by row. Padding rows are never negatives.
    Source: van den Oord et al. (2018); symmetric as in Radford et al., CLIP (2021).
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores must be square, not {scores.shape}")
    order, weights = jnp.argsort(jnp.asarray(targets)), jnp.asarray(weights)
    real_b = weights[order] > 0
    by_row, count = in_batch_softmax(jnp.where(real_b[None, :], scores, -jnp.inf), targets, weights=weights)
    turned = jnp.where((weights > 0)[None, :], jnp.asarray(scores).T, -jnp.inf)
    by_column, _ = in_batch_softmax(turned, order, weights=weights[order])
    return 0.5 * (by_row + by_column), count


def _total(weights: Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(weights * values, dtype=jnp.float32), jnp.sum(jnp.asarray(weights), dtype=jnp.float32)
