"""Where settings are looked for: a range for each field of a model that is worth searching. Plain values only."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Real:
    """A number from low to high; `log`: equal ratios are equally likely."""

    low: float
    high: float
    log: bool = True


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from low to high, both included."""

    low: int
    high: int
    log: bool = True


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[Any, ...]


Range = Real | Whole | OneOf
Space = Mapping[str, Range]

BASELINE_SPACES: Mapping[str, Space] = {
    "random": {},
    "popularity": {},
    "biases": {"user_damping": Real(0.5, 50.0), "item_damping": Real(0.5, 50.0)},
    "itemknn": {"neighbours": Whole(10, 500), "shrink": Real(0.1, 300.0)},
    "ease": {"l2": Real(10.0, 3000.0)},
    "ease-text": {"l2": Real(10.0, 3000.0), "text_weight": Real(1.0, 1000.0)},
    "ials": {
        "width": OneOf((64, 128, 256, 384)),
        "l2": Real(0.001, 0.3),
        "unobserved_weight": Real(0.01, 1.0),
        "map_l2": Real(0.1, 1000.0),
    },
    "bpr": {
        "width": OneOf((32, 64, 128)),
        "learning_rate": Real(0.005, 0.2),
        "l2": Real(0.0001, 0.1),
        "epochs": Whole(20, 200),
    },
    "text-knn": {"center": OneOf((True, False))},
    "tfidf-knn": {"center": OneOf((True, False))},
}
"""Of each baseline, by the names of its settings."""
_RATINGS: Space = {
    "bayes.factor_sd": Real(0.1, 2.0),
    "bayes.bias_sd": Real(0.1, 1.5),
    "bayes.user_noise": Real(1.0, 50.0),
    "bayes.item_noise": Real(1.0, 100.0),
    "bayes.lexical_share": Real(0.0, 0.5, log=False),
}
OWN_SPACES: Mapping[str, Space] = {
    "gradient": {
        "model.embedding_dropout": Real(0.0, 0.8, log=False),
        "model.user_l2": Real(0.1, 3.0),
        "model.item_l2": Real(0.0005, 0.1),
        "model.gate_count": Real(2.0, 100.0),
        "train.head_learning_rate": Real(0.001, 0.02),
        "train.table_learning_rate": Real(0.005, 0.05),
        "train.learning_rate": Real(1e-5, 2e-4),
    },
    "whole-data": {
        "whole_data.anchor_scale": Real(0.1, 1.5),
        "whole_data.unobserved_weight": Real(0.02, 0.5),
        "whole_data.l2": Real(0.003, 0.3),
        "whole_data.propensity_power": Real(0.0, 0.5, log=False),
        "whole_data.alternations": Whole(1, 12),
        "whole_data.cold": OneOf(("text_map", "ridge", "kernel_ridge", "neighbours")),
        "whole_data.cold_l2": Real(3.0, 1000.0),
        "whole_data.lexical_share": Real(0.0, 0.5, log=False),
    },
    "bayes": {
        "bayes.factors": Whole(4, 32),
        "bayes.iterations": Whole(50, 400),
        **_RATINGS,
    },
    "gibbs": {
        "bayes.gibbs_factors": Whole(8, 48),
        "bayes.sweeps": Whole(100, 500),
        **_RATINGS,
    },
    "schedule": {
        "schedule.learning_rate": Real(1e-5, 3e-4),
        "train.learning_rate": Real(1e-5, 2e-4),
        "schedule.epochs": Whole(1, 16),
        "schedule.trainable": OneOf(("top:1", "top:2", "top:3", "all")),
        "whole_data.cold_l2": Real(3.0, 1000.0),
    },
}
"""Of our own models, by the names of settings of the configuration: gradient training, the solve for lists, the two
solves of ratings, and the fine-tuning of the whole schedule, whose solves keep the settings they were given. Of these
names a search leaves out what its configuration does not read."""
# A share of words belongs to one goal, and is refused under others.
_NO_WORDS_OF_RATINGS: Mapping[str, Any] = {"bayes.lexical_share": 0.0, "bayes.blocks": ()}
_NO_WORDS_OF_LISTS: Mapping[str, Any] = {"whole_data.lexical_share": 0.0}
_SOLVE_RATINGS = {"schedule.steps": "solve", "schedule.goal": "explicit", **_NO_WORDS_OF_LISTS}
OWN_SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "gradient": {"schedule.steps": "gradient", **_NO_WORDS_OF_RATINGS, **_NO_WORDS_OF_LISTS},
    "whole-data": {"schedule.steps": "solve", "schedule.goal": "whole_data", **_NO_WORDS_OF_RATINGS},
    "bayes": {**_SOLVE_RATINGS, "bayes.method": "vb"},
    "gibbs": {**_SOLVE_RATINGS, "bayes.method": "gibbs"},
    "schedule": {"schedule.steps": "solve_tune_solve"},
}
"""What makes a configuration train each of them."""
