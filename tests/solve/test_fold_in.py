"""Fold-in is the row solve of training; events one by one give the same; both recipes' priors."""

import dataclasses

import jax
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.config import WholeDataConfig
from ltrec_jax.errors import UserError
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.solve import anchored_als, fold_in
from ltrec_jax.solve.fold_in import UserPrior

SETTINGS = WholeDataConfig(alternations=2)


@pytest.fixture(scope="module")
def explicit():
    """A model of ratings with bias, 12 items of width 4: prior, item vectors, item biases, mu."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    prior = UserPrior(True, root @ root.T + np.eye(5), rng.normal(size=5), rng.uniform(0.5, 2, 12))
    return prior, rng.normal(size=(12, 4)), rng.normal(size=12), 3.5


def by_hand(prior, vectors, biases, mu, items, ratings, scale=1.0):
    """Ridge regression around the prior mean, as one least-squares problem."""
    design = np.column_stack([np.ones(len(items)), vectors[items]])
    weight = scale * prior.weight_I[items]
    root = np.linalg.cholesky(prior.precision).T
    rows = np.concatenate([np.sqrt(weight)[:, None] * design, root])
    wanted = np.concatenate([np.sqrt(weight) * (ratings - mu - biases[items]), root @ prior.mean])
    return np.linalg.lstsq(rows, wanted, rcond=None)[0]


@pytest.mark.parametrize("number", [1, 3, 9])
def test_explicit_fold_in_is_ridge_regression_around_the_prior(explicit, number):
    prior, vectors, biases, mu = explicit
    items, ratings = np.arange(number), np.linspace(1, 5, number)
    design, target = fold_in.events(prior, items, ratings, mu, vectors, biases)
    found = fold_in.fold_in(prior, items, design, target, scale=1.7)
    np.testing.assert_allclose(found, by_hand(prior, vectors, biases, mu, items, ratings, 1.7), rtol=1e-9)


def test_a_user_without_events_is_the_prior_mean(explicit):
    prior, vectors, biases, mu = explicit
    design, target = fold_in.events(prior, np.zeros(0, int), np.zeros(0), mu, vectors, biases)
    np.testing.assert_allclose(fold_in.fold_in(prior, np.zeros(0, int), design, target), prior.mean)
    np.testing.assert_allclose(fold_in.start(prior).mean, prior.mean)


def test_events_one_by_one_equal_all_at_once(explicit):
    prior, vectors, biases, mu = explicit
    items, ratings = np.arange(6), np.linspace(1, 5, 6)
    design, target = fold_in.events(prior, items, ratings, mu, vectors, biases)
    row = fold_in.start(prior)
    for item, d, t in zip(items, design, target, strict=True):
        row = fold_in.observe(prior, row, item, d, t)
    np.testing.assert_allclose(row.mean, fold_in.fold_in(prior, items, design, target), rtol=1e-9)


def test_uncertain_items_pull_to_the_prior(explicit):
    prior, vectors, biases, mu = explicit
    covariance = np.repeat(np.diag([0.0, 0.3, 0.3, 0.3, 0.3])[None], 12, axis=0)
    cross = np.full((12, 5), 0.1)
    unsure = UserPrior(True, prior.precision, prior.mean, prior.weight_I, 0.0, covariance, cross)
    items = np.arange(6)
    design, target = fold_in.events(unsure, items, np.full(6, 4.0), mu, vectors, biases)
    weight = prior.weight_I[:6]
    left = prior.precision + (design * weight[:, None]).T @ design + weight.sum() * covariance[0]
    right = prior.precision @ prior.mean + design.T @ (weight * target) - weight.sum() * cross[0]
    np.testing.assert_allclose(fold_in.fold_in(unsure, items, design, target), np.linalg.solve(left, right), rtol=1e-9)
    with pytest.raises(ValueError, match="rank-one"):
        fold_in.observe(unsure, fold_in.start(unsure), 0, design[0], 1.0)


@pytest.fixture(scope="module")
def whole_data():
    """A solved whole-data model in float64: its positives, solution and prior."""
    rng = np.random.default_rng(1)
    liked = rng.random((25, 20)) < 0.3
    liked[:, 19] = False
    user, item = np.nonzero(liked)
    anchor = 0.3 * rng.normal(size=(20, 8))
    with jax.enable_x64(True):
        solution = anchored_als.solve(
            user, item, anchor, num_users=25, settings=SETTINGS, spread=parallel.choose("jit")
        )
    counts = np.bincount(item, minlength=20)
    return user, item, solution, fold_in.whole_data_prior(solution.item_vectors, counts, 25, SETTINGS)


def test_a_training_user_folded_in_is_that_users_vector(whole_data):
    user, item, solution, prior = whole_data
    for u in range(25):
        items = item[user == u]
        design, target = fold_in.events(prior, items, None, 0.0, solution.item_vectors, np.zeros(20))
        np.testing.assert_allclose(
            fold_in.fold_in(prior, items, design, target), solution.user_vectors[u], rtol=1e-8, atol=1e-10
        )


def test_whole_data_events_one_by_one_equal_all_at_once(whole_data):
    _, _, solution, prior = whole_data
    items = np.array([2, 7, 11, 19])
    design, target = fold_in.events(prior, items, None, 0.0, solution.item_vectors, np.zeros(20))
    row = fold_in.start(prior, ridge_events=4)
    for item, d, t in zip(items, design, target, strict=True):
        row = fold_in.observe(prior, row, item, d, t)
    np.testing.assert_allclose(row.mean, fold_in.fold_in(prior, items, design, target), rtol=1e-8)


def test_bad_input(explicit):
    prior, vectors, biases, mu = explicit
    twice, outside = np.array([1, 1]), np.array([12])
    with pytest.raises(UserError, match="twice"):
        fold_in.events(prior, twice, np.ones(2), mu, vectors, biases)
    with pytest.raises(ValueError, match=r"0\.\.11"):
        fold_in.events(prior, outside, np.ones(1), mu, vectors, biases)
    for ratings in (None, np.array([np.nan]), np.ones(2)):
        with pytest.raises(UserError, match="finite rating"):
            fold_in.events(prior, np.array([1]), ratings, mu, vectors, biases)
    free = UserPrior(False, np.zeros((4, 4)), np.zeros(4), np.ones(12))
    design, target = fold_in.events(free, np.array([1]), None, 0.0, vectors, biases)
    with pytest.raises(UserError, match="singular"):
        fold_in.fold_in(free, np.array([1]), design, target)
    with pytest.raises(UserError, match="singular"):
        fold_in.start(free)
    none = np.zeros(0, int)
    np.testing.assert_array_equal(fold_in.fold_in(free, none, design[:0], target[:0]), np.zeros(4))


@pytest.mark.parametrize("l2", [0.03, 0.0])
def test_a_newcomer_has_the_best_vector_for_everybody(whole_data, l2):
    """Normal equations of the sum over all users and warm items, and one mean user's penalty; l2 = 0: at any width."""
    user, item, solution, prior = whole_data
    settings = dataclasses.replace(SETTINGS, l2=l2)
    q = np.tile(solution.item_vectors, 1 if l2 else 4)
    counts = np.bincount(item, minlength=20)
    found = fold_in.newcomer(q, counts, 25, settings)
    liked, warm = np.zeros((25, 20)), counts > 0
    liked[user, item] = popularity_weights(counts, settings.propensity_power)[item]
    a0 = settings.unobserved_weight
    off = ((liked + a0 * warm) * (q @ found) - liked).sum(axis=0) @ q
    off += l2 * (len(user) / 25 + a0 * sum(warm)) * found
    np.testing.assert_allclose(off, 0.0, atol=1e-10 * np.abs(liked.sum(axis=0) @ q).max())
    assert np.abs(found).max() > 0.01
    if l2:
        none = np.zeros(0, int)
        np.testing.assert_array_equal(fold_in.fold_in(prior, none, np.zeros((0, 8)), np.zeros(0)), found)


def test_where_there_is_one_user_a_newcomer_is_the_same():
    item, anchor = np.arange(0, 12, 3), 0.3 * np.random.default_rng(2).normal(size=(12, 5))
    with jax.enable_x64(True):
        solution = anchored_als.solve(
            np.zeros(4, int), item, anchor, num_users=1, settings=SETTINGS, spread=parallel.choose("jit")
        )
    found = fold_in.newcomer(solution.item_vectors, np.bincount(item, minlength=12), 1, SETTINGS)
    np.testing.assert_allclose(found, solution.user_vectors[0], rtol=1e-9)
