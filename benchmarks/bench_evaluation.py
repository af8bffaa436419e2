"""How long a report takes: every user and every metric of MovieLens-1M; and that memory never grows to users x items.

    python benchmarks/bench_evaluation.py --json benchmarks/results/bench_evaluation.json

A model of random vectors is evaluated alone, then beside biases and popularity, with intervals, candidate sets, user
groups, text diversity and doubly robust estimates. Compiling (the first call) is told apart. The large world is
synthetic: its score matrix would be 4 GB.
"""

from typing import Any

import numpy as np
import pandas as pd
from harness import arguments, in_child, median_seconds, ran_task, report

ALONE, BESIDE = "alone", "beside two baselines"
RULES = {"random": "random split", "cold_items": "a fifth of the items cold"}
WIDTHS = (64, 384)
LARGE = (20_000, 50_000, 1_000_000)


def measured(rule: str, width: int, repeats: int, world: tuple[int, int, int] | None) -> dict[str, Any]:
    """Seconds of the first call and of later ones, for one split and one width of vectors."""
    from ltrec_jax.baselines import biases
    from ltrec_jax.baselines import popularity as popular
    from ltrec_jax.data import sources, splits
    from ltrec_jax.data.popularity import popularity
    from ltrec_jax.evaluation.report import evaluate
    from ltrec_jax.model.two_tower import Vectors

    dataset = synthetic(*world) if world else sources.load("movielens-1m")
    split = splits.make(dataset, rule, seed=0)
    counts = popularity(split.train.item, dataset.num_items)
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(n, width)).astype(np.float32) / 10 for n in (dataset.num_users, dataset.num_items)]
    model = Vectors(
        3.5, tables[0], np.zeros(dataset.num_users, np.float32), tables[1], np.log1p(counts.counts).astype(np.float32)
    )
    baseline = biases.fit(split.train, dataset.num_users, dataset.num_items)
    sets = {
        ALONE: {"model": model},
        BESIDE: {"model": model, "biases": baseline, "popularity": popular.fit(split.train, dataset.num_items)},
    }
    vectors = rng.normal(size=(dataset.num_items, 384)).astype(np.float16)
    result: dict[str, Any] = {"users": dataset.num_users, "items": dataset.num_items, "test": len(split.test)}
    for name, models in sets.items():

        def work(models: dict[str, Any] = models) -> None:
            evaluate(
                models,
                split,
                counts.masks(),
                counts.counts,
                primary="model",
                positive_rating=4.0,
                imputed_by="biases" if "biases" in models else "model",
                item_vectors=vectors,
            )

        first, _ = median_seconds(work, 1, warmup=0)
        median, every = median_seconds(work, repeats, warmup=0)
        result[name] = {"first_seconds": first, "median_seconds": median, "seconds": every}
    return result


def synthetic(users: int, items: int, events: int) -> Any:
    """Events of a long-tailed catalogue without texts."""
    from ltrec_jax.data.dataset import Dataset, Interactions

    rng = np.random.default_rng(0)
    item = np.minimum(rng.zipf(1.3, events) - 1, items - 1).astype(np.int64)
    pair = np.unique(rng.integers(0, users, events) * items + item)
    return Dataset(
        name="synthetic",
        interactions=Interactions(
            (pair // items).astype(np.int32),
            (pair % items).astype(np.int32),
            rng.integers(1, 6, len(pair)).astype(np.float32),
            np.zeros(len(pair), np.int64),
        ),
        users=pd.DataFrame({"user_id": np.arange(users).astype(str)}),
        items=pd.DataFrame({"item_id": np.arange(items).astype(str)}),
    )


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    given = parser.parse_args()
    if ran_task(given, {"measure": measured}):
        return
    world = (2_000, 1_000, 40_000) if given.quick else None
    repeats = 1 if given.quick else 5
    found = {
        f"{rule}, {width} wide": in_child(__file__, "measure", rule=rule, width=width, repeats=repeats, world=world)
        for rule in RULES
        for width in WIDTHS
    }
    if not given.quick:
        found["large"] = in_child(__file__, "measure", rule="random", width=64, repeats=1, world=LARGE)
    seconds = {name: {kind: run[kind]["median_seconds"] for kind in (ALONE, BESIDE)} for name, run in found.items()}
    headline = {f"evaluation_seconds_{width}": seconds[f"cold_items, {width} wide"][ALONE] for width in WIDTHS}
    headline["evaluation_peak_gib"] = max(run["peak_gib"] for run in found.values())
    rows = [
        (
            f"{name}, {kind}",
            f"{run[kind]['median_seconds']:.2f} s (first, compiling: {run[kind]['first_seconds']:.1f} s); "
            f"peak {run['peak_gib']:.2f} GiB",
        )
        for name, run in found.items()
        for kind in (ALONE, BESIDE)
    ]
    report(given.json, "evaluation", headline, found, rows)


if __name__ == "__main__":
    main()
