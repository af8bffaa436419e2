"""Self-contained pages: one style sheet, one frame, and figures as inline SVG. Nothing is loaded from anywhere.

Everything from outside is escaped. Figures follow the page's text colour, light or dark. Out of scope: what a page says
and what a figure shows. jinja2 and matplotlib are imported when the first page or figure is made.
"""

import html
import importlib.resources
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# After Okabe and Ito (told apart by colour-blind readers), the blue lightened to be seen on near-black too.
COLOURS = ("#1F83C6", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#010203"  # stands for the page's text colour until the SVG is written
_SIZE = (6.4, 3.7)
_LONGEST_NAME = 24
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "ltrec",  # the same figures give the same bytes
    "text.parse_math": False,  # a dollar sign in a model's name is a dollar sign
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def render(package: str, template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]]) -> str:
    """The page that a template file in `package` makes of `values`, with these filters.

    The template extends "page" and fills its blocks `title` and `content`. Every value is escaped unless it is
    `Markup`; a value that is missing is an error.
    """
    import jinja2

    frame, source = (
        importlib.resources.files(place).joinpath(name).read_text(encoding="utf-8")
        for place, name in (("ltrec_jax", "page.html.j2"), (package, template))
    )
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": frame}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.from_string(source).render(values)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ("train.learning_rate", "5e-05") pairs, in their order."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield (
                f"{prefix}{key}",
                f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value),
            )


def short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def svg(draw: Callable[["Axes"], None], title: str) -> str:
    """What `draw` puts on a pair of axes, as an <svg> element that is as wide as its place; `title` describes it."""
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
    text = re.sub(
        r'<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="{html.escape(title)}"', text, count=1
    )
    return text.replace(INK, "currentColor")
