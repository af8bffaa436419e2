"""The explicit squared error, the default objective: observed ratings against predicted scores."""

import jax
import jax.numpy as jnp

from ltrec_jax.types import Array


def squared_error(scores: Array, targets: Array, *, weights: Array) -> tuple[jax.Array, jax.Array]:
    """Weighted squared error over pairs, as (sum, count).

        sum = sum_p w_p (s_p - y_p)^2        count = sum_p w_p

    `scores`, `targets`, `weights`: one shape, float. Divide once, after batches and devices are merged. Padding has
    weight 0 and never reaches the sum, whatever its score; all-padding gives (0, 0). A NaN in a pair of positive weight
    is not hidden. Unequal shapes are refused with `ValueError`, so that [P] - [P, 1] cannot broadcast.
    """
    if not (scores.shape == targets.shape == weights.shape):
        raise ValueError(f"shapes differ: scores {scores.shape}, targets {targets.shape}, weights {weights.shape}")
    difference = jnp.where(weights > 0, scores - targets, 0.0)
    return jnp.sum(weights * difference**2, dtype=jnp.float32), jnp.sum(weights, dtype=jnp.float32)
