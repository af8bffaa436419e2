"""The dials of a model solved for lists: what is served at a place is what the report measures there."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax import experiment
from ltrec_jax.commands.serving import Recommend
from ltrec_jax.errors import UserError
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.serve.placing import Placed
from ltrec_jax.serve.service import MOST_COLD_GAIN, NEW, Query, Service

EVERY = 1000


@pytest.fixture(scope="module")
def lists(bundle):
    """The small bundle with vectors whose products rank, mostly positive as those of a solve for lists."""
    rng = np.random.default_rng(0)
    p, q = ((0.3 + rng.normal(size=(size, 8))).astype(np.float32) for size in (bundle.num_users, bundle.num_items))
    zeros_U, zeros_I = np.zeros(len(p), np.float32), np.zeros(len(q), np.float32)
    return dataclasses.replace(bundle, vectors=Vectors(0.0, p, zeros_U, q, zeros_I, predicts_ratings=False))


@pytest.fixture(scope="module")
def ranking(lists):
    service = Service(lists)
    yield service
    service.close()


def one(service, **query):
    return service.recommend([Query(**query)])[0]


def ids(answer):
    return [found.item_id for found in answer]


@pytest.fixture(scope="module")
def reported(lists, small_split):
    """The models that the report measures, by place of the dial."""
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.report, "evaluate", lambda *_, dials, **__: told.update(dials))
        experiment.evaluate(lists, small_split, lists.config)
    (places,) = told.values()
    return places


@pytest.mark.parametrize("place", [0.05, 0.2, 0.3])
def test_the_list_at_a_place_of_the_dial_is_the_reports(lists, ranking, reported, place):
    """The whole ranking, not a choice among the first by score; near ties may change places."""
    turned = reported[place]
    for user in (3, 7, 50):
        seen, _ = lists.history.of(user)
        scores = np.array(turned.score(np.array([user])))[0]
        scores[seen] = -np.inf
        served = [int(item[1:]) for item in ids(one(ranking, user=f"u{user}", k=EVERY, tail=place))]
        assert sorted(served) == sorted(np.flatnonzero(scores > -np.inf))
        assert np.all(np.diff(scores[served]) <= 1e-5)
        assert ids(one(ranking, user=f"u{user}", k=5, tail=place)) == [f"i{item}" for item in served[:5]]
    assert served != [int(item[1:]) for item in ids(one(ranking, user="u50", k=EVERY))]


def test_gain_multiplies_the_scores_of_items_without_events(lists, ranking):
    plain = one(ranking, user="u7", k=EVERY)
    assert one(ranking, user="u7", k=EVERY, cold_gain=1.0) == plain
    by_gain = {gain: one(ranking, user="u7", k=EVERY, cold_gain=gain) for gain in (0.0, 1.5, MOST_COLD_GAIN)}
    for gain, answer in by_gain.items():
        values = np.array([found.score * (gain if found.group == NEW else 1.0) for found in answer])
        assert np.all(np.diff(values) <= 1e-5)
        told, scores = ({f.item_id: f.score for f in each} for each in (answer, plain))
        assert told == pytest.approx(scores, abs=1e-5)
        for found in answer[:5]:
            assert found.bias + found.from_text + found.from_behaviour == pytest.approx(found.score, abs=2e-3)
    best = {gain: [found.group for found in answer[:10]].count(NEW) for gain, answer in by_gain.items()}
    assert best[0.0] == 0 < best[MOST_COLD_GAIN]
    warm, same = ([f.item_id for f in answer if f.group != NEW] for answer in (by_gain[1.5], plain))
    assert warm == same


def test_later_items_are_turned_too(lists):
    """A new one counts as without events; a changed one keeps its events."""
    service = Service(lists)
    try:
        p = lists.vectors.user_vectors[7]
        here = Placed(np.zeros((1, 16), np.float32), (p / (p @ p))[None, :], np.zeros(1, np.float32), 0)
        service.put_item("fresh", "the comet", placed=here)
        old = int(np.argmax(lists.counts))
        service.put_item(f"i{old}", "the comet", placed=here)
        plain, turned = (
            {f.item_id: rank for rank, f in enumerate(one(service, user="u7", k=EVERY, show_seen=True, **dials))}
            for dials in ({}, {"tail": 1.0, "cold_gain": 10.0})
        )
        assert turned["fresh"] < plain["fresh"]
        order = service.items.dial_factors(lists.num_items + 2, 0.5, 2.0)
        np.testing.assert_allclose(order[-2:], [2.0, lists.counts[old] ** -0.5], rtol=1e-6)
    finally:
        service.close()


def test_the_dials_go_together_with_diversity(ranking):
    dialled = one(ranking, user="u7", k=10, cold_gain=3.0)
    assert ids(one(ranking, user="u7", k=10, cold_gain=3.0, diversity=0.8)) != ids(dialled)
    assert ids(one(ranking, user="u7", k=1, cold_gain=3.0, diversity=0.8)) == ids(dialled)[:1]


@pytest.mark.parametrize("gain", [-0.1, MOST_COLD_GAIN + 1, float("nan"), float("inf")])
def test_a_gain_out_of_bounds_is_refused(ranking, gain):
    with pytest.raises(UserError, match=r"cold_gain must lie in 0\.\.10"):
        one(ranking, user="u7", cold_gain=gain)


def test_ratings_have_no_such_gain(service, run_directory, tmp_path):
    assert not service.has_cold_gain
    with pytest.raises(UserError, match="leave cold_gain at 1"):
        one(service, user="u7", cold_gain=1.2)
    with pytest.raises(UserError, match="leave cold_gain at 1"):
        Recommend(run_directory, user="u7", cold_gain=1.2).run([])
    with pytest.raises(UserError, match="--cold-gain has no place"):
        Recommend(run_directory, all_users=True, out=tmp_path / "all.parquet", cold_gain=2.0).run([])


def test_scores_are_products_alone_where_nothing_else_is_in_them(lists, bundle):
    vectors = lists.vectors
    assert vectors.only_products
    assert not bundle.vectors.only_products
    assert not dataclasses.replace(vectors, predicts_ratings=True).only_products
    for name in ("user_biases", "item_biases"):
        assert not dataclasses.replace(vectors, **{name: getattr(vectors, name) + 1}).only_products
