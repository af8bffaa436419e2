"""Data and splits as configurations name them."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax import experiment
from ltrec_jax.config import Config
from ltrec_jax.data import splits
from ltrec_jax.errors import UserError


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
