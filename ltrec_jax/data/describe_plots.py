"""The pictures of a described dataset. Out of scope: counting (`describe`), how a figure becomes SVG (`page`)."""

from typing import TYPE_CHECKING

import numpy as np

from ltrec_jax import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from ltrec_jax.data.describe import Description, Histogram

_BLUE, _ORANGE, _GREEN = page.COLOURS[:3]
_GROUPS = ("head", "mid", "tail")
_MOST_TEXTS = 6
_LAST_YEAR = 253_370_764_800  # 9999; milliseconds taken for seconds lie beyond, and matplotlib stops here


def pictures(description: "Description") -> list[tuple[str, str]]:
    """(caption, SVG) of everything there is data for."""
    drawn = [long_tail(description), lorenz(description), group_sizes(description), ratings(description)]
    drawn += [over_time(description), text_lengths(description), split_sizes(description)]
    return [(caption, picture) for caption, picture in drawn if picture]


def long_tail(description: "Description") -> tuple[str, str]:
    """Events of the item against its rank, both logarithmic, with the groups by colour."""
    ranks, counts = description.rank_frequency

    def draw(axes: "Axes") -> None:
        axes.loglog(ranks, counts, color=page.INK, alpha=0.5, linewidth=1.0)
        first = 0.5
        for name, colour in zip(_GROUPS, page.COLOURS, strict=False):
            last = first + description.groups[name].items
            inside = (ranks > first) & (ranks <= last)
            if inside.any():
                axes.loglog(ranks[inside], counts[inside], "o", color=colour, markersize=3.5, label=name)
            first = last
        for axis in (axes.xaxis, axes.yaxis):
            _plain_numbers(axis)
        axes.set_xlabel("rank of the item")
        axes.set_ylabel("events of the item")
        axes.legend(loc="lower left")

    caption = "Long tail: how many events the most popular item has, the second, and so on."
    return caption, page.svg(draw, "events by rank of the item") if len(ranks) else ""


def lorenz(description: "Description") -> tuple[str, str]:
    """Share of the events that the least popular share of the items holds."""
    share_of_items, share_of_events = description.lorenz

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], ":", color=page.INK, alpha=0.5, linewidth=1.2, label="all items equal")
        axes.plot(share_of_items, share_of_events, color=_BLUE, label=f"Gini {description.gini:.3f}")
        axes.fill_between(share_of_items, share_of_events, color=_BLUE, alpha=0.12, linewidth=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:.0%}")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("items, the least popular first")
        axes.set_ylabel("events they hold")
        axes.legend(loc="upper left")

    caption = "Lorenz curve: the further below the dotted line, the fewer items hold the events."
    return caption, page.svg(draw, "Lorenz curve of item popularity") if description.events else ""


def group_sizes(description: "Description") -> tuple[str, str]:
    """Share of the items and of the events in every group."""
    names = [name for name in description.groups if name != "warm"]

    def draw(axes: "Axes") -> None:
        places = np.arange(len(names))
        for shift, attribute, colour, label in (
            (-0.2, "share_of_items", _BLUE, "of the items"),
            (0.2, "share_of_events", _ORANGE, "of the events"),
        ):
            shares = [getattr(description.groups[name], attribute) for name in names]
            bars = axes.bar(places + shift, shares, 0.38, color=colour, label=label)
            axes.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=9, padding=1)
        axes.set_xticks(places, names)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.margins(y=0.12)
        axes.legend(loc="best")

    caption = "Groups: head, mid and tail part the items; cold items have no event, few have 1 to 5."
    return caption, page.svg(draw, "shares of the popularity groups") if description.items else ""


def ratings(description: "Description") -> tuple[str, str]:
    """How often each rating was given."""
    found = description.ratings

    def draw(axes: "Axes") -> None:
        if len(found.edges) == len(found.counts):
            axes.bar(range(len(found.edges)), found.counts, 0.8, color=_BLUE)
            axes.set_xticks(range(len(found.edges)), [f"{value:g}" for value in found.edges])
        else:
            _bars(axes, found, _BLUE)
        axes.yaxis.set_major_formatter(_short_number)
        axes.set_xlabel("rating")
        axes.set_ylabel("events")

    return "Ratings: how often each was given.", page.svg(
        draw, "histogram of the ratings"
    ) if description.events else ""


def over_time(description: "Description") -> tuple[str, str]:
    """Events per stretch of time."""
    found = description.times

    def draw(axes: "Axes") -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        assert found is not None
        edges = found.edges.astype("datetime64[s]")
        axes.stairs(found.counts, edges, color=_BLUE, fill=True, alpha=0.8)
        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.yaxis.set_major_formatter(_short_number)
        axes.set_ylabel("events")

    if found is None or found.edges[-1] >= _LAST_YEAR:
        return "", ""
    days = (found.edges[1] - found.edges[0]) / 86_400
    stretch = f"{days:.0f} days" if days >= 2 else f"{days * 24:.1f} hours"
    return f"Events over time, in stretches of {stretch}.", page.svg(draw, "events over time")


def text_lengths(description: "Description") -> tuple[str, str]:
    """Share of the texts that have at most so many characters, for every text column."""
    texts = description.texts[:_MOST_TEXTS]

    def draw(axes: "Axes") -> None:
        for text, colour in zip(texts, page.COLOURS, strict=False):
            axes.plot(
                np.maximum(1.0, text.percentiles), np.linspace(0, 1, 101), color=colour, label=page.short(text.name)
            )
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_xlabel("characters")
        axes.set_ylabel("texts that are not longer")
        axes.legend(loc="best")

    return "Lengths of the texts: the share that fits into so many characters.", page.svg(
        draw, "lengths of the item texts"
    ) if texts else ""


def split_sizes(description: "Description") -> tuple[str, str]:
    """Events in the parts of the split."""
    parts = description.parts

    def draw(axes: "Axes") -> None:
        counts = [part.events for part in parts.values()]
        bars = axes.barh(range(len(parts)), counts, 0.6, color=_GREEN)
        axes.bar_label(bars, [f"{n:,} ({n / max(1, description.events):.0%})" for n in counts], fontsize=10, padding=3)
        axes.set_yticks(range(len(parts)), list(parts))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(_short_number)
        axes.margins(x=0.25)
        axes.set_xlabel("events")

    return "Split: the events of each part.", page.svg(draw, "events in the parts of the split") if parts else ""


def _plain_numbers(axis: "Axis") -> None:
    """1, 10, 100 instead of powers, and no labels between them."""
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter(_short_number)
    axis.set_minor_formatter(NullFormatter())


def _bars(axes: "Axes", found: "Histogram", colour: str) -> None:
    axes.stairs(found.counts, found.edges, color=colour, fill=True, alpha=0.8)


def _short_number(value: float, _: object = None) -> str:
    """12,000 as 12k."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:g}{letter}"
    return f"{value:g}"
