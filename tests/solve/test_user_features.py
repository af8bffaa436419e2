"""Features of a user from events: those of training for its users, average ones for what somebody new has not done."""

import numpy as np
import pandas as pd
import pytest

from ltrec_jax.solve import side_information, user_features

RNG = np.random.default_rng(0)
USERS, ITEMS, WIDTH = 30, 20, 3


def features(user, item, blocks=()):
    users, _ = side_information.of_ratings(
        user,
        item,
        USERS,
        ITEMS,
        text_IxE=RNG.normal(size=(ITEMS, 5)),
        profile_UxE=RNG.normal(size=(USERS, 4)),
        user_attributes={"age": pd.Series(RNG.normal(size=USERS))},
        blocks=blocks,
    )
    return users


@pytest.fixture(scope="module")
def world():
    """User features of everything, with a user and an item without events: (user, item, side information, map)."""
    user, item = np.nonzero(RNG.random((USERS - 1, ITEMS - 1)) < 0.4)
    users = features(user, item)
    return user, item, users, RNG.normal(size=(users.columns.shape[1], WIDTH))


def made(world, noise=None):
    user, _, users, map_FxD = world
    counts = np.bincount(user, minlength=USERS)
    return user_features.of_model(users, counts, map_FxD, np.linspace(0.5, 2, USERS) if noise is None else noise)


def test_a_training_user_has_the_prior_mean_of_training(world):
    user, item, users, map_FxD = world
    assert users.names == ("intercept", "popularity", "singular", "history", "profile", "age")
    found = made(world)
    assert found.history.shape == found.singular.shape == (ITEMS, WIDTH)
    for someone in range(USERS):
        mean = found.mean(item[user == someone], someone)
        np.testing.assert_allclose(mean, users.columns[someone] @ map_FxD, rtol=1e-3, atol=1e-3)


def test_somebody_new_is_as_old_and_as_busy_as_the_mean_and_later_items_tell_nothing(world):
    user, item, users, map_FxD = world
    found, counts = made(world), np.bincount(user, minlength=USERS)
    busiest = int(counts.argmax())
    mine = item[user == busiest]
    told = np.isin(users.group, [users.names.index(name) for name in ("intercept", "singular", "history")])
    np.testing.assert_allclose(found.mean(mine), (users.columns[busiest] * told) @ map_FxD, rtol=1e-3, atol=1e-3)
    later = np.append(mine, [ITEMS, np.iinfo(np.int64).max])
    np.testing.assert_array_equal(found.mean(later), found.mean(mine))


def test_events_that_a_usual_user_has_more_count_as_average_ones(world):
    user, *_ = world
    found, counts = made(world), np.bincount(user, minlength=USERS)
    usual = np.median(counts[counts > 0])
    expected = found.history[3] / usual + found.singular[3] / np.sqrt(usual) - found.away / usual
    np.testing.assert_allclose(found.mean(np.array([3])) - found.base, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.mean(np.zeros(0, int)), found.base)


@pytest.mark.parametrize("blocks", [("popularity",), ("history", "age"), ("profile",)])
def test_blocks_that_are_left_out_say_nothing(world, blocks):
    user, item, _, _ = world
    users = features(user, item, blocks)
    map_FxD = RNG.normal(size=(users.columns.shape[1], WIDTH))
    found = made((user, item, users, map_FxD))
    for someone in (0, 7, USERS - 1):
        mean = found.mean(item[user == someone], someone)
        np.testing.assert_allclose(mean, users.columns[someone] @ map_FxD, rtol=1e-3, atol=1e-3)


def test_side_information_that_events_do_not_tell_is_a_users_own():
    users = side_information.assemble({"age": RNG.normal(size=(4, 1))}, np.array([True, True, True, False]))
    map_FxD = RNG.normal(size=(2, WIDTH))
    found = user_features.of_model(users, np.array([2, 1, 1, 0]), map_FxD, np.ones(4))
    np.testing.assert_allclose(found.mean(np.array([0, 1]), 2), users.columns[2] @ map_FxD, rtol=1e-5)
    np.testing.assert_allclose(found.mean(np.array([0, 1])), map_FxD[0], rtol=1e-5)
