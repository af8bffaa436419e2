"""Search the settings of the models that `bench_quality` compares, by `ltrec tune`'s own search, on validation.

Run once; the best settings of the baselines are committed as `settings/DATASET.toml` and reused, with all trials beside
them as `settings/DATASET-trials.json`. A new search tries the defaults first and the committed settings next, so that
those it finds are never worse than either on validation (with --trials of 2 and more). A stopped search goes on.
`whole-data` is our own solve, encoder frozen; its settings stand in `quality_top_n`, so that of its search only the
trials are written.

    python benchmarks/tune_baselines.py --data movielens-100k --models itemknn,ease,ials --trials 20 --study runs/tune
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import quality_top_n
from harness import code
from quality import ENCODER, TUNED, item_texts_of
from rich.console import Console

from ltrec_jax import storage
from ltrec_jax.baselines import registry
from ltrec_jax.config import Config, EncoderSection, EvaluationConfig
from ltrec_jax.data import sources
from ltrec_jax.errors import UserError
from ltrec_jax.parallel import describe_hardware
from ltrec_jax.tuning.search import Trial, Tuned
from ltrec_jax.tuning.tune import trials_table, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, choices=list(quality_top_n.PROTOCOLS))
    parser.add_argument("--models", required=True, help="names with commas between them")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=None, help="no new trial of a model after so long")
    parser.add_argument("--study", type=Path, required=True, help="directory of the search")
    options = parser.parse_args()
    # Before anything is written: what this changes in the checkout is not what was measured.
    measured = {"hardware": describe_hardware(), "code": code()}
    split = quality_top_n.validation_split(options.data, seed=0)
    protocol = quality_top_n.PROTOCOLS[options.data]
    config = Config(
        encoder=EncoderSection(ENCODER),
        schedule=dataclasses.replace(protocol.schedule, steps="solve"),
        whole_data=protocol.whole_data,
        evaluation=EvaluationConfig(positive_rating=protocol.likes_from),
    )
    texts = item_texts_of(sources.load(options.data))
    chosen, every_trial = TUNED / f"{options.data}.toml", TUNED / f"{options.data}-trials.json"
    # One after the other: a model that is done is written, whatever becomes of the next.
    for name in dict.fromkeys(options.models.split(",")):
        (tuned,) = tune(
            split,
            config,
            [name],
            options.study / options.data,
            trials=options.trials,
            timeout=None if options.minutes is None else 60 * options.minutes,
            objective="sum",
            texts=texts,
            earlier=committed(chosen),
        ).values()
        # Read anew: another process may have searched another model meanwhile.
        if name in registry.BASELINES:
            known = committed(chosen)
            known[name] = registry.read_settings(options.study / options.data / "baselines.toml")[name]
            storage.write_text(chosen, registry.settings_to_toml(dict(sorted(known.items()))))
        recorded = storage.read_json_object(every_trial) if every_trial.is_file() else {}
        recorded[name] = record(tuned) | measured
        storage.write_json(every_trial, dict(sorted(recorded.items())))
        Console(file=sys.stderr, width=160).print(trials_table(tuned))


def committed(path: Path) -> dict[str, Any]:
    """Settings by baseline that a file has; none where there is no file yet."""
    return registry.read_settings(path) if path.is_file() else {}


def record(tuned: Tuned) -> dict[str, Any]:
    """A search as plain values: how many trials, the best value, what they were scored on and by, and each of them.

    Of the split not its lists of items, which its settings and the seed give again.
    """
    scored_on = dict(tuned.about)
    cut = scored_on["split settings"]
    scored_on["split settings"] = {name: value for name, value in cut.items() if not isinstance(value, list)}
    return {
        "count": len(tuned.trials),
        "best": tuned.best.value,
        "best_trial": tuned.best.number,
        "objective": f"{tuned.objective} of nDCG@{quality_top_n.K} on warm, tail and cold items, validation",
        # The protocol's own training part cut once more in the same way: `quality_top_n.validation_split`.
        "scored_on": scored_on,
        "trials": [_plain(trial) for trial in tuned.trials],
    }


def _plain(trial: Trial) -> dict[str, Any]:
    """`seconds` are 0 for values that had been tried before: their figures are taken from then."""
    told = {
        "params": dict(trial.values),
        "value": trial.value,
        "figures": dict(trial.figures),
        "seconds": round(trial.seconds, 3),
        "state": "complete" if trial.value is not None else "failed",
    }
    return told | ({"error": trial.error} if trial.error else {})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
