"""The pictures of a report as inline SVG: figures follow the page's text colour, light or dark, and load nothing.

Out of scope: the page around them (`html`), how a figure becomes SVG (`page`).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltrec_jax import page
from ltrec_jax.evaluation.results import AMONG, DialPoint, Report, direction, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def by_popularity(report: Report, metric: str) -> str:
    """A metric of every model against the training count of the item, with the primary's 95% band; "" without data."""
    drawn = {
        name: [one for one in model.popularity if one.metrics[metric].value is not None]
        for name, model in report.models.items()
    }
    bins = sorted({(one.first, one.last) for found in drawn.values() for one in found})
    if not bins:
        return ""

    def draw(axes: "Axes") -> None:
        for order, (name, found) in enumerate(drawn.items()):
            colour, marker = page.COLOURS[order % len(page.COLOURS)], page.MARKERS[order % len(page.MARKERS)]
            places = [bins.index((one.first, one.last)) for one in found]
            values = np.array([one.metrics[metric].value for one in found], float)
            ours = name == report.primary
            if found:
                axes.plot(places, values, color=colour, marker=marker, label=page.short(name), zorder=3 if ours else 2)
            if ours:
                # A bin with a single user has no interval: the band narrows to the line there.
                band = [one.metrics[metric].ci95 or (one.metrics[metric].value,) * 2 for one in found]
                low, high = np.array(band, float).reshape(-1, 2).T
                axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_xticks(range(len(bins)), [_range(*one) for one in bins], rotation=30, ha="right")
        axes.set_xlabel("training events of the item")
        axes.set_ylabel(f"{label(metric)} ({direction(metric)})")
        axes.legend(loc="best")

    return page.svg(draw, f"{label(metric)} by item popularity")


def tail_dial(report: Report) -> str:
    """Tail against warm accuracy at each place of a dial, other models as single points; "" without a dial.

    Filled points cannot be bettered on one axis without losing on the other by any point of their own dial.
    """
    drawn = {
        name: [one for one in points if one.warm is not None and one.tail is not None]
        for name, points in report.dials.items()
    }
    if not any(drawn.values()):
        return ""
    metric = report.protocol["headlines"][-1]

    def draw(axes: "Axes") -> None:
        for order, name in enumerate(report.models):
            colour, marker = page.COLOURS[order % len(page.COLOURS)], page.MARKERS[order % len(page.MARKERS)]
            if drawn.get(name):
                _turned(axes, drawn[name], name, colour, marker)
            else:
                found = [
                    report.estimate(name, _ranked_alone(report, group), metric).value for group in ("warm", "tail")
                ]
                alone = [value for value in found if value is not None]
                if len(alone) == len(found):
                    axes.plot(*alone, marker, color=colour, linestyle="none", label=page.short(name))
        axes.set_xlabel(f"{label(metric)} on warm items")
        axes.set_ylabel(f"{label(metric)} on tail items")
        axes.margins(0.12)
        axes.legend(loc="best")

    return page.svg(draw, f"{label(metric)} on tail against warm items as the dial turns")


def _turned(axes: "Axes", points: Sequence[DialPoint], name: str, colour: str, marker: str) -> None:
    """The curve of one dial, its places named."""
    warm, tail = (np.array([getattr(one, group) for one in points], float) for group in ("warm", "tail"))
    axes.plot(warm, tail, color=colour, linewidth=1.2, label=page.short(name))
    for point, x, y in zip(points, warm, tail, strict=True):
        bettered = np.any((warm >= x) & (tail >= y) & ((warm > x) | (tail > y)))
        axes.plot(x, y, marker, color=colour, markerfacecolor="none" if bettered else colour)
        axes.annotate(f"{point.dial:g}", (float(x), float(y)), (5, 4), textcoords="offset points", fontsize=9)


def _ranked_alone(report: Report, group: str) -> str:
    """The group among warm items where the report has it, as the places of a dial are measured."""
    among = f"{group}{AMONG}warm"
    return among if among in report.models[report.primary].groups else group


def learning_curve(rows: Sequence[Mapping[str, Any]], metric: str = "rmse") -> str:
    """Training and validation error over epochs, phase after phase; "" if no row has either.

    A row has `epoch` (of its phase; `step` where it is missing), `phase`, `train_<metric>` or `validation_<metric>`.
    """
    names = ("train", "validation")
    if not any(row.get(f"{name}_{metric}") is not None for row in rows for name in names):
        return ""

    def draw(axes: "Axes") -> None:
        start = end = 0.0
        labelled: set[str] = set()
        for phase, grouped in itertools.groupby(rows, key=lambda row: str(row.get("phase", ""))):
            phase_rows, start = list(grouped), end
            # A line ends with its phase: the next one starts from another model.
            for name, colour, line in zip(names, page.COLOURS, ("--", "o-"), strict=False):
                points = [
                    (start + float(row.get("epoch", row["step"])), float(row[f"{name}_{metric}"]))
                    for row in phase_rows
                    if row.get(f"{name}_{metric}") is not None
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), line, color=colour, label="" if name in labelled else name)
                    labelled.add(name)
                    end = max(end, points[-1][0])
            axes.text(start, 1.02, page.short(phase), transform=axes.get_xaxis_transform(), fontsize=9, alpha=0.8)
            if start:
                axes.axvline(start, color=page.INK, alpha=0.4, linewidth=0.8, linestyle=":")
        axes.set_xlim(left=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label(metric))
        axes.legend(loc="best")

    return page.svg(draw, "learning curve")


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"
