"""The whole-data squared error: observed pairs against their targets, all pairs against zero, no negative sampled."""

import jax
import jax.numpy as jnp

from ltrec_jax.objectives.squared_error import squared_error
from ltrec_jax.types import Array


def whole_data(
    scores: Array,
    targets: Array,
    *,
    weights: Array,
    user_gramian_DxD: Array,
    item_gramian_DxD: Array,
    unobserved_weight: float,
) -> tuple[jax.Array, jax.Array]:
    """Weighted squared error over observed pairs plus a0 times that of ALL pairs against 0, as (sum, count).

        sum = sum_p w_p (s_p - y_p)^2 + a0 sum_(u, i) <p_u, q_i>^2        count = sum_p w_p

    The second sum is <P^T P, Q^T Q>, from the Gramians of the users and items it runs over (Hu, Koren & Volinsky, ICDM
    2008): D^2 work, whatever their number. Other arguments and padding as `squared_error`. In a
    batch the Gramians are estimates of those of all rows (`train.whole_data_loss` says how they are scaled).
    """
    observed, count = squared_error(scores, targets, weights=weights)
    everywhere = jnp.sum(jnp.asarray(user_gramian_DxD) * item_gramian_DxD, dtype=jnp.float32)
    return observed + unobserved_weight * everywhere, count
