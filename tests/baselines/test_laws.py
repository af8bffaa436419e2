"""One list of laws that every baseline obeys, on a small world where the right answer is known by construction."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax.baselines import registry
from ltrec_jax.baselines.item_texts import ItemTexts
from ltrec_jax.baselines.training import Training
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.errors import UserError
from ltrec_jax.types import Recommender

USERS, ITEMS, COLD, IDLE = 24, 18, 17, 23
SMALL = {
    "ials": {"width": 8, "alternations": 3},
    "bpr": {"width": 8, "epochs": 20},
    "itemknn": {"neighbours": 6, "shrink": 1.0},
    "ease": {"l2": 2.0},
    "ease-text": {"l2": 2.0, "text_weight": 1.0},
}
NAMES = sorted(registry.BASELINES)
KNOWS_TASTE = [name for name in NAMES if name not in ("random", "popularity", "biases")]
KNOWS_TEXTS = ["ease-text", "ials", "text-knn", "tfidf-knn"]


def world(order=None):
    """Users like most items of one topic (i % 2 == u % 2); 17 is cold, user 23 idle. `order`: new item ids."""
    generator = np.random.default_rng(3)
    pairs = [(u, i) for u in range(USERS - 1) for i in range(ITEMS - 1) if i % 2 == u % 2 and generator.random() < 0.7]
    disliked = [(u, (u + 1) % 2) for u in range(USERS - 1)]
    user, item = np.array(pairs + disliked, np.int32).T
    rating = np.r_[np.full(len(pairs), 5), np.full(len(disliked), 1)].astype(np.float32)
    vectors = np.hstack([np.eye(2)[np.arange(ITEMS) % 2], 0.05 * generator.random((ITEMS, 3))]).astype(np.float32)
    if order is not None:
        item = order[item].astype(np.int32)
        vectors = vectors[np.argsort(order)]
    events = Interactions(user, item, rating, np.zeros(len(user), np.int64))
    return Training(events, USERS, ITEMS, 4.0, ItemTexts(lambda: vectors, lambda: vectors[:, :4]), seed=1)


def fitted(name, train):
    return registry.fit(name, train, registry.find(name).settings(**SMALL.get(name, {})))


@pytest.fixture(scope="module")
def train():
    return world()


@pytest.fixture(scope="module")
def models(train):
    return {name: fitted(name, train) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_scores_are_finite_float32_of_all_items(models, name):
    model = models[name]
    assert isinstance(model, Recommender)
    assert getattr(model, "predicts_ratings", True) == registry.find(name).rates
    for users in ([0, 5, IDLE], [4]):
        scores = np.asarray(model.score(np.array(users)))
        assert scores.shape == (len(users), ITEMS)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()


def test_pairs_have_the_scores_of_lists(models, name):
    users, items = np.repeat(np.arange(USERS), ITEMS)[::-1], np.tile(np.arange(ITEMS), USERS)[::-1]
    pairs = np.asarray(models[name].score_pairs(users, items))
    assert pairs.dtype == np.float32
    scores = np.asarray(models[name].score(np.arange(USERS)))
    np.testing.assert_allclose(pairs, scores[users, items], rtol=1e-5, atol=1e-6)
    assert models[name].score_pairs(users[:0], items[:0]).shape == (0,)


def test_equal_seeds_give_equal_bits(models, name):
    again = fitted(name, world())
    np.testing.assert_array_equal(
        np.asarray(again.score(np.arange(USERS))), np.asarray(models[name].score(np.arange(USERS)))
    )


def test_a_user_who_does_not_exist_is_refused(models, name):
    if name != "popularity":  # It knows no users at all.
        with pytest.raises(IndexError):
            models[name].score(np.array([0, USERS]))


def test_a_user_without_events_is_shown_what_most_people_like(models, name, train):
    """Not the items in the order of their ids, whatever the model knows; what nobody likes comes last."""
    scores = np.asarray(models[name].score(np.array([IDLE])))[0]
    if name in KNOWS_TASTE:
        np.testing.assert_allclose(scores, np.log1p(train.like_counts), rtol=1e-6)
        alone = np.asarray(
            registry.find(name).fit(train, registry.find(name).settings(**SMALL.get(name, {}))).score([IDLE])
        )
        np.testing.assert_array_equal(alone, 0.0)


def test_taste_is_found(models, name):
    """Implicit's checkerboard: unseen items of the user's own topic stand above those of the other one."""
    if name not in KNOWS_TASTE:
        pytest.skip("it knows no taste")
    scores, likes = np.asarray(models[name].score(np.arange(USERS - 1))), world().likes.toarray()[:-1] > 0
    own = np.arange(USERS - 1)[:, None] % 2 == np.arange(ITEMS)[None, :] % 2
    unseen = ~likes & (np.arange(ITEMS) != COLD)
    for user in np.flatnonzero((own & unseen).any(1)):
        assert scores[user][own[user] & unseen[user]].mean() > scores[user][~own[user] & unseen[user]].mean()


def test_a_cold_item_is_placed_by_its_text_or_scores_0(models, name):
    if name not in KNOWS_TASTE:
        pytest.skip("it knows no taste")
    cold = np.asarray(models[name].score(np.arange(USERS - 1)))[:, COLD]
    if name in KNOWS_TEXTS:
        assert cold[1::2].min() > cold[0::2].max()
    else:
        np.testing.assert_array_equal(cold, 0.0)


def test_item_ids_mean_nothing(models, name):
    if name in ("random", "ials", "bpr"):
        pytest.skip("it starts from random numbers by item id")
    order = np.random.default_rng(5).permutation(ITEMS)
    permuted = np.asarray(fitted(name, world(order)).score(np.arange(USERS)))[:, order]
    scores = np.asarray(models[name].score(np.arange(USERS)))
    if name == "itemknn":  # Of equally similar neighbours the first by id is kept.
        every = dataclasses.replace(registry.find(name).settings(), neighbours=ITEMS)
        permuted = registry.fit(name, world(order), every).score(np.arange(USERS))[:, order]
        scores = registry.fit(name, world(), every).score(np.arange(USERS))
    np.testing.assert_allclose(permuted, scores, rtol=1e-4, atol=1e-5)


def test_what_is_not_liked_teaches_rankers_nothing(models, name):
    if name in ("popularity", "biases"):
        pytest.skip("it learns from all events")
    train = world()
    liked = train.events.rating >= 4
    without = fitted(name, dataclasses.replace(train, events=train.events.take(liked)))
    np.testing.assert_array_equal(
        np.asarray(without.score(np.arange(USERS))), np.asarray(models[name].score(np.arange(USERS)))
    )


def test_no_events_are_the_users_mistake(name):
    if name in ("random", "popularity"):
        pytest.skip("it learns nothing, or that nothing is popular")
    train = world()
    with pytest.raises(UserError):
        fitted(name, dataclasses.replace(train, events=train.events.take(np.zeros(0, int))))


def test_missing_texts_are_told(name):
    train = dataclasses.replace(world(), texts=None)
    if registry.find(name).texts:
        with pytest.raises(UserError, match="texts"):
            fitted(name, train)
    elif name == "ials":
        np.testing.assert_array_equal(np.asarray(fitted(name, train).score(np.arange(USERS)))[:, COLD], 0.0)
