"""From which rating on an event is a like: what was asked, what the dataset says, the top of its scale, or all."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax.data import sources
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.data.likes import likes_from, positive_rating


@pytest.fixture
def rated(small_dataset):
    """The small dataset with other ratings (one after the other, over again) and other `info`."""

    def make(ratings, **info):
        events, count = small_dataset.interactions, len(small_dataset.interactions)
        rating = np.resize(np.asarray(ratings, np.float32), count)
        return dataclasses.replace(
            small_dataset,
            interactions=Interactions(events.user, events.item, rating, np.asarray(events.timestamp)),
            info=info,
        )

    return make


def test_what_was_asked_goes_before_what_the_dataset_says_before_its_scale(rated):
    named = rated([1, 2, 3, 4, 5], positive_rating=3, scale=[1, 5])
    assert positive_rating(named, 2.5) == 2.5
    assert likes_from(named).rating == 3.0
    assert "own" in likes_from(named).reason
    assert positive_rating(rated([1, 5], positive_rating=0.0, scale=[1, 5])) == 0.0


@pytest.mark.parametrize(
    ("ratings", "scale", "liked"),
    [
        ([1, 2, 3, 4, 5], [1, 5], [4, 5]),
        ([1, 2, 3, 4, 5], None, [4, 5]),
        (np.arange(0.5, 5.5, 0.5), [0.5, 5], [4, 4.5, 5]),
        (np.arange(1, 11), [1, 10], [8, 9, 10]),
        ([0, 1], [0, 1], [1]),
        ([-1, 1], None, [1]),
        ([2, 3], [1, 5], []),
    ],
)
def test_without_either_the_top_quarter_of_the_scale_is_liked(rated, ratings, scale, liked):
    found = likes_from(rated(ratings, **({} if scale is None else {"scale": scale})))
    if liked:
        assert [x for x in ratings if x >= found.rating] == pytest.approx(liked)
        assert "top quarter" in found.reason


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [([1], [1, 1]), ([4], [1, 5]), ([0], None), (np.r_[np.ones(900), np.full(10, 7), 250], None)],
)
def test_clicks_and_counts_are_likes_all_of_them(rated, ratings, scale):
    found = likes_from(rated(ratings, **({} if scale is None else {"scale": scale})))
    assert min(ratings) >= found.rating
    assert "every event" in found.reason


def test_rare_clicks_among_impressions_do_not_make_every_impression_a_like(rated):
    found = likes_from(rated(np.r_[np.zeros(999), 1]))
    assert 0 < found.rating <= 1


def test_the_rule_agrees_with_what_known_sources_say():
    for name in ("movielens-100k", "movietweetings-100k", "goodbooks-10k"):
        source = sources.find(name)
        low, high = source.scale
        top = low + 0.75 * (high - low)
        assert np.ceil(top) == source.positive_rating
