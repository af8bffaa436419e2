"""What can be tuned: every baseline and our own models, each as a space, defaults, and a way to fit."""

import dataclasses
import functools
import json
import operator
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import config as configuration
from ltrec_jax import plain_settings
from ltrec_jax.baselines import registry
from ltrec_jax.baselines.item_texts import ItemTexts
from ltrec_jax.baselines.scoring import Factors
from ltrec_jax.baselines.training import Training, training
from ltrec_jax.config import Config
from ltrec_jax.data.dataset import Split
from ltrec_jax.errors import UserError, unknown_name
from ltrec_jax.solve import anchored_model
from ltrec_jax.train import schedule
from ltrec_jax.train.fit import fit as fit_by_gradient
from ltrec_jax.train.problem import Problem, load_problem
from ltrec_jax.train.tracking import Nowhere
from ltrec_jax.tuning.spaces import BASELINE_SPACES, OWN_SCHEDULES, OWN_SPACES, Space
from ltrec_jax.types import Recommender

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model to tune. `fit(values)` learns from the training part alone.

    `defaults` are the values that are tried first, `earlier` (those that were chosen before) are next; `rates`: it
    predicts ratings. `settings(values)`: all settings, those of a baseline or a whole `Config` for a model of our own.
    `about`: what else its trials depend on, as plain values; a search that goes on must have the same.
    """

    name: str
    space: Space
    defaults: Values
    rates: bool
    fit: Callable[[Values], Recommender]
    settings: Callable[[Values], Any]
    about: Values = dataclasses.field(default_factory=dict)
    earlier: Values | None = None


def names() -> list[str]:
    """Every model that can be tuned."""
    return [*registry.BASELINES, *OWN_SPACES]


def candidates(
    wanted: Iterable[str], split: Split, config: Config, positive_rating: float, texts: ItemTexts
) -> list[Candidate]:
    """The models of these names on a split whose test part is out of their sight. Unknown names are a `UserError`."""
    hidden = dataclasses.replace(split, test_rows=np.zeros(0, np.int64))
    train = training(hidden, positive_rating, texts, config.seed)
    loaded = functools.cache(lambda: load_problem(hidden, config))
    found = []
    for name in dict.fromkeys(wanted):
        if name in registry.BASELINES:
            found.append(_baseline(name, train))
        elif name in OWN_SPACES:
            found.append(_own(name, hidden, train, loaded, config))
        else:
            raise unknown_name("model to tune", name, names())
    if not found:
        raise UserError(f"Name at least one model to tune: {', '.join(names())}.")
    return found


def after(candidate: Candidate, settings: Any) -> Candidate:
    """The candidate with settings chosen before as its `earlier` values: those of a baseline, or a whole `Config`.

    Only fields of the space are taken; a search leaves the others at their defaults.
    """
    return dataclasses.replace(
        candidate, earlier={field: operator.attrgetter(field)(settings) for field in candidate.space}
    )


def with_values(config: Config, values: Values) -> Config:
    """The configuration with values set by dotted names ("model.user_l2")."""
    nested = plain_settings.to_dict(config)
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        (nested[section] if section else nested)[field] = value
    return configuration.from_dict(nested)


def _baseline(name: str, train: Training) -> Candidate:
    baseline, space = registry.find(name), BASELINE_SPACES[name]
    default = baseline.settings()
    return Candidate(
        name=name,
        space=space,
        defaults={field: getattr(default, field) for field in space},
        rates=baseline.rates,
        fit=lambda values: registry.fit(name, train, dataclasses.replace(default, **values)),
        settings=lambda values: dataclasses.replace(default, **values),
    )


def _own(name: str, split: Split, train: Training, loaded: Callable[[], Problem], config: Config) -> Candidate:
    config = with_values(config, OWN_SCHEDULES[name])
    rates_by_solve = config.schedule.goal == "explicit"
    fit, rates = {
        "gradient": (functools.partial(_gradient, split), config.train.predicts_ratings),
        "whole-data": (functools.partial(_whole_data, train), False),
        "bayes": (functools.partial(_scheduled, loaded), rates_by_solve),
        "gibbs": (functools.partial(_scheduled, loaded), rates_by_solve),
        "schedule": (functools.partial(_scheduled, loaded), rates_by_solve),
    }[name]
    space = {field: allowed for field, allowed in OWN_SPACES[name].items() if _is_read(field, config)}
    return Candidate(
        name=name,
        space=space,
        defaults={field: operator.attrgetter(field)(config) for field in space},
        rates=rates,
        fit=lambda values: fit(with_values(config, values)),
        settings=lambda values: with_values(config, values),
        about={"configuration": json.loads(json.dumps(plain_settings.to_dict(config)))},
    )


def _is_read(field: str, config: Config) -> bool:
    """Whether training by this configuration reads a setting of a space at all."""
    schedule = config.schedule
    if schedule.steps == "gradient":
        return True
    if field in ("schedule.learning_rate", "train.learning_rate"):
        return (schedule.tune_on == "items") == (field == "schedule.learning_rate")
    return schedule.goal == "whole_data" or not field.startswith("whole_data.")


def _gradient(split: Split, config: Config) -> Recommender:
    """Early stopping looks at validation, as it does in `ltrec train`; nothing is refitted."""
    return fit_by_gradient(split, dataclasses.replace(config, refit=False))


def _whole_data(train: Training, config: Config) -> Recommender:
    likes, texts, settings = train.likes.tocoo(), train.need_texts("whole-data"), config.whole_data
    anchors = anchored_model.text_anchors(texts.vectors, settings, texts.words_for(settings))
    model = anchored_model.fit(likes.row, likes.col, anchors, num_users=train.num_users, settings=config.whole_data)
    return Factors(model.user_vectors, model.item_vectors)


def _scheduled(loaded: Callable[[], Problem], config: Config) -> Recommender:
    """The schedule as `ltrec train` runs it without a refit; texts are read and encoded once for all trials."""
    with tempfile.TemporaryDirectory(prefix="ltrec-") as checkpoints:
        return schedule.run(loaded().under(config), Path(checkpoints), Nowhere()).solved.vectors
