"""Chance: every user gets the catalogue in a random order of his own. Whatever does not beat it knows nothing."""

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np

from ltrec_jax.baselines.scoring import pairs_by_rows, require_known
from ltrec_jax.baselines.training import Training


@dataclasses.dataclass(frozen=True)
class Chance:
    """score(u, i) uniform on [0, 1), a function of (seed, u, i) alone. A `Recommender`; warm and cold items alike."""

    num_users: int
    num_items: int
    seed: int

    predicts_ratings: ClassVar[bool] = False

    def score(self, users_B: np.ndarray) -> jax.Array:
        """float32 [B, I]."""
        return _uniform(jax.random.key(self.seed), require_known(users_B, self.num_users), self.num_items)

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]."""
        return pairs_by_rows(self.score, users_P, items_P)


def fit(train: Training) -> Chance:
    """Nothing is learnt."""
    return Chance(train.num_users, train.num_items, train.seed)


@functools.partial(jax.jit, static_argnames="num_items")
def _uniform(key: jax.Array, users_B: np.ndarray, num_items: int) -> jax.Array:
    return jax.vmap(lambda user: jax.random.uniform(jax.random.fold_in(key, user), (num_items,)))(users_B)
