"""From coded events to the interactions that stay, in arrays: the rules of `relations` after the ids are codes.

One event for each pair, positive events, k-core, order. DuckDB and Spark could do it with the expressions of
`relations`, and Spark does; sorting packed integers of a range of users is several times faster than DuckDB's grouping
and sorting of rows, and needs less memory. Tests hold the two against each other.

Out of scope: the ids (`relations`), where the events lie (`ranges`).
"""

import functools
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltrec_jax.data import columns, relations, whole_ids
from ltrec_jax.data.engines import DuckEngine
from ltrec_jax.data.prepare_options import Duplicates, PrepareOptions
from ltrec_jax.data.ranges import UserRanges

if TYPE_CHECKING:
    import ibis.expr.types as ir

# Fibonacci hashing: the golden ratio in 64 bits spreads keys that differ little.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_KEY_BITS = 63
_ITEM_BITS = 32


class Settled:
    """The interactions that stay, in files: `rows` of them, given out in their order a range of users at a time."""

    def __init__(self, ranges: UserRanges, dense: Mapping[str, np.ndarray] | None = None) -> None:
        """`dense`: for the columns user and item the new code of each old one, where codes went."""
        self.rows = ranges.rows
        self._ranges, self._dense = ranges, dense or {}

    def pieces(self) -> Iterator[dict[str, np.ndarray]]:
        """The columns of the interactions, by user, time and item, in pieces. Once: the files go meanwhile."""
        return self._ranges.drain(self._piece)

    def _piece(self, events: np.ndarray) -> dict[str, np.ndarray]:
        found = in_order(events)
        # The new codes are in the order of the old ones.
        return found | {code: new[found[code]] for code, new in self._dense.items()}


def settle(
    engine: DuckEngine, options: PrepareOptions, folder: Path, *, listed: bool
) -> tuple[dict[str, int], int, Settled]:
    """What `relations.relate` does, with the interactions in files of `folder` instead of the table `final`."""
    events = relations.in_time_range(engine.table("events"), options.start, options.end)
    tallies = whole_ids.tally(engine, events, options.memory_gib)
    ids = {
        key: engine.give(f"counted_{key}", tallies[key].counted())
        if key in tallies
        else engine.create(f"counted_{key}", relations.counted(events, key), "collecting ids")
        for key in relations.CODE_OF
    }
    given = relations.code_ids(engine, options, ids, listed=listed)
    for key, tally in tallies.items():
        table, code = given.codes[key], relations.CODE_OF[key]
        known = engine.fetch(table.filter(table.id.notnull()).select("id", code))
        tally.become_codes(known["id"], known[code])
    coded = relations.coded(events, {key: table for key, table in given.codes.items() if key not in tallies})
    counts = given.codes[columns.USER_ID].select(columns.USER, relations.EVENTS)
    ranges = _ranges(engine, coded, counts, folder, options, tallies)
    steps = {"in_time_range": ranges.rows}
    ranges.update(functools.partial(one_per_pair, policy=options.duplicates), "one event for each pair")
    steps["one_per_pair"] = ranges.rows
    if options.implicit_threshold is not None:
        ranges.update(functools.partial(only_positive, threshold=options.implicit_threshold), "positive events")
        steps["positive"] = ranges.rows
    items = engine.count("all_items")
    k_core(ranges, options.min_user_interactions, options.min_item_interactions, items)
    steps["interactions"] = ranges.rows
    if steps["interactions"] == steps["one_per_pair"]:
        relations.all_codes_stay(engine)
        return steps, given.missing, Settled(ranges)
    left = {columns.USER: np.zeros(engine.count("all_users"), bool), columns.ITEM: np.zeros(items, bool)}
    left[columns.ITEM][engine.fetch(given.described)[columns.ITEM]] = True

    def note(events: np.ndarray) -> None:
        for code, used in left.items():
            used[events[code]] = True

    for _ in ranges.map(note):
        pass
    used = {
        code: engine.give(f"used_{code}", {code: np.flatnonzero(each).astype(np.int32)}) for code, each in left.items()
    }
    relations.codes_left(engine, used[columns.USER], used[columns.ITEM])
    dense = {code: (np.cumsum(each) - 1).astype(np.int32) for code, each in left.items()}
    return steps, given.missing, Settled(ranges, dense)


def settled_elsewhere(engine: DuckEngine, options: PrepareOptions, folder: Path) -> Settled:
    """The interactions of a table `final`, which another engine made."""
    import ibis

    final = engine.table("final")
    counts = final.group_by(columns.USER).agg(**{relations.EVENTS: final.count()})
    pairs = final.mutate(**{relations.ROW_ORDER: ibis.literal(0).cast("int64")})
    return Settled(_ranges(engine, pairs, counts, folder, options))


def _ranges(
    engine: DuckEngine,
    events: "ir.Table",
    counts: "ir.Table",
    folder: Path,
    options: PrepareOptions,
    tallies: Mapping[str, whole_ids.Tally] | None = None,
) -> UserRanges:
    threads = options.threads or os.cpu_count() or 1
    return UserRanges.of(
        engine, events, counts, folder, memory_gib=options.memory_gib, threads=threads, tallies=tallies
    )


def one_per_pair(events: np.ndarray, policy: Duplicates) -> np.ndarray:
    """One of the events of each (user, item): `relations.one_per_pair`, in any order."""
    key = (events[columns.USER].astype(np.int64) << _ITEM_BITS) | events[columns.ITEM]
    # To sort the bare keys takes a quarter of the time that finding their order does, and few stand there twice.
    ordered = np.sort(key)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(again):
        return events
    few = np.flatnonzero(_perhaps_among(key, again))
    few = few.take(np.argsort(key.take(few)))
    pair = key.take(few)
    differs = pair[1:] != pair[:-1]
    alone = np.append(True, differs) & np.append(differs, True)
    few, pair = few[~alone], np.append(0, np.cumsum(differs))[~alone]
    few = few[_order([pair, events[columns.TIMESTAMP][few], events[relations.ROW_ORDER][few]])]
    first = np.flatnonzero(np.diff(key[few], prepend=-1))
    size = np.diff(first, append=len(few))
    chosen = few[first if policy == "first" else first + size - 1]
    stays = np.ones(len(events), bool)
    stays[few] = False
    stays[chosen] = True
    kept = events.take(np.flatnonzero(stays))
    if policy == "mean":
        total = np.add.reduceat(events[columns.RATING][few].astype(np.float64), first)
        kept[columns.RATING][np.cumsum(stays)[chosen] - 1] = total / size
    return kept


def _perhaps_among(key: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each key is in `wanted`; some that are not are taken to be: two with one hash."""
    shift = np.uint64(64 - max(10, (8 * len(wanted)).bit_length()))
    table = np.zeros(1 << (64 - int(shift)), bool)
    table[(wanted.view(np.uint64) * _SPREAD) >> shift] = True
    found: np.ndarray = table[(key.view(np.uint64) * _SPREAD) >> shift]
    return found


def only_positive(events: np.ndarray, threshold: float) -> np.ndarray:
    """Events with rating >= threshold, as 1.0."""
    kept = events.take(np.flatnonzero(events[columns.RATING] >= threshold))
    kept[columns.RATING] = 1.0
    return kept


def k_core(ranges: UserRanges, min_user: int, min_item: int, items: int) -> None:
    """Leave the largest part in which every user and every item has enough events."""
    if max(min_user, min_item) <= 1:
        return

    def enough(events: np.ndarray, item_stays: np.ndarray) -> np.ndarray:
        user = events[columns.USER]
        user = user - user.min(initial=np.iinfo(np.int32).max)
        stays = item_stays[events[columns.ITEM]] & (np.bincount(user)[user] >= min_user)
        return events if stays.all() else events.take(np.flatnonzero(stays))

    for number in itertools.count(1):
        before, per_item, what = ranges.rows, np.zeros(items, np.int64), f"k-core, round {number}"
        for counts in ranges.map(lambda events: np.bincount(events[columns.ITEM], minlength=items)):
            per_item += counts
        ranges.update(functools.partial(enough, item_stays=per_item >= min_item), what)
        if ranges.rows == before:
            break


def in_order(events: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the events by user, time and item."""
    found = {name: np.ascontiguousarray(events[name]) for name in columns.INTERACTION_COLUMNS}
    order = _order([found[columns.USER], found[columns.TIMESTAMP], found[columns.ITEM]])
    return {name: column.take(order) for name, column in found.items()}


def _order(keys: list[np.ndarray]) -> np.ndarray:
    """The order by the first key, then the next, and so on; of rows that are equal in all, any.

    To sort one integer that holds all keys takes a tenth of the time of `lexsort`, which is left for the rows that such
    an integer cannot tell apart.
    """
    packed = _packed(keys)
    if packed is not None:
        return np.argsort(packed)
    packed = _packed(keys[:-1])
    if packed is None:
        return np.lexsort(keys[::-1])
    order = np.argsort(packed)
    packed = packed[order]
    same = packed[1:] == packed[:-1]
    alike = np.flatnonzero(np.append(same, False) | np.append(False, same))
    order[alike] = order[alike[np.lexsort((keys[-1][order[alike]], packed[alike]))]]
    return order


def _packed(keys: list[np.ndarray]) -> np.ndarray | None:
    """Integers in the order of the first key, then the next, and so on; None if the keys need too many bits."""
    packed, bits = np.zeros(len(keys[0]), np.int64), 0
    for key in keys:
        low, high = (int(key.min()), int(key.max())) if len(key) else (0, 0)
        width = (high - low).bit_length()
        bits += width
        if bits > _KEY_BITS:
            return None
        packed = (packed << width) | (key - low)
    return packed
