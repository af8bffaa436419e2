"""The report in two sentences, computed from its figures: what the primary model gained, and what got worse."""

from collections.abc import Sequence

from ltrec_jax.evaluation.results import (
    BETTER,
    OVERALL,
    UNCLEAR,
    WORSE,
    Comparison,
    Report,
    label,
    lower_is_better,
    number,
)

_MOST_NAMED = 4


def verdict(report: Report) -> tuple[str, str]:
    """(how the primary stands against the strongest other model overall, what is clearly worse or not shown).

    "Clearly" means a Holm-corrected p below 0.05. Without a figure or without another model it says so.
    """
    metric = _main_metric(report)
    if metric is None:
        return (
            f"{report.primary} has no figure: no test rating and no test target could be scored.",
            "Nothing to compare.",
        )
    others = [name for name in report.models if name != report.primary and _value(report, name, metric) is not None]
    found = report.estimate(report.primary, OVERALL, metric)
    first = f"{report.primary} reaches {label(metric)} {number(found.value)}"
    if found.ci95 is not None:
        first += f" (95% interval {number(found.ci95[0])} to {number(found.ci95[1])})"
    first += f" on {report.dataset}, {report.split}"
    if not others:
        return f"{first}.", "There is no other model to compare it with."
    rank = min if lower_is_better(metric) else max
    best = rank(others, key=lambda name: _value(report, name, metric) or 0.0)
    return f"{first}, {_against(report, metric, best)}.", _losses(report)


def _main_metric(report: Report) -> str | None:
    return next((m for m in report.headlines if _value(report, report.primary, m) is not None), None)


def _value(report: Report, model: str, metric: str) -> float | None:
    return report.estimate(model, OVERALL, metric).value


def _against(report: Report, metric: str, best: str) -> str:
    value = number(_value(report, best, metric))
    overall = report.comparison(metric, OVERALL, best)
    if overall is None:
        return f"beside {value} of {best}, the strongest other model (too few users to compare)"
    if overall.verdict == UNCLEAR:
        text = f"not clearly different from {best}, the strongest other model ({value})"
    else:
        size = "" if overall.relative is None else f"{abs(overall.relative):.1%} "
        text = f"{size}{overall.verdict} than {best}, the strongest other model ({value})"
    gained = [c.group for g in report.groups if (c := report.comparison(metric, g, best)) and c.verdict == BETTER]
    return text + (f"; the gain is clear on {_and(gained)} items" if gained else "")


def _losses(report: Report) -> str:
    if not report.comparisons:
        return "Too few users have test events for any comparison."
    worse = sorted((c for c in report.comparisons if c.verdict == WORSE), key=lambda c: -abs(c.relative or 0.0))
    if worse:
        largest = {(c.metric, c.group): c for c in reversed(worse)}
        named = sorted(largest.values(), key=lambda c: (c.group != OVERALL, -abs(c.relative or 0.0)))
        return f"What got worse: {_and([_described(c) for c in named], _MOST_NAMED)}."
    unclear = [c for c in report.comparisons if c.verdict == UNCLEAR]
    if unclear:
        open_questions = dict.fromkeys(f"{label(c.metric)} {_where(c)}" for c in unclear)
        where = _and(list(open_questions), 2 * _MOST_NAMED)
        return f"Nothing got clearly worse; no clear difference from at least one model in {where}."
    return "Nothing got worse: it is clearly better than every other model in every group with data."


def _described(comparison: Comparison) -> str:
    size = f"{comparison.difference:+.4f}" if comparison.relative is None else f"{comparison.relative:+.1%}"
    return f"{label(comparison.metric)} {_where(comparison)} ({size.replace('-', '−')} against {comparison.against})"


def _where(comparison: Comparison) -> str:
    return OVERALL if comparison.group == OVERALL else f"on {comparison.group} items"


def _and(words: Sequence[str], most: int = 99) -> str:
    shown = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
