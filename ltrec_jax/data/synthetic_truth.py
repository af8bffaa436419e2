"""The truth behind a synthetic catalogue: what ratings and observed pairs were drawn from, and with what chance.

Out of scope: drawing (`synthetic`).
"""

import dataclasses

import numpy as np
from scipy.special import ndtr

SIGNAL = 0.8
"""Standard deviation of <p_u, q_i>, in quarters of the scale."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What `synthetic.catalogue` drew from.

    topic_I int64[I]; user_UxD, item_IxD, user_bias_U, item_bias_I float64, with
    mean(u, i) = base + user_bias_u + item_bias_i + <user_u, item_i>, and rating = mean + noise * N(0, 1), rounded and
    clipped to `scale`. count_I int64[I]: interactions of each item. P(pair (u, i) is in the data) =
    min(1, odds_i * activity_u * exp(selection * <user_u, item_i> / sd)), where sd, a fifth of the width of the scale,
    is the standard deviation of <user_u, item_i> over all pairs that could have been.
    """

    topic_I: np.ndarray
    user_UxD: np.ndarray
    item_IxD: np.ndarray
    user_bias_U: np.ndarray
    item_bias_I: np.ndarray
    base: float
    noise: float
    scale: tuple[int, int]
    count_I: np.ndarray
    activity_U: np.ndarray
    odds_I: np.ndarray
    selection: float

    @property
    def popularity(self) -> np.ndarray:
        """Share of the interactions that each item has, float64[I]; 0 for a cold item."""
        shares: np.ndarray = self.count_I / self.count_I.sum()
        return shares

    def mean(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """The rating of each pair before noise, rounding and clipping, float64[P]."""
        value: np.ndarray = self.base + self.user_bias_U[users_P] + self.item_bias_I[items_P]
        return value + self._affinity(users_P, items_P)

    def expected(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """The exact expectation of the rating of each pair, whether or not it is in the data, float64[P].

        E[rating] = low + sum_{v = low + 1}^{high} P(mean + noise z >= v - 1/2). It is the best prediction there is.
        """
        low, high = self.scale
        steps = np.arange(low + 1, high + 1) - 0.5
        above_PxV = self.mean(users_P, items_P)[:, None] - steps
        if self.noise == 0:
            return low + (above_PxV >= 0).sum(axis=1).astype(np.float64)
        reached: np.ndarray = low + ndtr(above_PxV / self.noise).sum(axis=1)
        return reached

    def propensity(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """The probability that each pair is in the data, given the catalogue but not its draws, float64[P]."""
        wish_P = np.exp(self.selection * self._affinity(users_P, items_P) / self._spread)
        chance: np.ndarray = np.minimum(1.0, self.odds_I[items_P] * self.activity_U[users_P] * wish_P)
        return chance

    @property
    def _spread(self) -> float:
        return SIGNAL * quarter(self.scale)

    def _affinity(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        return np.einsum("pd,pd->p", self.user_UxD[users_P], self.item_IxD[items_P])


def quarter(scale: tuple[int, int]) -> float:
    """A quarter of the width of the scale."""
    return (scale[1] - scale[0]) / 4
