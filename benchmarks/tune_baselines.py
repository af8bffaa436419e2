"""Search the settings of the baselines that `bench_quality` compares with, by `ltrec tune`'s own search, on validation.

Run once; the best settings are committed as `settings/DATASET.toml` and reused. A stopped search goes on.

    python benchmarks/tune_baselines.py --data movielens-100k --models itemknn,ease,ials --trials 20 --study runs/tune
"""

import argparse
import sys
from pathlib import Path

import quality_top_n
from quality import TUNED, item_texts_of
from rich.console import Console

from ltrec_jax import storage
from ltrec_jax.baselines import registry
from ltrec_jax.config import Config, EvaluationConfig
from ltrec_jax.data import sources
from ltrec_jax.errors import UserError
from ltrec_jax.tuning.tune import trials_table, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, choices=list(quality_top_n.PROTOCOLS))
    parser.add_argument("--models", required=True, help="names with commas between them")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=None, help="no new trial of a model after so long")
    parser.add_argument("--study", type=Path, required=True, help="directory of the search")
    options = parser.parse_args()
    split = quality_top_n.validation_split(options.data, seed=0)
    likes_from = quality_top_n.PROTOCOLS[options.data].likes_from
    found = tune(
        split,
        Config(evaluation=EvaluationConfig(positive_rating=likes_from)),
        options.models.split(","),
        options.study / options.data,
        trials=options.trials,
        timeout=None if options.minutes is None else 60 * options.minutes,
        objective="sum",
        texts=item_texts_of(sources.load(options.data)),
    )
    place = TUNED / f"{options.data}.toml"
    known = registry.read_settings(place) if place.is_file() else {}
    known |= registry.read_settings(options.study / options.data / "baselines.toml")
    storage.write_text(place, registry.settings_to_toml(dict(sorted(known.items()))))
    for tuned in found.values():
        Console(file=sys.stderr, width=160).print(trials_table(tuned))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
