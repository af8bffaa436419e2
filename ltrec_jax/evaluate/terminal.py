"""A report on the terminal: one table per headline metric."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltrec_jax.evaluate.results import BETTER, SYMBOLS, WORSE, Cell, Report, label, legend, lower_is_better, number

# Blue and orange can be told apart by colour-blind readers; the symbols say the same without colour.
_STYLES = {BETTER: "blue", WORSE: "dark_orange3"}


def print_report(report: Report, console: Console) -> None:
    """Print models x groups for the headline metrics, better and worse marked by symbol and colour, and the legend."""
    for metric in report.headlines:
        grid = report.grid(metric)
        direction = "lower" if lower_is_better(metric) else "higher"
        title = f"{label(metric)} on {report.dataset}, {report.split} ({direction} is better)"
        table = Table(title=title, title_justify="left")
        table.add_column("model", overflow="fold")
        for column, n in zip(grid.columns, grid.counts, strict=True):
            table.add_column(Text(f"{column}\nn={n:,}", justify="right"), justify="right", no_wrap=True)
        for name, cells in grid.rows:
            ours = name == report.primary
            table.add_row(Text(name, style="bold" if ours else ""), *map(_styled, cells), end_section=ours)
        console.print(table)
    console.print(Text(legend(report.primary), style="dim"), soft_wrap=True)


def _styled(cell: Cell) -> Text:
    text = Text(number(cell.estimate.value), style="bold" if cell.best else "")
    if cell.verdict:
        text.append(f" {SYMBOLS[cell.verdict]}", style=_STYLES.get(cell.verdict, "dim"))
    return text
