"""The weighted estimators recover what a biased sample hides; each formula by hand."""

import math

import numpy as np
import pytest

from ltrec_jax.evaluation import counterfactual
from ltrec_jax.evaluation.ranking import Lists, Targets

USERS, ITEMS = 200, 40


def value(sums):
    mean = sums.total_U.sum() / sums.count_U.sum()
    return math.sqrt(max(mean, 0.0)) if sums.root else mean


@pytest.fixture(scope="module")
def biased():
    """A loss for every pair, larger on rare items, and propensities that show popular items more."""
    generator = np.random.default_rng(0)
    propensity_I = np.linspace(0.05, 0.9, ITEMS)
    loss = 2.0 - propensity_I[None, :] + 0.3 * generator.random((USERS, ITEMS))
    return loss, propensity_I


def estimates(loss, propensity_I, imputed, seed):
    """(naive, IPS, SNIPS, doubly robust) of one biased sample."""
    seen = np.random.default_rng(seed).random(loss.shape) < propensity_I
    row, item = np.nonzero(seen)
    args = loss[row, item], propensity_I[item], row
    robust = counterfactual.doubly_robust(args[0], imputed[row, item], imputed.sum(1), args[1], row, ITEMS, root=False)
    return (
        args[0].mean(),
        value(counterfactual.ips(*args, USERS, ITEMS, root=False)),
        value(counterfactual.snips(*args, USERS, root=False)),
        value(robust),
    )


def test_weighted_estimates_are_unbiased_where_the_plain_mean_is_not(biased):
    loss, propensity_I = biased
    truth = loss.mean()
    naive, ips, snips, robust = np.mean([estimates(loss, propensity_I, loss * 0.8, s) for s in range(40)], axis=0)
    assert abs(naive - truth) > 0.1
    for found in (ips, snips, robust):
        assert found == pytest.approx(truth, abs=0.02)


def test_doubly_robust_is_right_if_either_part_is_and_steadier_than_ips(biased):
    loss, propensity_I = biased
    wrong = np.full(ITEMS, 0.5)
    found = np.array([estimates(loss, propensity_I, loss, seed) for seed in range(20)])
    assert found[:, 3] == pytest.approx(np.full(20, loss.mean()))  # the imputed losses are right
    assert found[:, 1].std() > 10 * found[:, 3].std()
    seen = np.random.default_rng(0).random(loss.shape) < propensity_I
    row, item = np.nonzero(seen)
    sums = counterfactual.doubly_robust(
        loss[row, item], loss[row, item], loss.sum(1), wrong[item], row, ITEMS, root=True
    )
    assert value(sums) == pytest.approx(math.sqrt(loss.mean()))  # although the propensities are wrong


def test_equal_propensities_change_nothing():
    loss, row = np.array([1.0, 4.0, 9.0]), np.array([0, 0, 2])
    assert value(counterfactual.snips(loss, np.full(3, 0.3), row, 4, root=True)) == pytest.approx(math.sqrt(14 / 3))
    assert counterfactual.effective_size(np.full(7, 0.1)) == pytest.approx(7.0)
    assert counterfactual.effective_size(np.array([1.0, 0.1])) == pytest.approx(11**2 / 101)
    assert counterfactual.effective_size(np.zeros(0)) == 0.0


def test_calibrated_propensities_expect_as_many_events_as_there_are():
    p_I = counterfactual.calibrated(np.array([1.0, 0.5, 0.1]), events=16, users=20)
    assert p_I.sum() * 20 == pytest.approx(16)
    assert p_I[0] / p_I[2] == pytest.approx(10)
    assert counterfactual.calibrated(np.array([1.0, 0.01]), events=99, users=50).max() == 1.0
    assert counterfactual.calibrated(np.zeros(2), events=3, users=2).tolist() == [0.0, 0.0]


def test_weighted_recall_and_dcg_by_hand():
    wanted = Targets(np.array([0, 5], np.int32), np.array([0, 0, 1]), np.array([1, 2, 0], np.int32), 0)
    lists = Lists(np.array([[3, 2, -1], [0, 1, 2]], np.int32), np.array([[0, 1, 0], [1, 0, 0]], bool))
    p_I = np.array([0.5, 0.25, 0.1, 1.0])
    found = counterfactual.ranking(lists, wanted, p_I, 2)
    assert found["recall"].total_U.tolist() == pytest.approx([10 / (4 + 10), 1.0])
    assert found["dcg"].total_U.tolist() == pytest.approx([10 / math.log2(3) / (4 + 10), 1.0])
    assert found["recall"].count_U.tolist() == [1.0, 1.0]
    # Without a propensity of item 2 its hit is nothing, without one of item 0 the second user has no target left.
    found = counterfactual.ranking(lists, wanted, np.array([0.0, 0.25, 0.0, 1.0]), 2)
    assert found["recall"].total_U.tolist() == [0.0, 0.0]
    assert found["recall"].count_U.tolist() == [1.0, 0.0]
