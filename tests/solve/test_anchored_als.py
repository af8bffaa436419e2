"""The anchored whole-data solve: it minimises what it says, stays at the text where data is rare, in any dtype."""

import dataclasses

import jax
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.config import WholeDataConfig
from ltrec_jax.errors import UserError
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.solve import anchored_als

USERS, ITEMS, WIDTH = 40, 30, 6
SETTINGS = WholeDataConfig(alternations=3)


@pytest.fixture(scope="module")
def world():
    """Positives of 40 users (user 5 has none) on 30 items (items 28, 29 have none; item 0 has almost all users)."""
    rng = np.random.default_rng(0)
    liked = rng.random((USERS, ITEMS)) < np.linspace(0.95, 0.05, ITEMS)[None, :]
    liked[5], liked[:, 28:] = False, False
    user, item = np.nonzero(liked)
    order = rng.permutation(len(user))
    return user[order], item[order], 0.4 * rng.normal(size=(ITEMS, WIDTH)) / np.sqrt(WIDTH)


@pytest.fixture(scope="module")
def solved(world):
    """Solved in float64. Padded to width 40, so that rows of up to 32 entries go through Woodbury, others not."""
    user, item, anchor = world
    anchor = np.pad(anchor, ((0, 0), (0, 34)))
    with jax.enable_x64(True):
        return anchored_als.solve(
            user, item, anchor, num_users=USERS, settings=SETTINGS, spread=parallel.choose("jit")
        ), anchor


def weights(world):
    counts = np.bincount(world[1], minlength=ITEMS)
    return popularity_weights(counts, SETTINGS.propensity_power)[world[1]]


def objective(world, p, q, anchor):
    """The formula of the module's docstring, written over all pairs."""
    user, item, _ = world
    warm = np.bincount(item, minlength=ITEMS) > 0
    active = np.bincount(user, minlength=USERS) > 0
    counts_u, counts_i = np.bincount(user, minlength=USERS), np.bincount(item, minlength=ITEMS)
    scores = p @ q.T
    a0, l2 = SETTINGS.unobserved_weight, SETTINGS.l2
    return (
        (weights(world) * (scores[user, item] - 1) ** 2).sum()
        + a0 * (scores[:, warm] ** 2).sum()
        + l2 * ((counts_u + a0 * warm.sum()) * (p**2).sum(1)).sum()
        + l2 * ((counts_i + a0 * active.sum()) * ((q - anchor) ** 2).sum(1))[warm].sum()
    )


def test_the_objective_is_the_formula_and_falls(world, solved):
    result, anchor = solved
    assert len(result.objective) == 2 * SETTINGS.alternations + 1
    assert all(later < earlier for earlier, later in zip(result.objective, result.objective[1:], strict=False))
    expected = objective(world, result.user_vectors, result.item_vectors, anchor)
    assert result.objective[-1] == pytest.approx(expected, rel=1e-10)


def test_users_stand_at_their_minimum(world, solved):
    """The gradient with respect to user vectors, by hand, is zero: the normal equations hold."""
    result, _ = solved
    user, item, _ = world
    p, q = result.user_vectors, result.item_vectors
    warm = np.bincount(item, minlength=ITEMS) > 0
    counts = np.bincount(user, minlength=USERS)
    gradient = SETTINGS.unobserved_weight * p @ (q[warm].T @ q[warm])
    gradient += (SETTINGS.l2 * (counts + SETTINGS.unobserved_weight * warm.sum()))[:, None] * p
    error = weights(world) * ((p[user] * q[item]).sum(1) - 1)
    np.add.at(gradient, user, error[:, None] * q[item])
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_items_stand_at_their_minimum(world, solved):
    """The gradient with respect to item vectors after the first half for items, anchor included, by hand.

    The users they were solved for are those of the first half: solved at the anchors, here once more by hand.
    """
    user, item, _ = world
    anchor = solved[1]
    with jax.enable_x64(True):
        settings = dataclasses.replace(SETTINGS, alternations=1)
        q = anchored_als.solve(
            user, item, anchor, num_users=USERS, settings=settings, spread=parallel.choose("jit")
        ).item_vectors
    warm = np.bincount(item, minlength=ITEMS) > 0
    a0, l2, width = SETTINGS.unobserved_weight, SETTINGS.l2, anchor.shape[1]
    p = np.zeros((USERS, width))
    for someone in np.unique(user):
        mine = user == someone
        x, w = anchor[item[mine]], weights(world)[mine]
        ridge = l2 * (mine.sum() + a0 * warm.sum())
        left = a0 * anchor[warm].T @ anchor[warm] + (x * w[:, None]).T @ x + ridge * np.eye(width)
        p[someone] = np.linalg.solve(left, w @ x)
    active, counts = np.bincount(user, minlength=USERS) > 0, np.bincount(item, minlength=ITEMS)
    to_anchor = (l2 * (counts + a0 * active.sum()))[:, None] * (q - anchor)
    gradient = a0 * q @ (p.T @ p) + to_anchor
    error = weights(world) * ((p[user] * q[item]).sum(1) - 1)
    np.add.at(gradient, item, error[:, None] * p[user])
    np.testing.assert_allclose(gradient[warm], 0, atol=1e-9)
    assert np.abs(to_anchor[warm]).max(axis=1).min() > 1e-3


def test_a_never_seen_item_is_its_text_and_a_silent_user_is_zero(solved):
    result, anchor = solved
    np.testing.assert_array_equal(result.item_vectors[28:], anchor[28:])
    np.testing.assert_allclose(result.user_vectors[5], 0)


@pytest.mark.parametrize("width", [40, pytest.param(6, marks=pytest.mark.slow)])
def test_without_weight_on_unobserved_pairs_a_silent_user_is_still_zero(world, width):
    """By Cholesky and by Woodbury: the penalty of that user is l2 times no event, which determines nothing."""
    user, item, anchor = world
    settings = dataclasses.replace(SETTINGS, unobserved_weight=0.0, l2=0.03, alternations=1)
    wide = np.pad(anchor, ((0, 0), (0, width - WIDTH))).astype(np.float32)
    found = anchored_als.solve(user, item, wide, num_users=USERS, settings=settings, spread=parallel.choose("jit"))
    assert np.isfinite(found.user_vectors).all()
    np.testing.assert_array_equal(found.user_vectors[5], 0)
    assert all(np.isfinite(found.objective))
    assert np.abs(np.delete(found.user_vectors, 5, axis=0)).max(axis=1).min() > 0


def test_float32_on_several_devices_agrees_and_repeats(world):
    user, item, anchor = world
    find = lambda spread: anchored_als.solve(  # noqa: E731
        user, item, anchor.astype(np.float32), num_users=USERS, settings=SETTINGS, spread=spread
    )
    one, again, four = (
        find(parallel.choose("jit")),
        find(parallel.choose("jit")),
        find(parallel.choose("pmap", count=4)),
    )
    assert one.user_vectors.dtype == np.float32
    np.testing.assert_array_equal(one.user_vectors, again.user_vectors)
    np.testing.assert_allclose(four.item_vectors, one.item_vectors, atol=2e-5)


def test_bad_input(world):
    user, item, anchor = world
    with pytest.raises(UserError, match="no positive"):
        anchored_als.solve(user[:0], item[:0], anchor, num_users=USERS, settings=SETTINGS)
    loose = dataclasses.replace(SETTINGS, l2=0.0, unobserved_weight=0.0)
    with pytest.raises(UserError, match=r"users are singular.*whole_data\.l2"):
        anchored_als.solve(
            user,
            item,
            np.zeros_like(anchor, np.float32),
            num_users=USERS,
            settings=loose,
            spread=parallel.choose("jit"),
        )
