"""Side information: from training events alone, standardised over the rows that have some, signs fixed."""

import numpy as np
import pandas as pd
import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.solve import side_information

RNG = np.random.default_rng(0)


def test_columns_stand_behind_an_intercept_with_their_blocks_names():
    known = np.arange(12) < 9
    side = side_information.assemble({"text": RNG.normal(size=(12, 3)), "flat": np.ones((12, 2))}, known)
    assert side.names == ("intercept", "text")
    assert side.group.tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(side.columns[:, 0], 1.0)
    np.testing.assert_allclose(side.columns[known, 1:].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(side.columns[known, 1:].std(axis=0), 1, atol=1e-6)


def test_no_events_leave_the_intercept():
    side = side_information.assemble({"text": RNG.normal(size=(4, 3))}, np.zeros(4, bool))
    assert side.columns.shape == (4, 1)


@pytest.mark.parametrize("block", [np.zeros((3, 2)), np.full((4, 2), np.nan)])
def test_a_block_of_the_wrong_length_or_with_nan_is_named(block):
    with pytest.raises(UserError, match="'year'"):
        side_information.assemble({"year": block}, np.ones(4, bool))


def test_text_is_the_principal_components_of_known_items():
    vectors = RNG.normal(size=(20, 6)) * [9, 5, 1, 1, 1, 1]
    known = np.arange(20) < 15
    found = side_information.text(vectors, known, dims=2)
    values, directions = np.linalg.eigh(np.cov(vectors[known].T))
    np.testing.assert_allclose(found[known].var(axis=0, ddof=1), values[::-1][:2])
    np.testing.assert_allclose(
        np.abs(found), np.abs((vectors - vectors[known].mean(axis=0)) @ directions[:, ::-1][:, :2]), atol=1e-9
    )


def test_profiles_are_a_block_of_the_users_alone():
    user, item = np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 2, 0])
    profiles = RNG.normal(size=(5, 4))
    users, items = side_information.of_ratings(user, item, 5, 3, profile_UxE=profiles)
    assert "profile" in users.names
    assert "profile" not in items.names
    place = users.group == users.names.index("profile")
    expected = side_information.text(profiles, np.arange(5) < 4)
    spread = expected[:4].std(axis=0)
    varies = spread > 1e-9
    found = (expected - expected[:4].mean(axis=0))[:, varies] / spread[varies]
    np.testing.assert_allclose(users.columns[:, place], found, rtol=1e-4, atol=1e-5)
    without, _ = side_information.of_ratings(user, item, 5, 3, profile_UxE=profiles, blocks=["popularity"])
    assert "profile" not in without.names


def test_singular_vectors_solve_their_equation_without_the_trivial_pair():
    user, item = np.nonzero(RNG.random((15, 9)) < 0.5)
    left, right = side_information.singular_vectors(user, item, 15, 9, rank=3)
    seen = np.zeros((15, 9))
    seen[user, item] = 1
    scaled = seen / np.sqrt(seen.sum(1, keepdims=True)) / np.sqrt(seen.sum(0, keepdims=True))
    values = np.linalg.svd(scaled)[1]
    np.testing.assert_allclose(scaled @ right, left * values[1:4], atol=1e-9)
    again = side_information.singular_vectors(user, item, 15, 9, rank=3)
    np.testing.assert_array_equal(left, again[0])


def test_too_small_a_matrix_has_no_singular_vectors():
    left, right = side_information.singular_vectors(np.zeros(1, int), np.zeros(1, int), 5, 1)
    assert left.shape == (5, 0)
    assert right.shape == (1, 0)


def test_attributes_are_numbers_or_indicators():
    np.testing.assert_allclose(side_information.attribute(pd.Series([1990, None, 2000]))[:, 0], [1990, 1995, 2000])
    genres = pd.Series(["Action, Comedy"] * 10 + ["Comedy"] * 2 + ["Rare"] + [None])
    found = side_information.attribute(genres)
    assert found.shape == (14, 2)
    np.testing.assert_array_equal(found.sum(axis=0), [10, 12])


def test_history_is_the_mean_of_the_users_items():
    features = RNG.normal(size=(4, 2))
    found = side_information.history_mean(features, np.array([0, 0, 2]), np.array([1, 3, 0]), 4)
    np.testing.assert_allclose(found[0], features[[1, 3]].mean(axis=0))
    np.testing.assert_allclose(found[1], found[[0, 2]].mean(axis=0))


def test_a_row_without_events_is_as_popular_as_the_mean():
    counts = np.array([3, 0, 100, 1])
    block = side_information.assemble({"popularity": side_information.popularity(counts)}, counts > 0).columns[:, 1:]
    np.testing.assert_allclose(block[1], 0.0, atol=1e-6)
    np.testing.assert_allclose(side_information.popularity(counts)[[0, 2, 3], 0], np.log([4, 101, 2]))


def test_blocks_of_ratings_use_what_is_there_or_what_is_asked():
    user, item = np.nonzero(RNG.random((15, 9)) < 0.5)
    users, items = side_information.of_ratings(user, item, 15, 9, text_IxE=RNG.normal(size=(9, 5)))
    assert users.names == ("intercept", "popularity", "singular", "history")
    assert items.names == ("intercept", "text", "popularity", "singular")
    words = RNG.normal(size=(9, 4))
    users, items = side_information.of_ratings(user, item, 15, 9, words_IxR=words, text_IxE=RNG.normal(size=(9, 5)))
    assert users.names == ("intercept", "popularity", "singular", "history")
    assert items.names == ("intercept", "text", "words", "popularity", "singular")
    block = items.columns[:, items.group == items.names.index("words")]
    centred = words - words.mean(axis=0)
    assert np.linalg.matrix_rank(np.hstack([centred, block]), tol=1e-4) == block.shape[1] == 4
    users, items = side_information.of_ratings(user, item, 15, 9, blocks=("popularity",))
    assert users.names == items.names == ("intercept", "popularity")
    users, items = side_information.of_ratings(user, item, 15, 9, text_IxE=RNG.normal(size=(9, 5)), blocks=("history",))
    assert users.names == ("intercept", "history")
    assert items.names == ("intercept",)
    rank = pd.Series(np.arange(9.0))
    _, items = side_information.of_ratings(user, item, 15, 9, item_attributes={"popularity": rank})
    assert items.names == ("intercept", "popularity", "singular", "column popularity")
    with pytest.raises(UserError, match=r"'age'.*popularity.*singular"):
        side_information.of_ratings(user, item, 15, 9, blocks=("age",))
