"""A small world with everything in it: cold items, users without a positive test rating, ties, a held-out part."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ltrec_jax.data.dataset import Dataset, Interactions, Split
from ltrec_jax.data.popularity import Popularity, popularity

USERS, ITEMS = 14, 20


@dataclasses.dataclass(frozen=True)
class TableModel:
    """Scores read from a U x I table: the model whose every score a test can choose."""

    table: np.ndarray
    predicts_ratings: bool = True

    def score(self, users):
        return self.table[users].astype(np.float32)

    def score_pairs(self, users, items):
        return self.table[users, items].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class World:
    split: Split
    counts: Popularity
    model: Any = TableModel

    @property
    def groups(self):
        return self.counts.masks()

    @property
    def truth(self):
        """The rating of every pair that was observed, 0 elsewhere."""
        events = self.split.dataset.interactions
        table = np.zeros((self.split.dataset.num_users, self.split.dataset.num_items), np.float32)
        table[events.user, events.item] = events.rating
        return table

    def random_model(self, seed=0):
        shape = (self.split.dataset.num_users, self.split.dataset.num_items)
        return TableModel(np.random.default_rng(seed).integers(1, 11, shape) / 2)


def make_world(user, item, rating, test, validation=(), users=USERS, items=ITEMS) -> World:
    events = Interactions(
        np.asarray(user, np.int32),
        np.asarray(item, np.int32),
        np.asarray(rating, np.float32),
        np.zeros(len(user), np.int64),
    )
    dataset = Dataset(
        name="small",
        interactions=events,
        users=pd.DataFrame({"user_id": [f"u{u}" for u in range(users)]}),
        items=pd.DataFrame({"item_id": [f"i{i}" for i in range(items)]}),
    )
    test, validation = np.asarray(test, np.int64), np.asarray(validation, np.int64)
    train = np.setdiff1d(np.arange(len(events)), np.r_[test, validation])
    split = Split(dataset, "by hand", train, validation, test)
    return World(split, popularity(split.train.item, items))


@pytest.fixture
def new_world():
    return make_world


@pytest.fixture
def world() -> World:
    generator = np.random.default_rng(7)
    # Items 17..19 are seen by nobody in training, and some users have no test rating of 4 or more.
    pairs = np.array([(u, i) for u in range(USERS) for i in range(ITEMS) if generator.random() < 0.55])
    rating = generator.integers(1, 6, len(pairs))
    held_out = (generator.random(len(pairs)) < 0.35) | (pairs[:, 1] >= 17)
    rating[held_out & (pairs[:, 0] == 13)] = 2
    validation = ~held_out & (generator.random(len(pairs)) < 0.1)
    return make_world(*pairs.T, rating, np.flatnonzero(held_out), np.flatnonzero(validation))
