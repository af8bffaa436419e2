"""What the two-tower model minimises where it only ranks: liked items against the other items of their batch.

    s(u, k) = b_k + <p_u, q_k>        scores have no scale: user biases and mu stay 0

Nothing is sampled beside the batch, whose items are encoded anyway. An item gets into batches about as often as it has
training events, so that scores are compared less log q, its mean number of slots in a batch: what is learnt does not
depend on how batches are made, for both objectives (Yi et al., RecSys 2019, for the softmax; a pairwise loss over
negatives drawn from q has its optimum at log p(i | u) - log q_i). On several devices the items of all are compared.
Out of scope: the objectives themselves (`objectives.ranking`), squared errors (`pair_loss`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ltrec_jax import parallel
from ltrec_jax.config import ModelConfig, PairObjective
from ltrec_jax.objectives.ranking import bayesian_personalised_ranking, in_batch_softmax
from ltrec_jax.train.batches import Batch
from ltrec_jax.train.meter import Figures
from ltrec_jax.train.pair_loss import REMEDY, PooledTexts, batch_items, batch_users, keep_products, penalty
from ltrec_jax.train.step import Loss
from ltrec_jax.types import PyTree

Compare = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(corrected scores [P, C], place of each pair's own item [P], weights [P]) -> weighted sum of losses. What a pair is
not to be compared with has a score of -inf."""


def _mean_loss(sums: Mapping[str, float]) -> dict[str, float]:
    return {"loss": sums["loss"] / max(sums["weight"], 1e-12)}


RANKING = Figures(of=_mean_loss, counted="pairs", remedy=REMEDY, validated="ndcg_loss")


def make_ranking_loss(
    *,
    pooled_texts: PooledTexts,
    head: Any,
    objective: PairObjective,
    model: ModelConfig,
    num_items: int,
    axis: str | None,
    pooled_users: PooledTexts | None = None,
) -> Loss:
    """The objective over the pairs of a batch, weighted as they are, and the penalties of `pair_loss`.

    A pair's item is compared with the items in all slots of the global batch but those that are itself again. It
    reports `loss`, the sum without the penalties.
    """
    compare = _COMPARE[objective]

    def loss(
        params: PyTree, rows: dict[str, jax.Array], batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert batch.log_q is not None
        text_key, keep_key = jax.random.split(key)
        q_KxD, b_K = batch_items(pooled_texts, head, params, rows, batch, text_key)
        q_CxD, corrected_C, item_C = parallel.gather_over_devices((q_KxD, b_K - batch.log_q, batch.item), axis)
        own_P = jnp.asarray(batch.pair_item) + (0 if axis is None else parallel.device_index(axis) * b_K.shape[0])
        user_rows, of_texts = batch_users(pooled_users, head, params, rows, batch, text_key, axis)
        p_PxD = user_rows[:, :-1]
        keep_PxD = keep_products(keep_key, batch, p_PxD.shape[1], model.embedding_dropout)
        scores_PxC = (p_PxD if keep_PxD is None else p_PxD * keep_PxD) @ q_CxD.T + corrected_C[None, :]
        again_PxC = (item_C[own_P][:, None] == item_C[None, :]) & (own_P[:, None] != jnp.arange(len(item_C))[None, :])
        scores_PxC = jnp.where(again_PxC | (item_C == num_items)[None, :], -jnp.inf, scores_PxC)
        found = compare(scores_PxC, own_P, jnp.asarray(batch.weight))
        return found + penalty(rows["users"], rows["items"], batch, model, of_texts), {"loss": found}

    return loss


def _softmax(scores_PxC: jax.Array, own_P: jax.Array, weight_P: jax.Array) -> jax.Array:
    total, _ = in_batch_softmax(scores_PxC, own_P, weights=weight_P)
    return total


def _bpr(scores_PxC: jax.Array, own_P: jax.Array, weight_P: jax.Array) -> jax.Array:
    """Each pair against all others, whose losses are averaged; a pair that has none counts nothing."""
    other_PxC = (jnp.arange(scores_PxC.shape[1])[None, :] != own_P[:, None]) & (scores_PxC > -jnp.inf)
    share_P = weight_P / jnp.maximum(jnp.sum(other_PxC, axis=1), 1)
    own = jnp.take_along_axis(scores_PxC, own_P[:, None], axis=1)
    total, _ = bayesian_personalised_ranking(
        jnp.broadcast_to(own, scores_PxC.shape), scores_PxC, weights=jnp.where(other_PxC, share_P[:, None], 0.0)
    )
    return total


_COMPARE: dict[PairObjective, Compare] = {"softmax": _softmax, "bpr": _bpr}
