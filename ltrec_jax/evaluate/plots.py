"""The pictures of a report as inline SVG: figures follow the page's text colour, light or dark, and load nothing.

Out of scope: the page around them (`html`). matplotlib is imported when the first picture is drawn.
"""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltrec_jax.evaluate.results import Report, label, lower_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# After Okabe and Ito (told apart by colour-blind readers), the blue lightened to be seen on near-black too.
_COLOURS = ("#1F83C6", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_SIZE = (6.4, 3.7)
_LONGEST_NAME = 24
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "ltrec",  # the same figures give the same bytes
    "text.parse_math": False,  # a dollar sign in a model's name is a dollar sign
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


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
            colour, marker = _COLOURS[order % len(_COLOURS)], _MARKERS[order % len(_MARKERS)]
            places = [bins.index((one.first, one.last)) for one in found]
            values = np.array([one.metrics[metric].value for one in found], float)
            ours = name == report.primary
            if found:
                axes.plot(places, values, color=colour, marker=marker, label=_short(name), zorder=3 if ours else 2)
            if ours:
                # A bin with a single user has no interval: the band narrows to the line there.
                band = [one.metrics[metric].ci95 or (one.metrics[metric].value,) * 2 for one in found]
                low, high = np.array(band, float).reshape(-1, 2).T
                axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_xticks(range(len(bins)), [_range(*one) for one in bins], rotation=30, ha="right")
        axes.set_xlabel("training events of the item")
        axes.set_ylabel(f"{label(metric)} ({'lower' if lower_is_better(metric) else 'higher'} is better)")
        axes.legend(loc="best")

    return _svg(draw, f"{label(metric)} by item popularity")


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
            for name, colour, line in zip(names, _COLOURS, ("--", "o-"), strict=False):
                points = [
                    (start + float(row.get("epoch", row["step"])), float(row[f"{name}_{metric}"]))
                    for row in phase_rows
                    if row.get(f"{name}_{metric}") is not None
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), line, color=colour, label="" if name in labelled else name)
                    labelled.add(name)
                    end = max(end, points[-1][0])
            note = axes.text(start, 1.02, _short(phase), transform=axes.get_xaxis_transform(), fontsize=9, alpha=0.8)
            note.set_in_layout(False)
            if start:
                axes.axvline(start, color=_INK, alpha=0.4, linewidth=0.8, linestyle=":")
        axes.set_xlim(left=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label(metric))
        axes.legend(loc="best")

    return _svg(draw, "learning curve")


def _short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _svg(draw: Any, title: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.add_subplot())
        return _inline(figure, title)


def _inline(figure: "Figure", title: str) -> str:
    """The figure as an <svg> element: no prolog, no metadata, no namespace addresses, as wide as its place."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="{title}"', text, count=1)
    return text.replace(_INK, "currentColor")
