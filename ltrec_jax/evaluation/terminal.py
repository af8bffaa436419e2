"""A report on the terminal: one table per headline metric."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltrec_jax.evaluation.results import BETTER, SYMBOLS, WORSE, Cell, Report, direction, label, legend, number

# Blue and orange can be told apart by colour-blind readers; the symbols say the same without colour.
_STYLES = {BETTER: "blue", WORSE: "dark_orange3"}
# A terminal of 80 columns has no room for it, and it repeats "overall" but for the never-seen items.
_LEFT_TO_THE_PAGE = "warm"


def print_report(report: Report, console: Console) -> None:
    """Print models x groups for the headline metrics, better and worse marked by symbol and colour, and the legend."""
    for metric in report.headlines:
        grid = report.grid(metric)
        title = f"{label(metric)} on {report.dataset}, {report.split} ({direction(metric)})"
        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        table.add_column("model", no_wrap=True)
        shown = [place for place, column in enumerate(grid.columns) if column != _LEFT_TO_THE_PAGE]
        for column, n in ((grid.columns[place], grid.counts[place]) for place in shown):
            table.add_column(Text(f"{column}\nn={n:,}", justify="right"), justify="right", no_wrap=True)
        for name, cells in grid.rows:
            ours = name == report.primary
            table.add_row(
                Text(name, style="bold" if ours else ""), *(_styled(cells[place]) for place in shown), end_section=ours
            )
        console.print(table)
    console.print(Text(legend(report.primary), style="dim"), soft_wrap=True)


def _styled(cell: Cell) -> Text:
    text = Text(number(cell.estimate.value), style="bold" if cell.best else "")
    if cell.verdict:
        text.append(f" {SYMBOLS[cell.verdict]}", style=_STYLES.get(cell.verdict, "dim"))
    return text
