"""Users who have rated nothing, on MovieLens-100K: what their attributes and their profile texts say of their ratings.

    python benchmarks/bench_user_texts.py --json benchmarks/results/bench_user_texts.json

A fifth of the users is cold in the test, which is not looked at, a fifth of the others in validation, whose RMSE is
told. The model is variational Bayes with item texts and all blocks of `solve.side_information`; what differs are the
users' blocks: neither, age, gender and occupation as columns, the same as a text through the encoder
(`data.user_template`), or both. Three seeds of the split.
"""

import statistics

import numpy as np
from harness import arguments, report

from ltrec_jax import config as configuration
from ltrec_jax import experiment, parallel, storage
from ltrec_jax.baselines import biases
from ltrec_jax.config import BayesConfig, Config
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.solve import bayes, side_information
from ltrec_jax.train.problem import load_problem
from ltrec_jax.types import Recommender

ATTRIBUTES = ("age", "gender", "occupation")
SHARED = ("text", "popularity", "singular", "history", "year", "genres")
BLOCKS = {
    "free": SHARED,
    "attributes": (*SHARED, *ATTRIBUTES),
    "profile text": (*SHARED, "profile"),
    "attributes and profile text": (*SHARED, *ATTRIBUTES, "profile"),
}


def rmse(model: Recommender, events: Interactions) -> float:
    """Over the events."""
    scores = np.asarray(model.score_pairs(events.user, events.item), np.float64)
    return float(np.sqrt(np.mean((scores - events.rating) ** 2)))


def main() -> None:
    given = arguments(str(__doc__).splitlines()[0]).parse_args()
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    dataset = experiment.load("movielens-100k")
    settings = BayesConfig(iterations=10 if given.quick else 200)
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
                profile_UxE=problem.profiles_UxE,
                item_attributes={column: dataset.items[column] for column in ("year", "genres")},
                user_attributes={column: dataset.users[column] for column in ATTRIBUTES},
                blocks=blocks,
            )
            model = bayes.fit_vb(train.user, train.item, train.rating, users, items, settings=settings)
            found[name].append(rmse(model.vectors, validation))
    means = {name: statistics.mean(errors) for name, errors in found.items()}
    headline = {f"user_texts_rmse_{name.replace(' ', '_')}": value for name, value in means.items()}
    away = {name: np.subtract(errors, found["free"]) for name, errors in found.items()}
    rows = [
        (name, f"RMSE {means[name]:.4f}, against free by seed {', '.join(f'{each:+.4f}' for each in away[name])}")
        for name in found
    ]
    report(given.json, "user texts", headline, {"rmse": found, "template": dataset.info["user_template"]}, rows)


if __name__ == "__main__":
    main()
