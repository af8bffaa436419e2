"""Data and splits as configurations name them."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax import experiment
from ltrec_jax.config import Config
from ltrec_jax.data import splits
from ltrec_jax.errors import UserError
from ltrec_jax.text import corpus


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
