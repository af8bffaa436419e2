"""Commands that make and judge a run: quickstart, train, evaluate.

What a command needs is imported when it runs, so that `--help` does not wait for JAX.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ltrec_jax import config as configuration
from ltrec_jax import plain_settings
from ltrec_jax.commands.several_processes import ALONE, SeveralProcesses
from ltrec_jax.config import Config, ParallelMode, Steps
from ltrec_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Fine-tune a real BERT on real ratings and read what it did for rare items (minutes, no GPU needed).

    Example:  ltrec quickstart --out runs/first
    """

    out: Annotated[Path | None, tyro.conf.arg(help="run directory to make; default: the next free runs/quickstart")] = (
        None
    )
    data: Annotated[str, tyro.conf.arg(help="known dataset, or a directory made by `ltrec data prepare`")] = ""
    seed: Annotated[int, tyro.conf.arg(help="the one source of randomness")] = 0

    def run(self, settings: Sequence[str]) -> None:
        from ltrec_jax.quickstart import quickstart

        config = dataclasses.replace(Config(), seed=self.seed)
        if self.data:
            data = dataclasses.replace(config.data, dataset=self.data, split="random")
            config = dataclasses.replace(config, data=data)
        quickstart(self.out or _free(Path("runs/quickstart")), config)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train by a configuration file, with flags over it: solve for vectors, fine-tune the encoder, solve again.

    Every setting that --print-config shows is a flag too.

    Example:  ltrec train --config mine.toml --out runs/mine --schedule.epochs 5 --seed 1
    """

    config: Annotated[Path | None, tyro.conf.arg(help="TOML file; absent settings take their defaults")] = None
    out: Annotated[Path, tyro.conf.arg(help="run directory to make")] = Path("runs/train")
    resume: Annotated[bool, tyro.conf.arg(help="go on from the newest checkpoint in --out")] = False
    schedule: Annotated[Steps | None, tyro.conf.arg(help="short for --schedule.steps; gradient: no solves")] = None
    parallel: Annotated[
        ParallelMode | None, tyro.conf.arg(help="short for --train.parallel; auto: pmap on several devices, else jit")
    ] = None
    print_config: Annotated[bool, tyro.conf.arg(help="write the configuration, commented, and stop")] = False
    plan: Annotated[bool, tyro.conf.arg(help="tell what the run will need in memory and time, and stop")] = False
    profile: Annotated[int, tyro.conf.arg(help="trace so many steps, after those that compile, into OUT/profile")] = 0
    together: Annotated[SeveralProcesses, tyro.conf.arg(name="")] = ALONE

    def run(self, settings: Sequence[str]) -> None:
        short = {"--schedule.steps": self.schedule, "--train.parallel": self.parallel}
        flags = [word for name, value in short.items() if value for word in (name, value)]
        chosen = chosen_config(self.config, [*settings, *flags], "ltrec train")
        if self.print_config:
            sys.stdout.write(plain_settings.to_toml(chosen))
            return
        from ltrec_jax import experiment

        if self.plan:
            from rich.console import Console

            from ltrec_jax.commands.plan_table import plan_table

            Console().print(plan_table(experiment.plan(chosen)))
            return
        reports = self.together.connect()
        before = _traces(self.out)
        experiment.train(chosen, self.out, resume=self.resume, profile=self.profile)
        if reports:
            if self.profile:
                print(_about_trace(sorted(_traces(self.out) - before)))
            print(f"The model is {self.out / 'bundle'}. Next: ltrec evaluate {self.out}")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a finished run on its test part and write report.json and report.html into it.

    Example:  ltrec evaluate runs/mine --baselines popularity,ease,text-knn
    """

    run_directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN", help="run directory")]
    baselines: Annotated[
        str, tyro.conf.arg(help="names to compare with, commas between them; a wrong one lists all")
    ] = ""
    settings: Annotated[Path | None, tyro.conf.arg(help="their settings: a baselines.toml of `ltrec tune`")] = None
    log: Annotated[
        Path | None, tyro.conf.arg(help="log of `ltrec serve`: tell its click-through rates instead, and stop")
    ] = None

    def run(self, settings: Sequence[str]) -> None:
        from rich.console import Console

        if self.log is not None:
            from ltrec_jax.commands.click_table import click_table

            Console().print(click_table(self.log))
            return
        from ltrec_jax import experiment
        from ltrec_jax.evaluation.report import print_report

        report, _ = experiment.evaluate_run(self.run_directory, names_in(self.baselines), self.settings)
        print_report(report, Console())
        print(f"The report is {self.run_directory / 'report.html'}")


def _traces(run: Path) -> set[Path]:
    return set((run / "profile").rglob("perfetto_trace.json.gz"))


def _about_trace(made: Sequence[Path]) -> str:
    if made:
        return f"The trace is {made[-1]}: open it at ui.perfetto.dev."
    return (
        "Nothing was traced: the first two steps compile, and no other was made now. Steps made before --resume do not "
        "count."
    )


def chosen_config(path: Path | None, flags: Sequence[str], command: str) -> Config:
    """The settings of a file (None: the defaults) with flags over them."""
    config = _read_config(path)
    return tyro.cli(Config, default=config, args=list(flags), prog=command) if flags else config


def names_in(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _free(path: Path) -> Path:
    """The path itself, or path-2, path-3, ... : the first that does not exist."""
    candidates = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


def _read_config(path: Path | None) -> Config:
    if path is None:
        return Config()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the configuration {path}: {error}.") from error
    return configuration.from_toml(text, str(path))
