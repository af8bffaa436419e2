"""The command that sets finished runs side by side: compare. What it needs is imported when it runs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Compare:
    """Score several runs of one split side by side, the first against each other one, with paired 95% intervals.

    Writes report.json and report.html into --out. Baselines that `ltrec evaluate` set beside all of them alike are
    there too.

    Example:  ltrec compare runs/mine runs/frozen --out runs/comparison
    """

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="RUN RUN ...", help="run directories", help_behavior_hint="(two or more)"),
    ]
    out: Annotated[Path, tyro.conf.arg(help="directory of the report")] = Path("runs/comparison")

    def run(self, settings: Sequence[str]) -> None:
        from rich.console import Console

        from ltrec_jax import experiment
        from ltrec_jax.evaluation.report import print_report

        print_report(experiment.compare(self.runs, self.out), Console())
        print(f"The report is {self.out / 'report.html'}")
