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


def from_goal(config):
    """The same configuration for an objective that ranks: it learns from likes alone."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, objective="bpr"))
