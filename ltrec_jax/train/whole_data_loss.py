"""The whole-data squared error over batches: likes against 1 and ALL pairs against 0, by gradient and end to end.

    s(u, i) = b_i + <p_u, q_i>        user biases and mu stay 0
    minimise  sum_(likes) w_ui (s_ui - 1)^2  +  a0 sum_(all u, all i) s_ui^2  +  the penalties of `pair_loss`

over the users and items with likes, as `solve.anchored_als` does by exact solves. A batch estimates the second sum from
what it holds anyway. A like comes in one of the `steps` batches of an epoch, so that n_u likes of a user, each with
weight 1 / n_u, stand for 1 / steps of the user; an item with c chunks is in c / steps slots of a batch in the mean, so
that its slots, each with weight steps / c = 1 / q, stand for it. Beside a like, the like's own item is there for
certain: it counts once, and all the others by their slots in the batch, times (n - 1) / (n - steps) for being drawn
with the n chunks of an epoch without replacement. Written with vectors [p | 1] and [q | b], with c_i the sum of 1 / q
over the slots of item i:

    a0 < sum_p 1/n_u p p^T, sum_k 1/q_k q q^T >  +  a0 sum_p 1/n_u (1 - c_i) s_p^2

Its mean over an epoch's batches is 1 / steps of the sum over all pairs, exactly where one batch holds everything and
else as far as items meet by chance (where texts are encoded, those of equal length meet less). Nothing of size U x I,
nor of pairs x items, is made. Out of scope: the objective itself (`objectives.whole_data`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from ltrec_jax import parallel
from ltrec_jax.config import ModelConfig
from ltrec_jax.objectives.whole_data import whole_data
from ltrec_jax.train.batches import Batch
from ltrec_jax.train.pair_loss import PooledTexts, batch_items, keep_products, penalty
from ltrec_jax.train.step import Loss
from ltrec_jax.types import PyTree


def make_whole_data_loss(
    *,
    pooled_texts: PooledTexts,
    head: Any,
    model: ModelConfig,
    unobserved_weight: float,
    num_items: int,
    others: float,
    axis: str | None,
) -> Loss:
    """`others` is (n - 1) / (n - steps) of the batches' source. It reports `loss`, the sum without the penalties.

    Dropout multiplies the products of a pair's user with all items alike: in the mean, as if each had its own.
    """

    def loss(
        params: PyTree, rows: dict[str, jax.Array], batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert batch.log_q is not None
        assert batch.user_share is not None
        text_key, keep_key = jax.random.split(key)
        q_KxD, b_K = batch_items(pooled_texts, head, params, rows, batch, text_key)
        own_KxD = jnp.concatenate([q_KxD, b_K[:, None]], axis=1)
        times_K = jnp.where(batch.item == num_items, 0.0, others * jnp.exp(-jnp.asarray(batch.log_q)))
        all_CxD, times_C, item_C = parallel.gather_over_devices((own_KxD, times_K, batch.item), axis)
        p_PxD, share_P = rows["users"][:, :-1], jnp.asarray(batch.user_share)
        keep_PxD = keep_products(keep_key, batch, p_PxD.shape[1], model.embedding_dropout)
        p_PxD = p_PxD if keep_PxD is None else p_PxD * keep_PxD
        p_PxD = jnp.concatenate([p_PxD, jnp.ones_like(p_PxD[:, :1])], axis=1)
        scores_P = jnp.sum(p_PxD * own_KxD[batch.pair_item], axis=1)
        found, _ = whole_data(
            scores_P,
            jnp.ones_like(scores_P),
            weights=jnp.asarray(batch.weight),
            user_gramian_DxD=(p_PxD * share_P[:, None]).T @ p_PxD,
            item_gramian_DxD=(all_CxD * times_C[:, None]).T @ all_CxD,
            unobserved_weight=unobserved_weight,
        )
        slots_K = jnp.sum(jnp.where(jnp.asarray(batch.item)[:, None] == item_C[None, :], times_C[None, :], 0.0), axis=1)
        found += unobserved_weight * jnp.sum(share_P * (1.0 - slots_K[batch.pair_item]) * scores_P**2)
        return found + penalty(rows["users"], rows["items"], batch, model), {"loss": found}

    return loss
