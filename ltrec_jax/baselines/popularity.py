"""Popularity: everybody is recommended what most people had. The floor a ranking must clear. Predicts no ratings."""

import dataclasses
from typing import ClassVar

import numpy as np

from ltrec_jax.data.dataset import Interactions


@dataclasses.dataclass(frozen=True)
class Popularity:
    """Scores log(1 + n_i), the same for every user; n_i = training events of item i. A `Recommender`."""

    score_I: np.ndarray

    predicts_ratings: ClassVar[bool] = False

    def score(self, users_B: np.ndarray) -> np.ndarray:
        """float32 [B, I]: the same row for each user (a read-only view)."""
        return np.broadcast_to(self.score_I, (len(users_B), len(self.score_I)))

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]: the item's score. It is not on the rating scale."""
        return self.score_I[items_P]


def fit(train: Interactions, num_items: int) -> Popularity:
    """Count training events per item. Without events every item scores 0 (and ranks by item id)."""
    return Popularity(np.log1p(np.bincount(train.item, minlength=num_items)).astype(np.float32))
