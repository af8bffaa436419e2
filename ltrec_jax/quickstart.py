"""The main job on real data in one call: fetch, prepare, train, evaluate, recommend, and say what to do next."""

import dataclasses
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ltrec_jax import experiment
from ltrec_jax.config import Config
from ltrec_jax.data import columns
from ltrec_jax.evaluation.report import print_report
from ltrec_jax.serve.service import Recommendation


def quickstart(out: Path, config: Config | None = None) -> Path:
    """Train on MovieLens-100K (or what `config` names) into `out`; returns the path of the HTML report.

    Where all ratings are alike (clicks), the schedule solves for top-N lists instead of for ratings.
    """
    config = _suited(config or Config())
    console, started = Console(stderr=False), time.perf_counter()
    print(
        f"Solve for vectors, fine-tune {config.encoder.name}, solve again: on {config.data.dataset}, into {out}",
        file=sys.stderr,
    )
    experiment.train(config, out)
    report, examples = experiment.evaluate_run(out)
    print_report(report, console)
    _, bundle = experiment.open_run(out)
    user = experiment.example_user(bundle)
    console.print(recommendations_table(user, examples))
    page = out / "report.html"
    seconds = time.perf_counter() - started
    console.print(
        f"Finished in {seconds:.0f} s. The report is [bold]{page}[/bold] (open it in a browser).\n"
        f"Try next:  ltrec recommend {out} --user {bundle.users[columns.USER_ID].iloc[0]} -k 10\n"
        f"           ltrec train --print-config > mine.toml   (then change it: ltrec train --config mine.toml)",
        highlight=False,
        soft_wrap=True,
    )
    return page


def _suited(config: Config) -> Config:
    ratings = experiment.load(config.data.dataset).interactions.rating
    if len(ratings) and ratings.min() == ratings.max():
        return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, goal="whole_data"))
    return config


def recommendations_table(user: str, found: list[Recommendation]) -> Table:
    """Recommendations as a terminal table: rank, item, score, popularity group and the liked items it resembles."""
    table = Table(title=f"Recommended for user {user}", title_justify="left", box=box.SIMPLE)
    for name, justify in (("#", "right"), ("item", "left"), ("score", "right"), ("group", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("because you liked", overflow="fold")
    for one in found:
        table.add_row(str(one.rank), one.text, f"{one.score:.2f}", one.group, "\n".join(one.resembles))
    return table
