"""The figures of a report as values: models, groups, comparisons, and the strict-JSON form that `report.json` holds.

Out of scope: computing them (`report`), pictures (`plots`), the page (`html`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ltrec_jax.evaluation.significance import NOTHING, Estimate

OVERALL, GROUP, CATALOGUE = "overall", "group", "catalogue"
AMONG = " among "
"""In the name of a group whose lists are made from a part of the catalogue: "cold among cold"."""
SUM = "sum"
"""The group whose first nDCG is the sum of those of SUMMED: one figure for "all at once"."""
SUMMED = (f"warm{AMONG}warm", f"tail{AMONG}warm", f"cold{AMONG}cold")
SIGNIFICANT = 0.05
BETTER, WORSE, UNCLEAR = "better", "worse", "unclear"
SYMBOLS = {BETTER: "▲", WORSE: "▼", UNCLEAR: "≈", "": ""}
_LOWER_IS_BETTER = {"rmse", "mae", "logloss", "miscalibration"}
_NEITHER_IS_BETTER = {"arp", "popularity_lift"}
_LABELS = {
    "rmse": "RMSE",
    "mae": "MAE",
    "auc": "AUC",
    "logloss": "log-loss",
    "ndcg": "nDCG",
    "ndcg_loss": "1 − nDCG",
    "dcg": "DCG",
    "hitrate": "hit rate",
    "mrr": "MRR",
    "map": "MAP",
    "arp": "ARP",
    "aplt": "APLT",
    "efd": "EFD",
    "epc": "EPC",
}
_ESTIMATORS = {"ips": "IPS", "snips": "SNIPS", "dr": "doubly robust"}

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

    `overall` and each of `groups` (items; also "cold among cold" and its like, and "sum") and `users` (cold
    ones, by activity, by taste): metric -> estimate. `popularity`: error by training count. `catalogue`: figures about
    the lists.
    """

    overall: Estimates
    groups: Mapping[str, Estimates]
    users: Mapping[str, Estimates]
    popularity: tuple[PopularityBin, ...]
    catalogue: Estimates
    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class DialPoint:
    """nDCG at the first cutoff of a model at one place of its dial; None where no target is in the group.

    Where the test has cold targets, warm and tail are ranked among warm items and cold ones among cold items.
    """

    dial: float
    warm: float | None
    tail: float | None
    cold: float | None


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A target on a tail item that one model lists and another does not: who wanted what, and what he liked before.

    `rank` (from 1) is the place in the list of `found_by`; `missed_by` does not have it in its first `depth`.
    """

    user: str
    liked: tuple[str, ...]
    item: str
    train_events: int
    found_by: str
    rank: int
    missed_by: str
    depth: int


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
    """What `evaluate` found.

    `groups`: items and share of training events of each; `protocol`: how it was measured; `dials`: model -> accuracy
    at each place of its dial; `contrasts`: tail items that the primary or the strongest other model alone finds.
    """

    dataset: str
    split: str
    primary: str
    models: Mapping[str, ModelResult]
    comparisons: tuple[Comparison, ...]
    groups: Mapping[str, Mapping[str, float]]
    protocol: Mapping[str, Any]
    dials: Mapping[str, tuple[DialPoint, ...]] = dataclasses.field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()

    @property
    def headlines(self) -> tuple[str, ...]:
        """The metrics worth the first look, if the primary has them: RMSE (AUC for clicks), nDCG at the first k."""
        return tuple(m for m in self.protocol["headlines"] if self.models[self.primary].overall[m].n)

    @property
    def likes_are(self) -> str:
        """From which rating on an event was a like, and why from there where that is known."""
        least, reason = self.protocol["positive_rating"], self.protocol.get("positive_rating_is")
        return f"a like is a rating of at least {least:g}" + (f" ({reason})" if reason else "")

    @property
    def strongest_other(self) -> str | None:
        """The best of the other models by the first headline metric that any of them has."""
        others = [name for name in self.models if name != self.primary]
        for metric in self.headlines:
            sign = 1.0 if lower_is_better(metric) else -1.0
            values = {name: self.models[name].overall[metric].value for name in others}
            have = [(sign * value, name) for name, value in values.items() if value is not None]
            if have:
                return min(have)[1]
        return None

    def estimate(self, model: str, group: str, metric: str) -> Estimate:
        """One figure; `group` is "overall" or the name of an item group."""
        found = self.models[model]
        return (found.overall if group == OVERALL else found.groups.get(group, {})).get(metric, NOTHING)

    def comparison(self, metric: str, group: str, against: str) -> Comparison | None:
        """The primary against one model, None where it was not or could not be compared."""
        wanted = (metric, group, against)
        return next((c for c in self.comparisons if (c.metric, c.group, c.against) == wanted), None)

    def grid(self, metric: str) -> Grid:
        """The table of one metric: the primary first, the others in their order, models without it left out."""
        return self._grid(metric, self._parts(metric, (OVERALL, *self.groups)), tested=True)

    def among_grid(self, metric: str) -> Grid:
        """The same for lists that are made from a part of the catalogue, and the sum of them."""
        among = [group for group in self.models[self.primary].groups if group not in self.groups]
        return self._grid(metric, self._parts(metric, among), tested=True)

    def users_grid(self, metric: str) -> Grid:
        """The same over groups of users; these parts are not tested against the primary."""
        groups = self.models[self.primary].users
        parts = {g: {m: self.models[m].users[g].get(metric, NOTHING) for m in self.models} for g in groups}
        return self._grid(metric, parts, tested=False)

    def _parts(self, metric: str, groups: Sequence[str]) -> dict[str, dict[str, Estimate]]:
        return {group: {model: self.estimate(model, group, metric) for model in self.models} for group in groups}

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
        """The headline metrics as plain Markdown tables; warm and cold items ranked apart where there are both."""
        grids = [grid for metric in self.headlines for grid in (self.grid(metric), self.among_grid(metric))]
        blocks = [_markdown(grid, self.primary) for grid in grids if grid.columns]
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
            "dials": {name: [dataclasses.asdict(point) for point in points] for name, points in self.dials.items()},
            "examples": [dataclasses.asdict(one) | {"liked": list(one.liked)} for one in self.contrasts],
        }

    def _against_primary(self, metric: str, group: str, name: str) -> str:
        found = self.comparison(metric, group, name)
        return {BETTER: WORSE, WORSE: BETTER, UNCLEAR: UNCLEAR}[found.verdict] if found else ""


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one."""
    return metric.partition("@")[0].partition("_")[0] in _LOWER_IS_BETTER


def direction(metric: str) -> str:
    """What a reader should wish for: "lower is better", "higher is better", or "" where it depends."""
    if metric in _NEITHER_IS_BETTER:
        return ""
    return "lower is better" if lower_is_better(metric) else "higher is better"


def label(metric: str) -> str:
    """How a metric is written for people: "ndcg@10" -> "nDCG@10", "rmse_dr" -> "RMSE, doubly robust"."""
    name, at, k = metric.partition("@")
    base, _, estimator = name.rpartition("_")
    if estimator in _ESTIMATORS:
        return f"{label(base)}{at}{k}, {_ESTIMATORS[estimator]}"
    return _LABELS.get(name, name.replace("_", " ").capitalize()) + at + k


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
    """The one model that is ahead of all others, None if it stands alone or shares its place, or nobody can be."""
    if not direction(metric):
        return None
    sign = 1.0 if lower_is_better(metric) else -1.0
    ranked = sorted((sign * found.value, name) for name, found in column.items() if found.value is not None)
    return ranked[0][1] if len(ranked) > 1 and ranked[0][0] != ranked[1][0] else None


def _markdown(grid: Grid, primary: str) -> str:
    header = [f"{label(grid.metric)} ({direction(grid.metric)})", *grid.columns]
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
        "users": {name: _estimates_dict(found) for name, found in model.users.items()},
        "popularity": [
            {"first": one.first, "last": one.last, "metrics": _estimates_dict(one.metrics)} for one in model.popularity
        ],
        "catalogue": {metric: found.value for metric, found in model.catalogue.items()},
        "catalogue_ci95": {m: None if one.ci95 is None else list(one.ci95) for m, one in model.catalogue.items()},
        "seconds": dict(model.seconds),
    }
