"""The figures of a report as values: models, groups, comparisons, and the strict-JSON form that `report.json` holds.

Out of scope: computing them (`report`), pictures (`plots`), the page (`html`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ltrec_jax.evaluation.significance import NOTHING, Estimate

OVERALL, GROUP = "overall", "group"
SIGNIFICANT = 0.05
BETTER, WORSE, UNCLEAR = "better", "worse", "unclear"
SYMBOLS = {BETTER: "▲", WORSE: "▼", UNCLEAR: "≈", "": ""}
_LOWER_IS_BETTER = {"rmse", "mae"}
_LABELS = {"rmse": "RMSE", "mae": "MAE", "ndcg": "nDCG", "hitrate": "hit rate", "mrr": "MRR", "map": "MAP"}

Estimates = Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class PopularityBin:
    """Metrics over test targets whose item has from `first` to `last` training events, both included."""

    first: int
    last: int
    metrics: Estimates


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """All figures of one model; the fields are the keys in `report.json`.

    `overall` and each of `groups` (items) and `activity` (users): metric -> estimate. `popularity`: error by training
    count. `catalogue`: plain numbers about the lists, None where nothing was listed.
    """

    overall: Estimates
    groups: Mapping[str, Estimates]
    activity: Mapping[str, Estimates]
    popularity: tuple[PopularityBin, ...]
    catalogue: Mapping[str, float | None]
    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The primary model against another one: `difference` = primary - other, paired over users.

    `p_holm` is p after Holm's correction over all comparisons of the metric; `verdict` is about the primary: "better"
    or "worse" where p_holm < 0.05, else "unclear". `relative` = difference / other's value, None if that is 0.
    """

    metric: str
    group: str
    against: str
    difference: float
    relative: float | None
    ci95: tuple[float, float]
    p: float
    p_holm: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One table cell: the estimate, and whether the row's model is better or worse than the primary ("" for itself)."""

    estimate: Estimate
    verdict: str
    best: bool


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of one metric: models x (overall, then the groups that have data). `counts` is the n of each column."""

    metric: str
    columns: tuple[str, ...]
    counts: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `evaluate` found. `groups`: items and share of training events of each; `protocol`: how it was measured."""

    dataset: str
    split: str
    primary: str
    models: Mapping[str, ModelResult]
    comparisons: tuple[Comparison, ...]
    groups: Mapping[str, Mapping[str, float]]
    protocol: Mapping[str, Any]

    @property
    def headlines(self) -> tuple[str, ...]:
        """The metrics worth the first look, those without data left out: RMSE, nDCG at the first cutoff."""
        wanted = ("rmse", f"ndcg@{self.protocol['cutoffs'][0]}")
        return tuple(m for m in wanted if any(model.overall[m].n for model in self.models.values()))

    def estimate(self, model: str, group: str, metric: str) -> Estimate:
        """One figure; `group` is "overall" or the name of an item group."""
        found = self.models[model]
        return (found.overall if group == OVERALL else found.groups[group]).get(metric, NOTHING)

    def comparison(self, metric: str, group: str, against: str) -> Comparison | None:
        """The primary against one model, None where it was not or could not be compared."""
        wanted = (metric, group, against)
        return next((c for c in self.comparisons if (c.metric, c.group, c.against) == wanted), None)

    def grid(self, metric: str) -> Grid:
        """The table of one metric: the primary first, the others in their order, models without it left out."""
        parts = {g: {m: self.estimate(m, g, metric) for m in self.models} for g in (OVERALL, *self.groups)}
        return self._grid(metric, parts, tested=True)

    def activity_grid(self, metric: str) -> Grid:
        """The same over users by activity; these parts are not tested against the primary."""
        thirds = self.models[self.primary].activity
        parts = {t: {m: self.models[m].activity[t].get(metric, NOTHING) for m in self.models} for t in thirds}
        return self._grid(metric, parts, tested=False)

    def _grid(self, metric: str, parts: Mapping[str, Estimates], *, tested: bool) -> Grid:
        """`parts`: column -> model -> estimate; columns and models without any data are left out."""
        sizes = {part: max(found.n for found in column.values()) for part, column in parts.items()}
        columns = tuple(part for part, size in sizes.items() if size)
        best = {part: _leader(parts[part], metric) for part in columns}
        rows = []
        for name in (self.primary, *(name for name in self.models if name != self.primary)):
            if any(parts[part][name].n for part in columns):
                marks = [self._against_primary(metric, part, name) if tested else "" for part in columns]
                cells = [Cell(parts[p][name], mark, name == best[p]) for p, mark in zip(columns, marks, strict=True)]
                rows.append((name, tuple(cells)))
        return Grid(metric, columns, tuple(sizes[part] for part in columns), tuple(rows))

    def table(self) -> str:
        """The headline metrics as Markdown tables, in plain text."""
        blocks = [_markdown(self.grid(metric), self.primary) for metric in self.headlines]
        return "\n\n".join([*blocks, legend(self.primary)])

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json` as plain values: no NaN, None where there is no data."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "primary": self.primary,
            "models": {name: _model_dict(model) for name, model in self.models.items()},
            "comparisons": [dataclasses.asdict(c) | {"ci95": list(c.ci95)} for c in self.comparisons],
            "groups": {name: dict(sizes) for name, sizes in self.groups.items()},
            "protocol": dict(self.protocol),
        }

    def _against_primary(self, metric: str, group: str, name: str) -> str:
        found = self.comparison(metric, group, name)
        return {BETTER: WORSE, WORSE: BETTER, UNCLEAR: UNCLEAR}[found.verdict] if found else ""


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one."""
    return metric in _LOWER_IS_BETTER


def label(metric: str) -> str:
    """How a metric is written for people: "ndcg@10" -> "nDCG@10"."""
    name, at, k = metric.partition("@")
    return _LABELS.get(name, name.capitalize()) + at + k


def number(value: float | None) -> str:
    """A figure with four decimals; an en dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def legend(primary: str) -> str:
    """What the symbols in a table say."""
    return (
        f"{SYMBOLS[BETTER]} better than {primary}, {SYMBOLS[WORSE]} worse, {SYMBOLS[UNCLEAR]} no clear difference "
        "(95%, paired over users, Holm-corrected); – no data."
    )


def _leader(column: Estimates, metric: str) -> str | None:
    """The one model that is ahead of all others, None if it stands alone or shares its place."""
    sign = 1.0 if lower_is_better(metric) else -1.0
    ranked = sorted((sign * found.value, name) for name, found in column.items() if found.value is not None)
    return ranked[0][1] if len(ranked) > 1 and ranked[0][0] != ranked[1][0] else None


def _markdown(grid: Grid, primary: str) -> str:
    direction = "lower" if lower_is_better(grid.metric) else "higher"
    header = [f"{label(grid.metric)} ({direction} is better)", *grid.columns]
    lines = [[name + (" (ours)" if name == primary else ""), *map(_plain, cells)] for name, cells in grid.rows]
    lines += [["n", *(f"{n:,}" for n in grid.counts)]]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in [header, rule, *lines])


def _plain(cell: Cell) -> str:
    return f"{number(cell.estimate.value)} {SYMBOLS[cell.verdict]}".rstrip()


def _estimates_dict(estimates: Estimates) -> dict[str, Any]:
    return {
        metric: {"value": found.value, "ci95": None if found.ci95 is None else list(found.ci95), "n": found.n}
        for metric, found in estimates.items()
    }


def _model_dict(model: ModelResult) -> dict[str, Any]:
    return {
        "overall": _estimates_dict(model.overall),
        "groups": {name: _estimates_dict(found) for name, found in model.groups.items()},
        "activity": {name: _estimates_dict(found) for name, found in model.activity.items()},
        "popularity": [
            {"first": one.first, "last": one.last, "metrics": _estimates_dict(one.metrics)} for one in model.popularity
        ],
        "catalogue": dict(model.catalogue),
        "seconds": dict(model.seconds),
    }
