import dataclasses
import re

import pytest

from ltrec_jax import config as configuration
from ltrec_jax import plain_settings
from ltrec_jax.config import Config, TrainConfig
from ltrec_jax.errors import UserError


def test_toml_round_trip_keeps_every_field():
    changed = Config(seed=7, train=TrainConfig(epochs=3, learning_rate=1e-4, trainable="top:2"))
    assert configuration.from_toml(plain_settings.to_toml(changed)) == changed


def test_dict_round_trip():
    assert configuration.from_dict(plain_settings.to_dict(Config())) == Config()


def test_every_setting_is_documented_and_stands_in_the_toml():
    text = plain_settings.to_toml(Config())
    for section in [Config(), *(v for v in vars(Config()).values() if dataclasses.is_dataclass(v))]:
        for name, doc in plain_settings.field_docs(type(section)).items():
            if not dataclasses.is_dataclass(getattr(section, name)):
                assert doc
                assert f"\n{name} = " in "\n" + text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('seed = "a"', "seed must be of type int"),
        ("[train]\nepoch = 3", "Did you mean 'train.epochs'"),
        ('[train]\nparallel = "gpu"', "Available: auto, jit, pmap, shard_map"),
        ("[data]\nvalidation = 1.5", "data.validation must be at least 0 and below 1"),
        ("[data]\nvalidation = nan", "data.validation"),
        ("[train]\nlearning_rate = inf", "train.learning_rate must be a finite number"),
        ('[train]\ntrainable = "top:0"', "train.trainable must be"),
        ("[data]\nmax_length = 100", "train.row_length"),
        ("[evaluation]\ncutoffs = []", "evaluation.cutoffs"),
        ("[evaluation]\ncutoffs = [true]", "evaluation.cutoffs"),
        ("train = 3", "train is a table"),
        ("x = [", "not valid TOML"),
        ("[train]\nbatch_items = 0", "train.batch_items must be at least 1"),
        ('[bayes]\nmethod = "mcmc"', "Available: gibbs, vb"),
        ("[bayes]\nsweeps = 0", "bayes.sweeps must be at least 1"),
        ("[bayes]\nsweeps = 40", "bayes.burn_in (40) must be below bayes.sweeps (40)"),
        ("[bayes]\nuser_noise = 0", "bayes.user_noise must be above 0"),
        ("[whole_data]\nlexical_share = 1.0", "whole_data.lexical_share must be at least 0 and below 1"),
        ("[whole_data]\nlexical_rank = 0", "whole_data.lexical_rank must be at least 1"),
        ("[bayes]\nlexical_share = 1.0", "bayes.lexical_share must be at least 0 and below 1"),
        (
            '[bayes]\nlexical_share = 0.2\n[schedule]\ngoal = "whole_data"',
            "bayes.lexical_share is read by solves of ratings alone",
        ),
        ('[bayes]\nlexical_share = 0.2\nblocks = ["text"]', "bayes.blocks leaves out words"),
        ('[bayes]\nblocks = ["words"]', "set bayes.lexical_share above 0"),
        ("[whole_data]\nlexical_share = 0.2", "whole_data.lexical_share is read by solves for lists alone"),
        ("[schedule]\nsolve_again = false", "schedule.solve_again = false is for lists"),
        (
            '[whole_data]\nlexical_share = 0.2\n[schedule]\ngoal = "whole_data"\nsteps = "gradient"',
            "whole_data.lexical_share is read by solves for lists alone",
        ),
    ],
)
def test_bad_settings_are_named(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configuration.from_toml(text)


def test_an_integer_is_taken_where_a_float_is_meant():
    assert configuration.from_toml("[model]\ngate_count = 5").model.gate_count == 5.0
