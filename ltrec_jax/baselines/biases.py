"""Biases only: a rating is the mean, plus how generous the user is, plus how good the item is. No taste, no text.

Whatever a rating model says beyond this is what it knows about taste.
"""

import dataclasses

import numpy as np

from ltrec_jax.data.dataset import Interactions
from ltrec_jax.errors import UserError

_MOST_SWEEPS = 1000
_CONVERGED = 1e-7


@dataclasses.dataclass(frozen=True)
class Biases:
    """score(u, i) = mean + user_U[u] + item_I[i], float32; an unseen user or item has bias 0. A `Recommender`."""

    mean: float
    user_U: np.ndarray
    item_I: np.ndarray

    def score(self, users_B: np.ndarray) -> np.ndarray:
        """float32 [B, I]."""
        return np.float32(self.mean) + self.user_U[users_B][:, None] + self.item_I[None, :]

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]."""
        return np.float32(self.mean) + self.user_U[users_P] + self.item_I[items_P]


def fit(
    train: Interactions, num_users: int, num_items: int, *, user_damping: float = 5.0, item_damping: float = 3.0
) -> Biases:
    """Fit the biases exactly, by alternating ridge steps until none moves by more than 1e-7 rating units.

        min over b, c   sum_(u,i) (r_ui - mean - b_u - c_i)^2 + user_damping |b|^2 + item_damping |c|^2

    mean = mean training rating. Each step is closed form: b_u = sum_i (r_ui - mean - c_i) / (n_u + user_damping), so
    a user or item with few events is pulled to 0, and one without events has exactly 0. Damping must be positive
    (`ValueError`). No training events: `UserError`.
    """
    if min(user_damping, item_damping) <= 0:
        raise ValueError(f"damping must be positive, not {user_damping} and {item_damping}")
    if len(train) == 0:
        raise UserError("The training part of the split has no events: there is nothing to fit biases on.")
    mean = float(train.rating.mean(dtype=np.float64))
    residual_N = train.rating.astype(np.float64) - mean
    weight_U = np.bincount(train.user, minlength=num_users) + user_damping
    weight_I = np.bincount(train.item, minlength=num_items) + item_damping
    b_U, c_I = np.zeros(num_users), np.zeros(num_items)
    for _ in range(_MOST_SWEEPS):
        old_b_U, old_c_I = b_U, c_I
        c_I = np.bincount(train.item, weights=residual_N - b_U[train.user], minlength=num_items) / weight_I
        b_U = np.bincount(train.user, weights=residual_N - c_I[train.item], minlength=num_users) / weight_U
        if max(np.abs(b_U - old_b_U).max(), np.abs(c_I - old_c_I).max()) < _CONVERGED:
            break
    return Biases(mean, b_U.astype(np.float32), c_I.astype(np.float32))
