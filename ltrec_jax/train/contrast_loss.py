"""Texts of a batch kept apart while they are learnt from: two dropout views of each, beside the objective.

    loss + contrast_weight * mean_n InfoNCE(a_n, b_n)        a, b: pooled vectors of one text under two dropout masks

Each text must find its own other view among those of all distinct items of the global batch, in both directions
(SimCSE, Gao, Yao & Chen, EMNLP 2021). It keeps an encoder that learns from few texts from mapping all of them to one
place. A batch's texts are encoded twice. Out of scope: the contrast itself (`objectives.ranking`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ltrec_jax import parallel
from ltrec_jax.objectives.ranking import text_contrast
from ltrec_jax.train.batches import Batch
from ltrec_jax.train.pair_loss import PooledTexts
from ltrec_jax.train.step import Loss
from ltrec_jax.train.user_texts import Texts
from ltrec_jax.types import Array, PyTree

_VIEW_STREAM = 7


def with_contrast(
    make: Callable[[PooledTexts], Loss],
    pooled_texts: PooledTexts,
    *,
    weight: float,
    temperature: float,
    num_items: int,
    axis: str | None,
) -> Loss:
    """The loss that `make` gives of pooled texts, plus `weight` times the mean contrast of each pair weighed by w_p.

    The first view is what `make`'s loss sees. An item in several slots is one text. What is reported is that loss's.
    """
    objective = make(_given)

    def loss(
        params: PyTree, rows: dict[str, jax.Array], batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        words = rows.get("words")
        if words is not None and batch.token_ids is not None:
            # Behind the rows of the items' tokens stand those of the users'.
            words = words[: batch.token_ids.size]
        first_key, second_key = jax.random.split(jax.random.fold_in(key, _VIEW_STREAM))
        first_KxE = pooled_texts(params, batch.texts, words, first_key)
        second_KxE = pooled_texts(params, batch.texts, words, second_key)
        found, sums = objective({**params, "pooled": first_KxE}, rows, batch, key)
        a_CxE, b_CxE, item_C = parallel.gather_over_devices(
            (_unit(first_KxE), _unit(second_KxE), jnp.asarray(batch.item)), axis
        )
        again_C = jnp.any(jnp.tril(item_C[:, None] == item_C[None, :], -1), axis=1)
        real_C = jnp.where(again_C | (item_C == num_items), 0.0, 1.0)
        total, count = text_contrast(a_CxE @ b_CxE.T / temperature, jnp.arange(len(item_C)), weights=real_C)
        mean = total / jnp.maximum(count, 1e-12)
        return found + weight * mean * jnp.sum(batch.weight), sums

    return loss


def _given(params: PyTree, texts: Texts, words: Array | None, key: jax.Array) -> jax.Array:
    return params["pooled"]


def _unit(x_KxE: jax.Array) -> jax.Array:
    # As in `model.head`: a floored square, since the gradient of a norm at zero is NaN.
    return x_KxE * jax.lax.rsqrt(jnp.maximum(jnp.sum(x_KxE**2, axis=-1, keepdims=True), 1e-12))
