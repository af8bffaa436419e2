"""Each objective against the formula by hand, and the laws all of them share: padding, shapes, nothing to sum."""

import math

import numpy as np
import pytest

from ltrec_jax.objectives.propensity import inverse_propensity_weights, popularity_weights
from ltrec_jax.objectives.ranking import bayesian_personalised_ranking, in_batch_softmax, text_contrast
from ltrec_jax.objectives.whole_data import whole_data

SCORES = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
Z = [sum(math.exp(s) for s in row) for row in SCORES]


def test_in_batch_softmax_by_hand_and_padding_never_reaches_it():
    by_hand = 0.5 * (math.log(Z[0]) - 2.0) + 2.0 * (math.log(Z[1]) - 3.0)
    scores = np.concatenate([SCORES, np.full((1, 3), np.nan)])
    found, count = in_batch_softmax(scores, np.array([1, 2, 0]), weights=np.array([0.5, 2.0, 0.0]))
    assert float(found) == pytest.approx(by_hand, rel=1e-6)
    assert float(count) == 2.5
    assert [float(x) for x in in_batch_softmax(scores, np.array([1, 2, 0]), weights=np.zeros(3))] == [0.0, 0.0]


def test_the_correction_makes_items_alike_that_differ_only_in_frequency():
    q = np.array([0.7, 0.2, 0.1])
    found, _ = in_batch_softmax(np.log(q)[None, :], np.array([2]), weights=np.ones(1), log_q_K=np.log(q))
    assert float(found) == pytest.approx(math.log(3), rel=1e-5)


def test_bpr_by_hand():
    found, count = bayesian_personalised_ranking(
        np.array([2.0, 0.0, np.nan]), np.array([1.0, 3.0, 0.0]), weights=np.array([1.0, 0.5, 0.0])
    )
    assert float(found) == pytest.approx(math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.exp(3)), rel=1e-6)
    assert float(count) == 1.5


def test_text_contrast_looks_both_ways_and_past_padding():
    scores = np.array([[4.0, 1.0, 9.0], [0.0, 3.0, 9.0], [9.0, 9.0, 9.0]])
    found, count = text_contrast(scores, np.array([1, 0, 2]), weights=np.array([1.0, 1.0, 0.0]))
    rows = math.log(math.exp(4) + math.e) - 1 + math.log(1 + math.exp(3)) - 0
    columns = math.log(math.exp(4) + 1) - 0 + math.log(math.e + math.exp(3)) - 1
    assert float(found) == pytest.approx(0.5 * (rows + columns), rel=1e-6)
    assert float(count) == 2


def test_whole_data_is_the_sum_over_all_pairs():
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(4, 2)), rng.normal(size=(5, 2))
    user, item = np.array([0, 1, 3]), np.array([2, 2, 4])
    observed = (p[user] * q[item]).sum(1)
    found, count = whole_data(
        observed,
        np.ones(3),
        weights=np.full(3, 2.0),
        user_gramian_DxD=p.T @ p,
        item_gramian_DxD=q.T @ q,
        unobserved_weight=0.3,
    )
    assert float(found) == pytest.approx(2 * ((observed - 1) ** 2).sum() + 0.3 * ((p @ q.T) ** 2).sum(), rel=1e-5)
    assert float(count) == 6


def test_weights_are_clipped_then_normalised():
    propensity = np.array([1.0, 0.5, 0.01])
    np.testing.assert_allclose(inverse_propensity_weights(propensity, self_normalised=False), [1, 2, 100])
    found = inverse_propensity_weights(propensity, clip=5.0)
    np.testing.assert_allclose(found / found[0], [1, 2, 5])
    assert found.mean() == pytest.approx(1)
    assert len(inverse_propensity_weights(np.zeros(0))) == 0
    counted = inverse_propensity_weights(propensity, counts_N=np.array([5, 0, 1]))
    np.testing.assert_allclose(counted, np.array([1, 2, 100]) / ((5 * 1 + 100) / 6))
    with pytest.raises(ValueError, match="lie in"):
        inverse_propensity_weights(np.array([0.0]))


def test_weights_by_popularity_keep_the_mass_lean_on_rare_items_and_are_clipped():
    counts = np.array([0, 1, 10, 100])
    weight = popularity_weights(counts, 0.5)
    assert weight @ counts == pytest.approx(counts.sum())
    assert weight[0] == 0
    assert weight[1] / weight[3] == pytest.approx(10)
    np.testing.assert_allclose(popularity_weights(counts, 0.0)[1:], 1)
    clipped = popularity_weights(counts, 0.5, clip=4.0)
    np.testing.assert_allclose(clipped / clipped[3], [0, 4, math.sqrt(10), 1])
    assert clipped @ counts == pytest.approx(counts.sum())
    np.testing.assert_array_equal(popularity_weights(np.zeros(3), 1.0, clip=2.0), np.zeros(3))


def test_shapes_that_do_not_match_are_refused():
    ones = np.ones(2)
    with pytest.raises(ValueError, match="shapes differ"):
        in_batch_softmax(SCORES, np.array([0, 1, 2]), weights=ones)
    with pytest.raises(ValueError, match="log_q_K"):
        in_batch_softmax(SCORES, np.array([0, 1]), weights=ones, log_q_K=ones)
    with pytest.raises(ValueError, match="shapes differ"):
        bayesian_personalised_ranking(ones, np.ones((2, 1)), weights=ones)
    with pytest.raises(ValueError, match="square"):
        text_contrast(SCORES, np.array([0, 1]), weights=ones)
