"""A report on the terminal: one table per headline metric."""

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltrec_jax.evaluation.results import (
    AMONG,
    BETTER,
    SUM,
    SUMMED,
    SYMBOLS,
    WORSE,
    Cell,
    Grid,
    Report,
    direction,
    label,
    legend,
    number,
)

# Blue and orange can be told apart by colour-blind readers; the symbols say the same without colour.
_STYLES = {BETTER: "blue", WORSE: "dark_orange3"}
# A terminal of 80 columns has no room for it, and it repeats "overall" but for the never-seen items.
_LEFT_TO_THE_PAGE = "warm"


def print_report(report: Report, console: Console) -> None:
    """Print models x groups for the headline metrics, better and worse marked by symbol and colour, and the legend.

    Where warm and cold items were also ranked among themselves, a second table per metric shows that.
    """
    for metric in report.headlines:
        title = f"{label(metric)} on {report.dataset}, {report.split} ({direction(metric)})"
        console.print(_table(report.grid(metric), title, report.primary, lambda column: column != _LEFT_TO_THE_PAGE))
        among = report.among_grid(metric)
        if SUM in among.columns:
            title = f"{label(metric)}, warm and cold items ranked apart"
            console.print(_table(among, title, report.primary, lambda column: column in (*SUMMED, SUM)))
    console.print(Text(f"{legend(report.primary)} In rankings {report.likes_are}.", style="dim"), soft_wrap=True)


def _table(grid: Grid, title: str, primary: str, shows: Callable[[str], bool]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("model", no_wrap=True)
    shown = [place for place, column in enumerate(grid.columns) if shows(column)]
    for place in shown:
        heading = f"{grid.columns[place].partition(AMONG)[0]}\nn={grid.counts[place]:,}"
        table.add_column(Text(heading, justify="right"), justify="right", no_wrap=True)
    for name, cells in grid.rows:
        ours = name == primary
        table.add_row(
            Text(name, style="bold" if ours else ""), *(_styled(cells[place]) for place in shown), end_section=ours
        )
    return table


def _styled(cell: Cell) -> Text:
    text = Text(number(cell.estimate.value), style="bold" if cell.best else "")
    if cell.verdict:
        text.append(f" {SYMBOLS[cell.verdict]}", style=_STYLES.get(cell.verdict, "dim"))
    return text
