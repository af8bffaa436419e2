import math

import numpy as np
import pytest

from ltrec_jax.evaluation import rating


def test_sums_of_each_user_by_hand():
    predicted, truth = np.array([1.0, 3.5, 2.0], np.float32), np.array([2.0, 3.0, 5.0], np.float32)
    squared = rating.rmse(predicted, truth, np.array([0, 2, 2]), 4)
    assert squared.total_U.tolist() == [1.0, 0.0, 0.25 + 9.0, 0.0]
    assert squared.count_U.tolist() == [1, 0, 2, 0]
    assert squared.root
    absolute = rating.mae(predicted, truth, np.array([0, 2, 2]), 4)
    assert absolute.total_U.tolist() == [1.0, 0.0, 0.5 + 3.0, 0.0]
    assert not absolute.root
    assert math.sqrt(squared.total_U.sum() / squared.count_U.sum()) == pytest.approx(math.sqrt(10.25 / 3))


def test_unequal_shapes_do_not_broadcast():
    with pytest.raises(ValueError, match="shape"):
        rating.rmse(np.zeros((2, 1)), np.zeros(2), np.zeros(2, int), 1)


def test_predictions_come_in_blocks_of_one_shape(monkeypatch):
    monkeypatch.setattr(rating, "_BLOCK_PAIRS", 4)
    shapes = []

    def score_pairs(users, items):
        shapes.append(users.shape)
        return (10 * users + items).astype(np.float32)

    users, items = np.arange(10), np.arange(10) % 3
    np.testing.assert_array_equal(rating.predictions(score_pairs, users, items, name="m"), 10 * users + items)
    assert shapes == [(4,)] * 3


def test_a_score_that_is_not_finite_names_model_user_and_item():
    def score_pairs(users, items):
        return np.where(users == 7, np.nan, 1.0).astype(np.float32)

    with pytest.raises(ValueError, match=r"'mine' scores nan for user 7, item 3"):
        rating.predictions(score_pairs, np.array([1, 7]), np.array([2, 3]), name="mine")


def test_scores_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"'mine'.*\(2, 1\)"):
        rating.predictions(lambda u, i: np.zeros((len(u), 1)), np.array([1, 7]), np.array([2, 3]), name="mine")
