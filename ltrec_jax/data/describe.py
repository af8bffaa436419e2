"""What a dataset looks like: sizes, long tail, texts, time, ratings, split.

Out of scope: how it is shown (`describe_shown`), judging whether a split leaks (`splits.check`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ltrec_jax.data import columns
from ltrec_jax.data.dataset import Dataset, Interactions, Split
from ltrec_jax.data.popularity import Popularity, gini, lorenz_curve, popularity, power_law_exponent
from ltrec_jax.data.text_lengths import Spread, TextColumn, measure, plain, spread, text_columns

_PIECE = 1 << 22
_POINTS = 300
_BINS = 40
_SEPARATE_RATINGS = 20
_EXAMPLES = 8
_EXAMPLE_LENGTH = 160


@dataclasses.dataclass(frozen=True)
class Histogram:
    """`counts` int64[n] in the bins between `edges` float64[n + 1], or of the separate values `edges` float64[n]."""

    edges: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Group:
    """A popularity group: its items, the events they have, the shares of all."""

    items: int
    events: int
    share_of_items: float
    share_of_events: float


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a split: its events and how many different users and items they have; items not in training."""

    events: int
    users: int
    items: int
    unseen_items: int


@dataclasses.dataclass(frozen=True)
class Example:
    """An item as the reader sees it."""

    item_id: str
    text: str
    events: int


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything that is shown. Popularity is counted on the training events where a split is given (`counted_on`).

    rank_frequency: ranks and counts of the items with events, thinned to a few hundred points; lorenz: share of items
    and of events. `times` is None where the dataset has no timestamps, `parts` is empty without a split.
    """

    name: str
    users: int
    items: int
    events: int
    density: float
    counted_on: str
    per_user: Spread
    per_item: Spread
    groups: Mapping[str, Group]
    gini: float
    exponent: float
    rank_frequency: tuple[np.ndarray, np.ndarray]
    lorenz: tuple[np.ndarray, np.ndarray]
    ratings: Histogram
    times: Histogram | None
    texts: Sequence[TextColumn]
    parts: Mapping[str, Part]
    examples: Mapping[str, Sequence[Example]]
    info: Mapping[str, Any]

    @property
    def cold_share(self) -> float:
        """Share of the items without (training) events."""
        return self.groups["cold"].share_of_items


def describe(dataset: Dataset, split: Split | None = None) -> Description:
    """Count everything in a few passes over the events, a piece at a time, so that they may be larger than memory.

    Density is events / (users * items). A split of another dataset is `ValueError`.
    """
    if split is not None and split.dataset is not dataset:
        raise ValueError(f"the split {split.name!r} is of another dataset")
    events = dataset.interactions
    training = events.item if split is None else events.item[split.train_rows]
    found = popularity(np.asarray(training), dataset.num_items)
    descending = -np.sort(-found.counts)
    ratings, times = _histograms(events)
    pairs = dataset.num_users * dataset.num_items
    return Description(
        name=dataset.name,
        users=dataset.num_users,
        items=dataset.num_items,
        events=len(events),
        density=len(events) / pairs if pairs else 0.0,
        counted_on="all events" if split is None else f"the training events of the split {split.name}",
        per_user=spread(np.bincount(events.user, minlength=dataset.num_users)),
        per_item=spread(np.bincount(events.item, minlength=dataset.num_items)),
        groups=_groups(found),
        gini=gini(found.counts),
        exponent=power_law_exponent(found.counts),
        rank_frequency=_rank_frequency(descending[descending > 0]),
        lorenz=_thinned(*lorenz_curve(found.counts)),
        ratings=ratings,
        times=times,
        texts=[measure(name, dataset.items[name]) for name in text_columns(dataset.items)],
        parts=_parts(split),
        examples=_examples(dataset, found),
        info=dataset.info,
    )


def _groups(found: Popularity) -> dict[str, Group]:
    total = int(found.counts.sum())
    groups = {}
    for name, mask in found.masks().items():
        items, events = int(mask.sum()), int(found.counts[mask].sum())
        groups[name] = Group(items, events, items / max(1, len(mask)), events / max(1, total))
    return groups


def _rank_frequency(descending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rank, count) at ranks that are even on a logarithmic scale."""
    if len(descending) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ranks = np.unique(np.geomspace(1, len(descending), _POINTS).round().astype(np.int64))
    return ranks, descending[ranks - 1]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(np.int64))
    return x[kept], y[kept]


def _histograms(events: Interactions) -> tuple[Histogram, Histogram | None]:
    """Ratings (separate values while there are few) and times (None where all are equal)."""
    pieces = [slice(start, start + _PIECE) for start in range(0, len(events), _PIECE)]
    values: set[float] = set()
    rating_limits, time_limits = (np.inf, -np.inf), (np.inf, -np.inf)
    for piece in tqdm(pieces, desc="reading events", delay=1.0):
        rating_limits = _widened(rating_limits, events.rating[piece])
        time_limits = _widened(time_limits, events.timestamp[piece])
        if len(values) <= _SEPARATE_RATINGS:
            values |= set(np.unique(events.rating[piece]).tolist())
    if len(values) <= _SEPARATE_RATINGS:
        separate = np.array(sorted(values))
        between = [-np.inf, *((separate[1:] + separate[:-1]) / 2), np.inf] if values else []
        ratings = Histogram(separate, _binned(events.rating, pieces, np.array(between), "ratings"))
    else:
        edges = np.linspace(rating_limits[0], rating_limits[1], _BINS + 1)
        ratings = Histogram(edges, _binned(events.rating, pieces, edges, "ratings"))
    if time_limits[0] >= time_limits[1]:
        return ratings, None
    edges = np.linspace(time_limits[0], time_limits[1], _BINS + 1)
    return ratings, Histogram(edges, _binned(events.timestamp, pieces, edges, "times"))


def _widened(limits: tuple[float, float], column: np.ndarray) -> tuple[float, float]:
    return min(limits[0], float(column.min())), max(limits[1], float(column.max()))


def _binned(column: np.ndarray, pieces: list[slice], edges: np.ndarray, what: str) -> np.ndarray:
    counts = np.zeros(max(0, len(edges) - 1), np.int64)
    for piece in tqdm(pieces, desc=f"counting {what}", delay=1.0):
        bins = np.searchsorted(edges[1:-1], column[piece], side="right")
        counts += np.bincount(bins, minlength=len(counts))
    return counts


def _parts(split: Split | None) -> dict[str, Part]:
    if split is None:
        return {}
    events = split.dataset.interactions
    trained = np.zeros(split.dataset.num_items, bool)
    trained[events.item[split.train_rows]] = True
    parts = {}
    for name in ("train", "validation", "test"):
        rows = getattr(split, f"{name}_rows")
        items = np.unique(events.item[rows])
        parts[name] = Part(len(rows), len(np.unique(events.user[rows])), len(items), int((~trained[items]).sum()))
    unused = len(events) - sum(part.events for part in parts.values())
    return parts | ({"unused": Part(unused, 0, 0, 0)} if unused else {})


def _examples(dataset: Dataset, found: Popularity) -> dict[str, list[Example]]:
    """The most popular items, some of the tail and some without events: the same ones every time."""
    masks = found.masks()
    draw = np.random.default_rng(0)
    chosen = {"head": np.argsort(-found.counts, kind="stable")[: min(_EXAMPLES, int(masks["head"].sum()))]}
    for name, mask in (("tail", masks["tail"] & masks["warm"]), ("cold", masks["cold"])):
        rows = np.flatnonzero(mask)
        chosen[name] = draw.choice(rows, size=min(_EXAMPLES, len(rows)), replace=False)
    names = text_columns(dataset.items)
    return {
        group: [_example(dataset, row, names, int(found.counts[row])) for row in rows.tolist()]
        for group, rows in chosen.items()
        if len(rows)
    }


def _example(dataset: Dataset, row: int, names: Sequence[str], events: int) -> Example:
    item = dataset.items.iloc[row]
    text = " · ".join(text for name in names if (text := " ".join(plain(item[name]).split())))
    if len(text) > _EXAMPLE_LENGTH:
        text = text[: _EXAMPLE_LENGTH - 1] + "…"
    return Example(str(item[columns.ITEM_ID]), text, events)
