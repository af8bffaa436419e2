"""Data and splits as configurations name them."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax import experiment
from ltrec_jax.baselines import popularity
from ltrec_jax.config import Config
from ltrec_jax.data import splits
from ltrec_jax.errors import UserError
from ltrec_jax.evaluation import report
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.text import corpus
from ltrec_jax.train.problem import load_problem


@pytest.mark.parametrize("rule", sorted(splits.RULES))
def test_a_configuration_can_ask_for_every_rule(ml100k, rule):
    data = dataclasses.replace(Config().data, split=rule, cold_share=0.1, test=0.3)
    split = experiment.split_of(ml100k, Config(data=data, seed=3))
    assert split.check().ok
    assert len(split.train_rows) > 0
    assert len(split.test_rows) > 0


def test_settings_reach_the_rule(ml100k):
    def cold(**settings):
        data = dataclasses.replace(Config().data, split="cold_items", **settings)
        return experiment.split_of(ml100k, Config(data=data, seed=1)).settings

    rated = len(np.unique(ml100k.interactions.item))
    assert len(cold(cold_share=0.1)["cold_items"]) == round(0.1 * rated)
    assert len(cold(cold_share=0.4)["cold_items"]) == round(0.4 * rated)
    assert not cold()["validation_cold_items"]
    assert cold(cold_validation=0.1)["validation_cold_items"]


def test_an_unknown_rule_lists_what_exists(ml100k):
    data = dataclasses.replace(Config().data, split="temporel")
    with pytest.raises(UserError, match="temporal"):
        experiment.split_of(ml100k, Config(data=data))


def test_what_a_like_is_is_the_same_for_all_where_the_dataset_does_not_say(
    small_dataset, small_config, cache, monkeypatch
):
    info = {name: value for name, value in small_dataset.info.items() if name != "positive_rating"}
    split = splits.random(dataclasses.replace(small_dataset, info=info), test=0.2, validation=0.1, seed=0)
    ranker = popularity.fit(split.train, split.dataset.num_items)
    learnt_from = []
    monkeypatch.setattr(experiment.registry, "fit_all", lambda names, train, settings: learnt_from.append(train))
    experiment.fit_baselines(ranker, split, small_config, ["itemknn"])
    liked = (np.asarray(split.train.rating) >= 4).sum()
    assert learnt_from[0].likes.nnz == liked < len(split.train)
    assert len(load_problem(split, from_goal(small_config), dry=True).learnt_rows) == liked
    found = experiment.evaluate(ranker, split, small_config)
    assert found.protocol["positive_rating"] == 4.0
    assert "top quarter of the scale 1 to 5" in found.protocol["positive_rating_is"]
    page = report.write_report(found, cache / "report").read_text()
    assert "a like is a rating of at least 4" in page
    asked = dataclasses.replace(small_config.evaluation, positive_rating=2.0)
    assert (
        experiment.evaluate(ranker, split, dataclasses.replace(small_config, evaluation=asked)).protocol[
            "positive_rating"
        ]
        == 2.0
    )


@pytest.mark.parametrize("rates", [True, False])
def test_the_dial_takes_from_popular_items_alone_and_from_the_more_popular_the_more(
    small_dataset, small_config, monkeypatch, rates
):
    """Also where <p, q> < 0: there a shorter item vector would raise the score of a popular item."""
    split = splits.random(small_dataset, test=0.2, validation=0.1, seed=0)
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(120, 3)).astype(np.float32), rng.normal(size=(90, 3)).astype(np.float32)
    if not rates:
        users, items = np.abs(users), np.abs(items)
    none = np.zeros(120, np.float32), np.zeros(90, np.float32)
    model = Vectors(3.0 if rates else 0.0, users, none[0], items, none[1], predicts_ratings=rates)
    given = {}
    evaluated = report.evaluate
    monkeypatch.setattr(
        experiment.report,
        "evaluate",
        lambda *models, dials, **options: given.update(dials) or evaluated(*models, dials=dials, **options),
    )
    found = experiment.evaluate(model, split, small_config)
    assert ("standard deviations" if rates else "multiplied") in found.protocol["dial"]
    (places,) = given.values()
    counts = np.bincount(split.train.item, minlength=90)
    before = np.asarray(model.score(np.arange(120)))
    np.testing.assert_array_equal(np.asarray(places[0.0].score(np.arange(120))), before)
    moved = before - np.asarray(places[0.2].score(np.arange(120)))
    np.testing.assert_allclose(moved[:, counts <= 1], 0, atol=1e-5)
    assert moved[:, counts > 1].min() > 0
    if rates:
        order = np.argsort(counts)
        assert np.diff(moved[:, order], axis=1).min() > -1e-5


def from_goal(config):
    """The same configuration for an objective that ranks: it learns from likes alone."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, objective="bpr"))


def test_texts_are_those_of_the_dataset_by_name_and_by_place(ml100k, monkeypatch):
    whole = corpus.of(ml100k)
    wanted = list(whole.chunks())
    monkeypatch.setattr(experiment.Dataset, "load", None)
    for name in ("MovieLens-100k", ml100k.path):
        found = experiment.load_texts(name)
        assert (found.name, found.fingerprint, found.count) == (whole.name, whole.fingerprint, whole.count)
        assert list(found.chunks()) == wanted
    with pytest.raises(UserError, match="not a dataset directory"):
        experiment.load_texts("no/such")
    with pytest.raises(UserError, match="Did you mean 'movielens-100k'"):
        experiment.load_texts("movielens-100")
