"""EASE, ItemKNN, the ridge map and blocks against the same formula written with dense matrices."""

import dataclasses
import importlib

import numpy as np
import pytest
import scipy.sparse

from ltrec_jax.baselines import ease, extra, ials, item_knn, registry, scoring
from ltrec_jax.baselines.item_texts import ItemTexts, directions, item_texts
from ltrec_jax.baselines.training import Training
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.errors import UserError

USERS, ITEMS = 15, 9


@pytest.fixture(scope="module")
def train():
    generator = np.random.default_rng(0)
    user, item = np.nonzero(generator.random((USERS, ITEMS)) < 0.4)
    events = Interactions(
        user.astype(np.int32), item.astype(np.int32), np.ones(len(user), np.float32), np.zeros(len(user), np.int64)
    )
    vectors = generator.normal(size=(ITEMS, 4)).astype(np.float32)
    return Training(events, USERS, ITEMS, 1.0, ItemTexts(lambda: vectors, lambda: vectors[:, :2]))


@pytest.mark.parametrize("text_weight", [0.0, 3.0])
def test_ease_solves_its_regression(train, text_weight):
    """Each column by itself: ridge regression of an item on the others, text rows below the users."""
    rows = np.vstack([train.likes.toarray(), np.sqrt(text_weight) * directions(train.texts.vectors).T]).astype(
        np.float64
    )
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.arange(ITEMS) != item
        left = rows[:, others].T @ rows[:, others] + 2.0 * np.eye(ITEMS - 1)
        expected[others, item] = np.linalg.solve(left, rows[:, others].T @ rows[:, item])
    model = ease.fit(train, ease.EaseTextSettings(l2=2.0, text_weight=text_weight))
    np.testing.assert_allclose(np.asarray(model.weight_IxI), expected, atol=2e-5)


def test_ease_refuses_a_large_catalogue_before_it_takes_memory(train):
    with pytest.raises(UserError, match=r"1,000,000 x 1,000,000 items .*20,000"):
        ease.fit(dataclasses.replace(train, num_items=1_000_000))
    assert registry.affordable(registry.USUAL, dataclasses.replace(train, num_items=1_000_000)) == [
        "popularity",
        "itemknn",
        "ials",
        "text-knn",
    ]
    assert "text-knn" not in registry.affordable(registry.USUAL, dataclasses.replace(train, texts=None))


@pytest.mark.parametrize("block_floats", [1, 1 << 20])
def test_item_knn_keeps_the_nearest(train, monkeypatch, block_floats):
    monkeypatch.setattr(scoring, "_BLOCK_FLOATS", block_floats)
    x = train.likes.toarray().astype(np.float64)
    count = x.sum(0)
    similar = (x.T @ x) / (np.sqrt(np.outer(count, count)) + 1.5)
    np.fill_diagonal(similar, 0)
    kept = np.zeros_like(similar)
    for item in range(ITEMS):
        nearest = np.argsort(-similar[item], kind="stable")[:3]
        kept[item, nearest] = similar[item, nearest]
    model = item_knn.fit(train, item_knn.ItemKnnSettings(neighbours=3, shrink=1.5))
    np.testing.assert_allclose(model.score(np.arange(USERS)), x @ kept.T, rtol=1e-5)


def test_the_map_of_cold_items_is_the_ridge_regression(train):
    keep = train.events.item != 2
    cold = dataclasses.replace(train, events=train.events.take(keep))
    settings = ials.IalsSettings(width=4, alternations=2, map_l2=0.7)
    model = ials.fit(cold, settings)
    x, q, n = directions(train.texts.vectors), model.item_vectors, cold.like_counts
    weight = np.sqrt(n) / np.sqrt(n[n > 0]).mean()
    design = np.vstack([np.sqrt(weight)[:, None] * x, np.sqrt(0.7) * np.eye(4)])
    target = np.vstack([np.sqrt(weight)[:, None] * q, np.zeros((4, 4))])
    expected = x[2] @ np.linalg.lstsq(design, target, rcond=None)[0]
    np.testing.assert_allclose(q[2], expected, rtol=1e-3, atol=1e-5)


def test_equations_that_are_singular_are_told_with_the_setting(train):
    """More items than users, and no penalty that float32 could see; fewer liked items than dimensions of a text."""
    with pytest.raises(UserError, match=r"EASE are singular\. Raise its l2"):
        ease.fit(
            dataclasses.replace(train, events=train.events.take(train.events.user < 3)), ease.EaseSettings(l2=1e-30)
        )
    few = dataclasses.replace(train, events=train.events.take(train.events.item < 2))
    with pytest.raises(UserError, match=r"Raise baselines\.ials\.map_l2"):
        ials.fit(few, ials.IalsSettings(width=4, alternations=1, map_l2=0.0))
    assert np.isfinite(ials.fit(few, ials.IalsSettings(width=4, alternations=1, map_l2=1e-2)).item_vectors).all()


def test_pairs_are_read_from_blocks_of_rows():
    table = np.random.default_rng(0).random((700, 5)).astype(np.float32)
    users, items = np.random.default_rng(1).integers(0, [700, 5], (2000, 2)).T
    found = scoring.pairs_by_rows(lambda users_B: table[users_B], users, items)
    np.testing.assert_array_equal(found, table[users, items])
    with pytest.raises(ValueError, match="shapes"):
        scoring.pairs_by_rows(lambda users_B: table[users_B], users, items[:3])


def test_items_that_nobody_likes_are_ordered_for_newcomers_by_what_the_others_score(monkeypatch):
    """Users 0..3 like item 0, two of them item 1, nobody items 2, 3 and 4; user 4 likes nothing."""
    likes = scipy.sparse.csr_matrix(np.float32([[1, 1, 0, 0, 0]] * 2 + [[1, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0]]))
    table = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    model = scoring.PopularToNewcomers(TableModel(table), likes)
    found = np.asarray(model.score(np.arange(5)))
    np.testing.assert_array_equal(found[:4], table[:4])
    np.testing.assert_allclose(found[4, :2], np.log([5, 3]), rtol=1e-6)
    mean = table[:4].mean(axis=0)[2:]
    np.testing.assert_allclose(found[4, 2:], mean - mean.max(), rtol=1e-5)
    monkeypatch.setattr(scoring, "_MOST_ASKED", 2)
    mean = table[[0, 2]].mean(axis=0)[2:]
    again = scoring.PopularToNewcomers(TableModel(table), likes)
    np.testing.assert_allclose(np.asarray(again.score(np.array([4])))[0, 2:], mean - mean.max(), rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class TableModel:
    """Scores read from a table."""

    table: np.ndarray

    def score(self, users):
        return self.table[users]


def test_likes_count_once_and_from_the_positive_rating_on():
    user, item = np.array([[0, 0, 1, 1], [1, 1, 0, 1]], np.int32)
    events = Interactions(user, item, np.array([5, 4, 3, 4], np.float32), np.zeros(4, np.int64))
    train = Training(events, 2, 2, 4.0)
    np.testing.assert_array_equal(train.likes.toarray(), [[0, 1], [0, 1]])
    assert isinstance(train.likes, scipy.sparse.csr_matrix)


def test_shuffled_texts_are_the_same_texts_elsewhere(train):
    control = train.texts.permuted(1)
    assert not np.array_equal(control.vectors, train.texts.vectors)
    np.testing.assert_array_equal(np.sort(control.vectors, axis=0), np.sort(train.texts.vectors, axis=0))
    np.testing.assert_array_equal(control.vectors[:, :2], control.word_vectors)


@pytest.mark.usefixtures("cache")
def test_texts_of_a_dataset(small_dataset, small_config):
    """One topic's words are nearer to each other than to those of another, by the words and not by markup."""
    texts = item_texts(small_dataset, small_config)
    assert texts.vectors.shape == (90, 16)
    words = directions(texts.word_vectors, center=False)
    cosine = words @ words.T
    same = np.arange(90)[:, None] % 3 == np.arange(90)[None, :] % 3
    assert cosine[~same].max() < 0.3 < cosine[same].mean()


def test_a_missing_library_names_the_extra(monkeypatch):
    def refuse(name, *arguments):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UserError, match=r"bpr needs implicit.*ltrec-jax\[baselines\]"):
        extra.needed("implicit.cpu.bpr", "Baseline bpr")


def test_settings_survive_toml():
    settings = {name: registry.find(name).settings() for name in registry.BASELINES}
    settings["ease"] = ease.EaseSettings(l2=12.5)
    assert registry.settings_from_toml(registry.settings_to_toml(settings), "x") == settings
    for wrong in ("[baselines.eas]\nl2 = 1.0", "[baselines.ease]\nl3 = 1.0", "[other]", "x ="):
        with pytest.raises(UserError):
            registry.settings_from_toml(wrong, "tuned.toml")
