"""Variational Bayes and Gibbs: the bound rises, posteriors are those of Bayes' rule, synthetic truth is found again."""

import dataclasses

import jax
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.config import BayesConfig
from ltrec_jax.errors import UserError
from ltrec_jax.solve import bayes, fold_in
from ltrec_jax.solve.side_information import SideInformation, assemble

ONE = parallel.choose("jit")
USERS, ITEMS, WIDTH = 60, 40, 2
SMALL = BayesConfig(factors=WIDTH, iterations=20, gibbs_factors=WIDTH, sweeps=30, burn_in=10)


@pytest.fixture(scope="module")
def drawn():
    """Ratings from the model itself: noise 0.3, item rows near W x; the last user and the last item have none.

    Also the rows they come from, user rows, item rows, and both W.
    """
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(ITEMS, 2)), rng.normal(size=(USERS, 2))
    items = assemble({"text": x}, np.arange(ITEMS) < ITEMS - 1)
    users = assemble({"age": z}, np.arange(USERS) < USERS - 1)
    item_map = 0.6 * rng.normal(size=(3, WIDTH + 1))
    q = items.columns @ item_map + 0.2 * rng.normal(size=(ITEMS, WIDTH + 1))
    user_map = 0.6 * rng.normal(size=(3, WIDTH + 1))
    p = users.columns @ user_map + 0.2 * rng.normal(size=(USERS, WIDTH + 1))
    truth = 3.5 + p[:, :1] + q[:, 0] + p[:, 1:] @ q[:, 1:].T
    user, item = np.nonzero(rng.random((USERS - 1, ITEMS - 1)) < 0.6)
    rating = truth[user, item] + 0.3 * rng.normal(size=len(user))
    return (user, item, rating.astype(np.float32), users, items, truth), (p, q, user_map, item_map)


@pytest.fixture(scope="module")
def world(drawn):
    """User, item and rating of the events, side information of both, the true score of every pair."""
    return drawn[0]


def in_float64(side):
    return SideInformation(side.columns.astype(np.float64), side.group, side.names)


@pytest.fixture(scope="module")
def exact(world):
    """Variational Bayes on that world in float64."""
    user, item, rating, users, items, _ = world
    with jax.enable_x64(True):
        return bayes.fit_vb(user, item, rating, in_float64(users), in_float64(items), settings=SMALL, spread=ONE)


@pytest.fixture(scope="module")
def sampled(world):
    user, item, rating, users, items, _ = world
    return bayes.fit_gibbs(user, item, rating, users, items, settings=SMALL, spread=ONE)


def test_the_bound_rises_at_every_iteration(exact):
    assert len(exact.bound) == 20
    assert np.diff(exact.bound).min() > -1e-9


def test_a_training_user_folds_in_to_the_same_row(exact, world):
    user, item, rating, users, _, _ = world
    v = exact.vectors
    for someone in (0, 7):
        mine = user == someone
        prior = exact.prior.of(item[mine], someone)
        np.testing.assert_allclose(prior.mean, exact.prior_of(users.columns[someone]).mean, rtol=1e-5, atol=1e-7)
        design, target = fold_in.events(prior, item[mine], rating[mine], v.mu, v.item_vectors, v.item_biases)
        row = fold_in.fold_in(prior, item[mine], design, target, scale=exact.prior.scale_of(someone))
        np.testing.assert_allclose(row, [v.user_biases[someone], *v.user_vectors[someone]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["exact", pytest.param("sampled", marks=pytest.mark.slow)])
def test_rows_without_ratings_are_what_their_features_say(method, world, request):
    model = request.getfixturevalue(method)
    _, _, _, users, items, _ = world
    vector, bias = model.new_items(items.columns[-1:])
    np.testing.assert_allclose(model.vectors.item_vectors[-1:], vector, atol=2e-5)
    np.testing.assert_allclose(model.vectors.item_biases[-1:], bias, atol=2e-5)
    user = [model.vectors.user_biases[-1], *model.vectors.user_vectors[-1]]
    np.testing.assert_allclose(users.columns[-1] @ model.user_map, user, atol=2e-5)


def test_the_variance_of_a_score_is_that_of_its_factors(exact):
    rng = np.random.default_rng(1)
    v, pair = exact.vectors, (3, 5)
    drawn_u = rng.multivariate_normal([v.user_biases[3], *v.user_vectors[3]], exact.user_covariance[3], 200_000)
    drawn_i = rng.multivariate_normal([v.item_biases[5], *v.item_vectors[5]], exact.item_covariance[5], 200_000)
    scores = drawn_u[:, 0] + drawn_i[:, 0] + (drawn_u[:, 1:] * drawn_i[:, 1:]).sum(axis=1)
    found = exact.score_variance(np.array(pair[:1]), np.array(pair[1:]))
    np.testing.assert_allclose(found, [scores.var()], rtol=0.02)
    cold = exact.score_variance(np.array([3]), np.array([ITEMS - 1]))
    assert cold > 2 * found


@pytest.mark.parametrize("method", ["exact", pytest.param("sampled", marks=pytest.mark.slow)])
def test_synthetic_truth_is_found_again(method, world, request):
    model = request.getfixturevalue(method)
    user, item, _, _, _, truth = world
    unseen = np.ones_like(truth, bool)
    unseen[user, item] = False
    users, items = np.nonzero(unseen)
    error = model.vectors.score_pairs(users, items) - truth[users, items]
    assert np.sqrt((error**2).mean()) < 0.35 * truth.std()
    assert 1 / np.sqrt(model.alpha) == pytest.approx(0.3, rel=0.35)


@pytest.mark.parametrize("method", ["exact", pytest.param("sampled", marks=pytest.mark.slow)])
def test_the_maps_of_features_are_found_again(method, drawn, request):
    """W by what it does, since factors may turn: how far one step of a feature moves each score of the other side.

    A user's W is seen through 59 rows that lie 0.2 (and an error of 0.3 / sqrt(23 ratings)) around it: 0.03 an entry,
    0.04 in a slope over an item of length 1; that item's own vector is known to 0.3 / sqrt(35 ratings), which W of 0.6
    an entry carries into another 0.05. For an item's W 39 rows: 0.04, 0.05, and 0.06. So 0.08 altogether; twice that is
    allowed, and half of what the slopes are.
    """
    model = request.getfixturevalue(method)
    p, q, user_map, item_map = drawn[1]
    v = model.vectors
    sides = {
        "users": (user_map, q, model.user_map, v.item_vectors, ITEMS),
        "items": (item_map, p, model.item_map, v.user_vectors, USERS),
    }
    for name, (true_map, true_rows, found_map, found_rows, number) in sides.items():
        true = true_map[1:, :1] + true_map[1:, 1:] @ true_rows[: number - 1, 1:].T
        found = found_map[1:, :1] + found_map[1:, 1:] @ found_rows[: number - 1].T
        assert np.sqrt((true**2).mean()) > 2 * 0.16, name
        assert np.sqrt(((found - true) ** 2).mean()) < 0.16, name


@pytest.mark.slow
@pytest.mark.parametrize("fit", [bayes.fit_vb, bayes.fit_gibbs])
def test_the_noise_of_users_and_items_is_found_again(fit, world):
    """Every other user and every other item with three times the noise; a and g against their posterior mean at the
    truth, (shape + n / 2) / (shape + alpha sum g sigma^2 / 2).

    One of them has a relative deviation of 1 / sqrt(shape + n / 2), at most 0.3 (23 ratings), the mean of a half of
    the users or items a fifth of that; 0.25 is four times as much.
    """
    user, item, _, users, items, truth = world
    sd = 0.2 * np.outer(1 + 2 * (np.arange(USERS) % 2), 1 + 2 * (np.arange(ITEMS) % 2))
    rating = truth[user, item] + (sd * np.random.default_rng(1).normal(size=sd.shape))[user, item]
    model = fit(user, item, rating.astype(np.float32), users, items, settings=SMALL, spread=ONE)
    sides = {
        "users": (user, item, model.user_noise, model.item_noise, SMALL.user_noise),
        "items": (item, user, model.item_noise, model.user_noise, SMALL.item_noise),
    }
    for name, (mine, others, found, other_noise, shape) in sides.items():
        half = 0.5 * np.bincount(mine, minlength=len(found))
        weighted = model.alpha * other_noise[others] * sd[user, item] ** 2
        wanted = (shape + half) / (shape + 0.5 * np.bincount(mine, weights=weighted, minlength=len(found)))
        off = np.log(found / wanted)[half > 0]
        loud = (np.arange(len(found)) % 2 == 1)[half > 0]
        assert abs(off[loud].mean()) < 0.25, name
        assert abs(off[~loud].mean()) < 0.25, name
        assert np.log(wanted[half > 0][~loud].mean() / wanted[half > 0][loud].mean()) > 1.0, name


@pytest.mark.slow
def test_equal_keys_give_equal_models(sampled, world):
    user, item, rating, users, items, _ = world
    again = bayes.fit_gibbs(user, item, rating, users, items, settings=SMALL, spread=ONE)
    np.testing.assert_array_equal(again.vectors.item_vectors, sampled.vectors.item_vectors)
    other = bayes.fit_gibbs(user, item, rating, users, items, settings=SMALL, key=jax.random.key(1), spread=ONE)
    assert np.abs(other.vectors.item_biases - sampled.vectors.item_biases).max() > 1e-4


@pytest.mark.slow
def test_constant_ratings_are_predicted(world):
    user, item, rating, users, items, _ = world
    model = bayes.fit_gibbs(user, item, np.full_like(rating, 4.0), users, items, settings=SMALL, spread=ONE)
    scores = model.vectors.score_pairs(np.arange(USERS).repeat(ITEMS), np.tile(np.arange(ITEMS), USERS))
    np.testing.assert_allclose(scores, 4.0, atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("fit", [bayes.fit_vb, bayes.fit_gibbs])
def test_one_item_rated_twice_by_a_user_gives_finite_numbers(fit):
    nothing, single = assemble({}, np.ones(3, bool)), assemble({}, np.ones(1, bool))
    user, item = np.array([0, 0, 1]), np.zeros(3, int)
    model = fit(user, item, np.full(3, 4.0), nothing, single, settings=SMALL, spread=ONE)
    np.testing.assert_allclose(model.vectors.score_pairs(np.arange(3), np.zeros(3, int)), 4.0, atol=0.5)


def test_ratings_that_are_none_or_not_finite_are_refused(world):
    _, _, _, users, items, _ = world
    none = np.zeros(0, int)
    with pytest.raises(UserError, match="no training rating"):
        bayes.fit_vb(none, none, np.zeros(0), users, items, spread=ONE)
    with pytest.raises(UserError, match="number 1 is not"):
        bayes.fit_vb(np.array([0, 1]), np.array([0, 1]), np.array([1, np.nan]), users, items, spread=ONE)


@pytest.mark.slow
@pytest.mark.parametrize("fit", [bayes.fit_vb, bayes.fit_gibbs])
def test_singular_equations_are_told(fit, world):
    """Two equal columns, so long that float32 loses the penalty beside their squares: all powers of two, so exactly."""
    user, item, rating, users, items, _ = world
    column = np.r_[np.float32(2.0**40) * np.float32([1, -1, 1, -1]), np.zeros(USERS - 4, np.float32)]
    equal = dataclasses.replace(users, columns=np.stack([users.columns[:, 0], column, column], axis=1))
    few = BayesConfig(factors=WIDTH, iterations=1, gibbs_factors=WIDTH, sweeps=2, burn_in=1)
    with pytest.raises(UserError, match=r"users are singular.*column of the side information"):
        fit(user, item, rating, equal, items, settings=few, spread=ONE)


@pytest.mark.slow
@pytest.mark.parametrize("fit", [bayes.fit_vb, bayes.fit_gibbs])
def test_devices_share_the_rows(fit, world):
    user, item, rating, users, items, _ = world
    few = BayesConfig(factors=WIDTH, iterations=10, gibbs_factors=WIDTH, sweeps=10, burn_in=5)
    alone, *shared = (
        fit(user, item, rating, users, items, settings=few, spread=spread).vectors
        for spread in (ONE, parallel.choose("pmap", count=2), parallel.choose("shard_map", count=2))
    )
    for vectors in shared:
        np.testing.assert_allclose(vectors.item_biases, alone.item_biases, atol=0.02)
        np.testing.assert_allclose(vectors.user_biases, alone.user_biases, atol=0.02)
