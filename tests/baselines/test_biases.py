"""Biases against the normal equations solved in one piece; cold rows; the known figure on MovieLens-100K."""

import numpy as np
import pytest

from ltrec_jax.baselines import biases
from ltrec_jax.data import splits
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.errors import UserError


def interactions(user, item, rating):
    return Interactions(
        np.array(user, np.int32), np.array(item, np.int32), np.array(rating, np.float32), np.zeros(len(user), np.int64)
    )


def random_events(seed=0, users=9, items=7, events=40):
    generator = np.random.default_rng(seed)
    return interactions(
        generator.integers(0, users, events), generator.integers(0, items, events), generator.integers(1, 6, events)
    )


def test_equals_one_linear_solve():
    train, num_users, num_items = random_events(), 9, 7
    design = np.zeros((len(train), num_users + num_items))
    design[np.arange(len(train)), train.user] = 1
    design[np.arange(len(train)), num_users + train.item] = 1
    ridge = np.diag(np.r_[np.full(num_users, 4.0), np.full(num_items, 2.0)])
    mean = train.rating.mean()
    expected = np.linalg.solve(design.T @ design + ridge, design.T @ (train.rating - mean))
    fitted = biases.fit(train, num_users, num_items, user_damping=4.0, item_damping=2.0)
    np.testing.assert_allclose(np.r_[fitted.user_U, fitted.item_I], expected, atol=1e-5)


def test_cold_user_and_item_fall_back_to_what_is_known():
    fitted = biases.fit(interactions([0, 0, 1], [0, 1, 0], [5, 4, 1]), 3, 3)
    scores = fitted.score(np.array([0, 2]))
    assert fitted.user_U[2] == 0
    assert fitted.item_I[2] == 0
    assert scores[1, 2] == np.float32(fitted.mean)
    assert scores[0, 2] == np.float32(fitted.mean) + fitted.user_U[0]


def test_score_and_score_pairs_agree():
    fitted = biases.fit(random_events(), 9, 7)
    users, items = np.repeat(np.arange(9), 7), np.tile(np.arange(7), 9)
    scores = fitted.score(np.arange(9))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(fitted.score_pairs(users, items), scores.ravel(), rtol=1e-6)


def test_no_events_is_the_users_mistake():
    with pytest.raises(UserError, match="no events"):
        biases.fit(interactions([], [], []), 3, 3)


def test_damping_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        biases.fit(random_events(), 9, 7, user_damping=0.0)


def test_known_figure_on_movielens_100k(ml100k):
    split = splits.make(ml100k, "official", fold="u1", validation=0.1, seed=0).with_validation_in_train()
    fitted = biases.fit(split.train, ml100k.num_users, ml100k.num_items)
    error = fitted.score_pairs(split.test.user, split.test.item) - split.test.rating
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.9535, abs=5e-4)
