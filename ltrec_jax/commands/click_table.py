"""The click-through rates of a served run as a table for the terminal."""

from pathlib import Path

from rich import box
from rich.table import Table

from ltrec_jax.errors import UserError
from ltrec_jax.serve.clicks import ETA, Clicks
from ltrec_jax.serve.journal import FEEDBACK, IMPRESSION, Journal

_ORDER = ("head", "mid", "tail", "new")


def click_table(log: Path) -> Table:
    """Shown, clicked and both rates of each popularity group; a file that is no log is a `UserError`."""
    if not log.is_file():
        raise UserError(f"{log} does not exist. `ltrec serve RUN` keeps its log in RUN/serve.sqlite.")
    journal = Journal(log)
    try:
        groups = Clicks.of(journal.read(IMPRESSION, FEEDBACK)).groups
    finally:
        journal.close()
    table = Table(box=box.SIMPLE_HEAD, title=f"Click-through rates by popularity group ({log})", title_justify="left")
    for name in ("group", "shown", "clicked", "rate", "corrected for places"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for group in sorted(groups, key=_ORDER.index):
        found = groups[group]
        table.add_row(group, f"{found.shown:,}", f"{found.clicks:,}", _share(found.rate), _share(found.corrected))
    table.caption = f"Corrected: clicks weighted by rank^{ETA:g}, as if every place were looked at like the first."
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
