"""A described dataset on the terminal and as one page that needs nothing else.

Out of scope: counting (`describe`), the pictures (`describe_plots`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltrec_jax import page, storage
from ltrec_jax.data.describe import Description
from ltrec_jax.data.text_lengths import Spread

if TYPE_CHECKING:
    from rich.console import Console


def print_description(description: Description, console: "Console") -> None:
    """Print the counts, the popularity groups, the texts and the split, within 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE)
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)

    for title, heads, rows in tables(description):
        show(title, heads, rows)


def tables(description: Description) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, column heads, rows) of every table, as text: the terminal and the page show the same."""
    one = description
    per_user, per_item = one.per_user, one.per_item
    overview = [
        ["users", f"{one.users:,}"],
        ["items", f"{one.items:,}"],
        ["events", f"{one.events:,}"],
        ["density", f"{one.density:.3%}"],
        ["events per user, median (most)", f"{per_user.median:,.0f} ({per_user.largest:,.0f})"],
        ["events per item, median (most)", f"{per_item.median:,.0f} ({per_item.largest:,.0f})"],
        ["cold items", f"{one.groups['cold'].items:,} ({one.cold_share:.1%})"],
        ["Gini of popularity", f"{one.gini:.3f}"],
        ["power-law exponent of counts", f"{one.exponent:.2f}" if one.exponent else "–"],
    ]
    if one.times is not None:
        for name, edge in (("first event", one.times.edges[0]), ("last event", one.times.edges[-1])):
            overview.append([name, str(np.datetime64(int(edge), "s").astype("datetime64[D]"))])
    found = [(one.name, ["", ""], overview)]
    groups = [
        [name, f"{group.items:,}", f"{group.share_of_items:.1%}", f"{group.events:,}", f"{group.share_of_events:.1%}"]
        for name, group in one.groups.items()
    ]
    found.append((f"Popularity groups, by {one.counted_on}", ["group", "items", "share", "events", "share"], groups))
    texts = [[text.name, f"{text.missing:,}", *_lengths(text.characters), *_lengths(text.words)] for text in one.texts]
    heads = ["column", "missing", "characters", "95%", "most", "words", "95%", "most"]
    if texts:
        found.append(("Texts of the items (median length)", heads, texts))
    parts = [
        [name, f"{part.events:,}", f"{part.users:,}", f"{part.items:,}", f"{part.unseen_items:,}"]
        for name, part in one.parts.items()
    ]
    if parts:
        found.append(("Split", ["part", "events", "users", "items", "not in training"], parts))
    return found


def _lengths(spread: Spread) -> list[str]:
    return [f"{value:,.0f}" for value in (spread.median, spread.p95, spread.largest)]


def write_page(description: Description, path: Path) -> None:
    """Write one HTML page that needs nothing else: the tables, the pictures and examples of items."""
    from markupsafe import Markup

    from ltrec_jax.data import describe_plots

    values = {
        "description": description,
        "tables": tables(description),
        # Our own SVG: text inside it has been escaped by matplotlib.
        "pictures": [(title, Markup(picture)) for title, picture in describe_plots.pictures(description)],
        "facts": dict(page.flattened(description.info)),
    }
    storage.write_text(Path(path), page.render("ltrec_jax.data", "describe.html.j2", values, {}))
