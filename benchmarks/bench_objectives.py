"""The objectives on MovieLens-100K, by gradient and by a whole-data solve: what each is worth in lists and in ratings.

    python benchmarks/bench_objectives.py --json benchmarks/results/bench_objectives.json

The encoder is frozen in all of them: by gradient the head learns over its texts (`train.trainable = none`); the exact
solve of the whole-data squared error has its default settings. A random split, ratings of 4 and more as likes. Figures
are those of validation, on which settings and epochs were chosen: nDCG@20 over the whole catalogue, among warm items on
all of them and on tail ones, and RMSE where ratings are predicted. Means over the seeds, of split and training alike.
"""

import statistics
from typing import Any

from harness import arguments, report

from ltrec_jax import config as configuration
from ltrec_jax import experiment, parallel, storage
from ltrec_jax.config import Config
from ltrec_jax.train.fit import fit
from ltrec_jax.tuning.candidates import with_values
from ltrec_jax.tuning.judge import judge

ARMS: dict[str, dict[str, Any]] = {
    "squared error": {},
    "squared error, rho 0.5": {"train.propensity_power": 0.5},
    "softmax": {
        "train.objective": "softmax",
        "model.user_l2": 0.01,
        "model.item_l2": 0.01,
        "model.bias_l2": 0.001,
        "model.embedding_dropout": 0.6,
    },
    "bpr": {
        "train.objective": "bpr",
        "model.user_l2": 0.05,
        "model.item_l2": 0.0004,
        "model.bias_l2": 0.001,
        "model.embedding_dropout": 0.8,
        "train.table_learning_rate": 0.01,
    },
    "whole data": {"schedule.steps": "solve", "schedule.goal": "whole_data"},
}
BASE = {
    "refit": False,
    "data": {"split": "random"},
    "schedule": {"steps": "gradient"},
    "train": {"trainable": "none", "head_epochs": 40},
}
FIGURES = ("overall", "warm", "tail", "rmse")


def main() -> None:
    given = arguments(str(__doc__).splitlines()[0]).parse_args()
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    dataset, seeds = experiment.load("movielens-100k"), range(1 if given.quick else 3)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in seeds:
        base: Config = configuration.from_dict(BASE | {"seed": seed})
        split = experiment.split_of(dataset, base)
        judged = judge(split, 4.0)
        for name, values in ARMS.items():
            config = with_values(base, values | ({"train.head_epochs": 2} if given.quick else {}))
            model = fit(split, config)
            found[name].append(judged.figures(model, name=name, rates=model.predicts_ratings))
    means = {
        name: {part: statistics.mean(run[part] for run in runs) for part in FIGURES if part in runs[0]}
        for name, runs in found.items()
    }
    short = {"squared error, rho 0.5": "squared_error_ips"}
    headline = {
        f"objective_{short.get(name, name.replace(' ', '_'))}_ndcg": figures["overall"]
        for name, figures in means.items()
    }
    headline["objective_squared_error_rmse"] = means["squared error"]["rmse"]
    rows = [
        (name, ", ".join(f"{part} {value:.4f}" for part, value in figures.items())) for name, figures in means.items()
    ]
    report(given.json, "objectives", headline, {"arms": ARMS, "base": BASE, "figures": found}, rows)


if __name__ == "__main__":
    main()
