"""The report as one self-contained HTML page: nothing is loaded from anywhere, all text from outside is escaped.

Out of scope: figures (`results`), pictures (`plots`), wording of the verdict (`verdict`), what every page looks like
(`page`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ltrec_jax import page
from ltrec_jax.evaluation import plots, verdict
from ltrec_jax.evaluation.results import SUM, SUMMED, SYMBOLS, WORSE, Report, direction, label, legend, number

_TEMPLATE = "report.html.j2"


class Example(Protocol):
    """One recommended item as the page shows it."""

    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def group(self) -> str: ...
    @property
    def resembles(self) -> Sequence[str]: ...


def render(
    report: Report,
    *,
    curve: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Sequence[Example]],
    settings: Mapping[str, Any],
    hardware: Mapping[str, Any],
) -> str:
    """The page as text. Empty curve, examples, settings or hardware: that part is left out."""
    from markupsafe import Markup

    metrics = list(next(iter(report.models.values())).overall)
    user_metrics = list(next(iter(report.models[report.primary].users.values())))
    pictures = [plots.by_popularity(report, metric) for metric in report.headlines]
    pictures += [plots.tail_dial(report), plots.learning_curve(curve) or plots.learning_curve(curve, "ndcg_loss")]
    values = {
        "report": report,
        "verdict": verdict.verdict(report),
        "main_grids": [report.grid(metric) for metric in report.headlines],
        "other_grids": [grid for m in metrics if m not in report.headlines and (grid := report.grid(m)).columns],
        "among_grids": [grid for m in report.headlines if (grid := report.among_grid(m)).columns],
        "users_grids": [grid for m in user_metrics if (grid := report.users_grid(m)).columns],
        # Our own SVG: text inside it has been escaped by matplotlib.
        "pictures": [Markup(picture) for picture in pictures if picture],
        "worse": sorted((c for c in report.comparisons if c.verdict == WORSE), key=lambda c: (c.against, c.metric)),
        "without_contrast": sorted(
            {one.missed_by for one in report.contrasts} - {one.found_by for one in report.contrasts}
        ),
        "examples": examples,
        "facts": {
            "How it was measured": dict(page.flattened(report.protocol)),
            "Settings": dict(page.flattened(settings)),
            "Hardware and versions": dict(page.flattened(hardware)),
        },
        "lists": [
            metric
            for metric in report.models[report.primary].catalogue
            if any(model.catalogue[metric].n for model in report.models.values())
        ],
        "stages": list(dict.fromkeys(stage for model in report.models.values() for stage in model.seconds)),
        "sum_name": SUM,
        "summed": SUMMED,
        "symbols": SYMBOLS,
        "legend": legend(report.primary),
    }
    return page.render(
        "ltrec_jax.evaluation",
        _TEMPLATE,
        values,
        {"number": number, "short_number": _short, "label": label, "direction": direction},
    )


def _short(value: float | None) -> str:
    """A figure of any size in few digits; an en dash where there is none."""
    return "–" if value is None else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
