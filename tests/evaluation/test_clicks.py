"""AUC and log-loss against scikit-learn, user by user and by hand."""

import math

import numpy as np
import pytest

from ltrec_jax.evaluation import clicks


def test_auc_equals_scikit_learn_within_each_user():
    metrics = pytest.importorskip("sklearn.metrics", reason="the development extra is not installed")
    generator = np.random.default_rng(0)
    row = generator.integers(0, 12, 300)
    score = generator.integers(0, 8, 300).astype(np.float32)  # many ties
    positive = generator.random(300) < 0.4
    positive[row == 3], positive[row == 4] = True, False
    found = clicks.auc(score, positive, row, 13)
    assert found.count_U.tolist() == [float(u not in (3, 4, 12)) for u in range(13)]
    for user in np.flatnonzero(found.count_U):
        mine = row == user
        assert found.total_U[user] == pytest.approx(metrics.roc_auc_score(positive[mine], score[mine]))


def test_auc_by_hand():
    # user 0: positives 3 and 1, negatives 1 and 0: 3 > 1, 3 > 0, 1 = 1 (half), 1 > 0
    found = clicks.auc(np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False]), np.zeros(4, int), 1)
    assert found.total_U.tolist() == [3.5 / 4]


def test_log_loss_equals_scikit_learn_and_is_never_infinite():
    metrics = pytest.importorskip("sklearn.metrics", reason="the development extra is not installed")
    generator = np.random.default_rng(1)
    probability, positive = generator.random(50), generator.random(50) < 0.5
    found = clicks.log_loss(probability, positive, generator.integers(0, 5, 50), 5)
    assert found.total_U.sum() / found.count_U.sum() == pytest.approx(metrics.log_loss(positive, probability))
    sure_and_wrong = clicks.log_loss(np.array([0.0, 1.5]), np.array([True, False]), np.zeros(2, int), 1)
    assert sure_and_wrong.total_U[0] == pytest.approx(-2 * math.log(1e-7), rel=1e-6)


@pytest.mark.parametrize("metric", [clicks.auc, clicks.log_loss])
def test_no_pairs_count_nothing(metric):
    found = metric(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.int64), 3)
    assert found.total_U.tolist() == found.count_U.tolist() == [0.0] * 3
