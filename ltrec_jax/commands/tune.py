"""The command that searches settings. It imports what it needs when it runs, so that `--help` does not wait for JAX."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ltrec_jax.commands.runs import chosen_config, names_in


@dataclasses.dataclass(frozen=True)
class Tune:
    """Search the settings of baselines and of our models on validation, with one budget for all.

    Every setting of the configuration (`ltrec train --print-config`) is a flag too. The same command goes on with a
    search that was stopped. The best settings are in --out: `ltrec evaluate RUN --baselines ease,ials --settings
    OUT/baselines.toml`, `ltrec train --config OUT/bayes.toml`. Our models: bayes and gibbs (the solves of ratings),
    whole-data (the solve for lists), schedule (the fine-tuning between solves), gradient.

    Example:  ltrec tune --models itemknn,ease,ials --trials 20 --out runs/tuned
    """

    models: Annotated[str, tyro.conf.arg(help="names with commas between them; a wrong one lists all")]
    out: Annotated[Path, tyro.conf.arg(help="directory of the search")] = Path("runs/tuned")
    config: Annotated[Path | None, tyro.conf.arg(help="TOML file: data, split and encoder")] = None
    trials: Annotated[int, tyro.conf.arg(help="settings tried per model")] = 20
    minutes: Annotated[float | None, tyro.conf.arg(help="no new trial of a model after so long")] = None
    objective: Annotated[
        str, tyro.conf.arg(help="rmse, overall, warm, tail, cold (nDCG@20), sum of these three; default: rmse or sum")
    ] = ""

    def run(self, settings: Sequence[str]) -> None:
        from rich.console import Console

        from ltrec_jax import experiment, parallel, storage
        from ltrec_jax.tuning.tune import trials_table, tune

        parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
        config = chosen_config(self.config, settings, "ltrec tune")
        found = tune(
            experiment.split_of(experiment.load(config.data.dataset), config),
            config,
            names_in(self.models),
            self.out,
            trials=self.trials,
            timeout=None if self.minutes is None else 60.0 * self.minutes,
            objective=self.objective,
        )
        for tuned in found.values():
            Console().print(trials_table(tuned))
        print(f"The best settings are in {self.out}")
