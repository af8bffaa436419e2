"""Users who have rated nothing, on MovieLens-100K: what their attributes and their profile texts say of their ratings.

    python benchmarks/bench_user_texts.py --json benchmarks/results/bench_user_texts.json

A fifth of the users is cold in the test, which is not looked at, a fifth of the others in validation, whose RMSE is
told. The first model is variational Bayes with item texts and all blocks of `solve.side_information`; what differs are
the users' blocks: neither, age, gender and occupation as columns, the same as a text through the encoder
(`data.user_template`), or both. The second is trained by gradient, with free users and with users at their profile
texts, after the head phase (frozen texts) and after the encoder has learnt from them; its epochs are given, not chosen
on that RMSE. Three seeds of the split.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

import numpy as np
from harness import arguments, report

from ltrec_jax import config as configuration
from ltrec_jax import experiment, parallel, storage
from ltrec_jax.baselines import biases
from ltrec_jax.config import BayesConfig, Config
from ltrec_jax.data.dataset import Interactions, Split
from ltrec_jax.solve import bayes, side_information
from ltrec_jax.train import gradient, phases
from ltrec_jax.train.phases import ENCODER, HEAD
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.tracking import Nowhere
from ltrec_jax.types import Recommender

ATTRIBUTES = ("age", "gender", "occupation")
SHARED = ("text", "popularity", "singular", "history", "year", "genres")
BLOCKS = {
    "free": SHARED,
    "attributes": (*SHARED, *ATTRIBUTES),
    "profile text": (*SHARED, "profile"),
    "attributes and profile text": (*SHARED, *ATTRIBUTES, "profile"),
}

GRADIENT = ("gradient, free", "gradient, profile text")
TRAIN = {"trainable": "top:2", "head_epochs": 30, "epochs": 4}
QUICK = {"trainable": "none", "head_epochs": 1, "epochs": 0}


def rmse(model: Recommender, events: Interactions) -> float:
    """Over the events."""
    scores = np.asarray(model.score_pairs(events.user, events.item), np.float64)
    return float(np.sqrt(np.mean((scores - events.rating) ** 2)))


def by_gradient(split: Split, config: Config, user_template: str) -> dict[str, float]:
    """RMSE on the split's validation part, which training does not see, after each phase."""
    data = dataclasses.replace(config.data, user_template=user_template)
    unseen = dataclasses.replace(split, validation_rows=split.validation_rows[:0])
    problem = load_problem(unseen, dataclasses.replace(config, data=data))
    epochs = {HEAD: config.train.head_epochs, ENCODER: config.train.epochs}
    with tempfile.TemporaryDirectory() as folder:
        finished = gradient.run(problem, epochs, 0, Path(folder), Nowhere())
    return {
        name: rmse(phases.finished_vectors(problem, prepared, outcome.state)[0], split.validation)
        for name, (prepared, outcome) in finished.items()
    }


def main() -> None:
    given = arguments(str(__doc__).splitlines()[0]).parse_args()
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    dataset = experiment.load("movielens-100k")
    settings = BayesConfig(iterations=10 if given.quick else 200)
    train_settings = QUICK if given.quick else TRAIN
    found: dict[str, list[float]] = {name: [] for name in ("biases", *BLOCKS)}
    for seed in range(1 if given.quick else 3):
        data = {"split": "cold_users", "cold_validation": 0.2, "test": 0.0, "validation": 0.0}
        config: Config = configuration.from_dict(
            {"seed": seed, "data": data | {"user_template": dataset.info["user_template"]}}
        )
        problem = load_problem(experiment.split_of(dataset, config), config)
        train, validation = problem.split.train, problem.split.validation
        sizes = (dataset.num_users, dataset.num_items)
        found["biases"].append(rmse(biases.fit(train, *sizes), validation))
        for name, blocks in BLOCKS.items():
            users, items = side_information.of_ratings(
                train.user,
                train.item,
                *sizes,
                text_IxE=problem.features_IxE,
                profile_UxE=problem.profiles,
                item_attributes={column: dataset.items[column] for column in ("year", "genres")},
                user_attributes={column: dataset.users[column] for column in ATTRIBUTES},
                blocks=blocks,
            )
            model = bayes.fit_vb(train.user, train.item, train.rating, users, items, settings=settings)
            found[name].append(rmse(model.vectors, validation))
        learning: Config = configuration.from_dict(
            {"seed": seed, "data": data, "schedule": {"steps": "gradient"}, "train": train_settings}
        )
        for name in GRADIENT:
            template = dataset.info["user_template"] if name.endswith("text") else ""
            for phase, value in by_gradient(problem.split, learning, template).items():
                found.setdefault(f"{name}, {phase}", []).append(value)
    means = {name: statistics.mean(errors) for name, errors in found.items()}
    headline = {f"user_texts_rmse_{name.replace(',', '').replace(' ', '_')}": value for name, value in means.items()}

    def against(name: str) -> str:
        """The free users of the same model and phase."""
        return name.replace("profile text", "free") if name.startswith("gradient") else "free"

    away = {name: np.subtract(errors, found[against(name)]) for name, errors in found.items()}
    rows = [
        (name, f"RMSE {means[name]:.4f}, against free by seed {', '.join(f'{each:+.4f}' for each in away[name])}")
        for name in found
    ]
    report(
        given.json,
        "user texts",
        headline,
        {"rmse": found, "template": dataset.info["user_template"], "train": train_settings},
        rows,
    )


if __name__ == "__main__":
    main()
