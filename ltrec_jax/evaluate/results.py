"""The figures of a report as values: models, groups, comparisons, and the strict-JSON form that `report.json` holds.

Out of scope: computing them (`report`), pictures (`plots`), the page (`html`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ltrec_jax.evaluate.significance import NOTHING, Estimate

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
        sizes = {g: max(self.estimate(m, g, metric).n for m in self.models) for g in (OVERALL, *self.groups)}
        columns = tuple(group for group, size in sizes.items() if size)
        names = (self.primary, *(name for name in self.models if name != self.primary))
        best = {group: self._best(metric, group) for group in columns}
        rows = []
        for name in names:
            cells = []
            for group in columns:
                found = self.estimate(name, group, metric)
                ahead = found.value is not None and found.value == best[group]
                cells.append(Cell(found, self._against_primary(metric, group, name), ahead))
            if any(cell.estimate.n for cell in cells):
                rows.append((name, tuple(cells)))
        return Grid(metric, columns, tuple(sizes[group] for group in columns), tuple(rows))

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

    def _best(self, metric: str, group: str) -> float | None:
        """The value of the one model that is ahead of all others, None if it stands alone or shares its place."""
        values = sorted(v for m in self.models if (v := self.estimate(m, group, metric).value) is not None)
        if not lower_is_better(metric):
            values.reverse()
        return values[0] if len(values) > 1 and values[0] != values[1] else None

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
