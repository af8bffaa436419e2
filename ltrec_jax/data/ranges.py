"""Coded events in files, one for each range of users, so that a step over them never holds more than a few ranges.

Out of scope: what the steps do (`settle`), how events come to be coded (`relations`).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from tqdm import tqdm

from ltrec_jax.data import columns, relations, whole_ids
from ltrec_jax.data.whole_ids import Tally

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

    from ltrec_jax.data.engines import DuckEngine

_Found = TypeVar("_Found")
EVENT = np.dtype([*columns.DTYPES.items(), (relations.ROW_ORDER, np.int64)])
"""One event in a file."""
_BATCH = 1 << 20
_BINS = 4096
# Events of one range: what a step needs of them (some 150 bytes each) should stay in the caches, and not be mapped and
# unmapped for each range; but the files must not be too many, nor a range too large for the memory.
_ROWS, _FILES = 250_000, 1_000
_BYTES = 150


class UserRanges:
    """Events in the files of `folder`, by ranges of user codes; inside a range they are in no order."""

    def __init__(
        self,
        folder: Path,
        events_per_bin: np.ndarray,
        width: int,
        rows: int,
        threads: int,
        tallies: Mapping[str, Tally] | None = None,
    ) -> None:
        """Range the bins of `width` user codes each so that a range has about `rows` events (but whole bins)."""
        self._folder, self._width, self._threads, self._tallies = folder, width, threads, tallies or {}
        upto = np.cumsum(events_per_bin)
        place = np.unique((upto - 1) // rows, return_inverse=True)[1]
        # Few bytes are sorted faster.
        self._range_of_bin = place.astype(np.min_scalar_type(place[-1]))
        self._counts = [0] * (int(place[-1]) + 1)

    @classmethod
    def of(
        cls,
        engine: "DuckEngine",
        events: "ir.Table",
        counts: "ir.Table",
        folder: Path,
        *,
        memory_gib: float,
        threads: int,
        tallies: Mapping[str, Tally] | None = None,
    ) -> Self:
        """Write `events` (user, item, rating, timestamp, row_order) to files; `counts` (user, events) of all users.

        With a tally, which holds codes, the events have user_id instead of user, item_id instead of item.
        """
        found = engine.fetch(counts.agg(users=counts.user.max() + 1, events=counts.events.sum()))
        users, total = (int(np.ma.filled(found[column], 0)[0]) for column in ("users", "events"))
        width = max(1, -(-users // _BINS))
        bins = counts.mutate(bin=(counts.user // width).cast("int32")).group_by("bin").agg(events=counts.events.sum())
        per_bin = np.zeros(max(1, -(-users // width)), np.int64)
        binned = engine.fetch(bins)
        per_bin[binned["bin"]] = binned["events"]
        rows = min(max(_ROWS, total // _FILES), round(memory_gib * (1 << 30) / (_BYTES * (threads + 2))))
        ranges = cls(folder, per_bin, width, rows, threads, tallies)
        with tqdm(total=total, desc="coding", delay=1.0, unit=" rows") as bar:
            for batch in engine.stream(events, _BATCH, "coding"):
                ranges.add(batch)
                bar.update(len(batch))
        return ranges

    @property
    def rows(self) -> int:
        """How many events there are."""
        return sum(self._counts)

    def add(self, batch: "pa.RecordBatch") -> None:
        """Append the events of a batch, with the columns that `of` tells, to the files of their ranges."""
        events = np.empty(len(batch), EVENT)
        for key, code in relations.CODE_OF.items():
            events[code] = whole_ids.column(batch, key, code, self._tallies)
        for name in (columns.RATING, columns.TIMESTAMP, relations.ROW_ORDER):
            events[name] = batch.column(name).to_numpy()
        place = self._range_of_bin[events[columns.USER] // self._width]
        events = events.take(np.argsort(place, kind="stable"))
        edges = np.cumsum(np.bincount(place, minlength=len(self._counts)))
        for number, (first, end) in enumerate(itertools.pairwise([0, *edges.tolist()])):
            if end > first:
                self._write(number, events[first:end], "ab")
                self._counts[number] += end - first

    def update(self, change: Callable[[np.ndarray], np.ndarray], what: str) -> None:
        """Replace the events of every range by what `change` makes of them."""

        def one(number: int) -> None:
            before = self._read(number)
            after = change(before) if len(before) else before
            if after is not before:
                self._write(number, after, "r+b")
                self._counts[number] = len(after)

        for _ in tqdm(self._each(one), total=len(self._counts), desc=what, delay=1.0):
            pass

    def map(self, look: Callable[[np.ndarray], _Found]) -> Iterator[_Found]:
        """What `look` gives for the events of each range, in the order of the ranges."""
        return self._each(lambda number: look(self._read(number)))

    def drain(self, look: Callable[[np.ndarray], _Found]) -> Iterator[_Found]:
        """The same for the last time: the file of each range goes as soon as it is read."""

        def one(number: int) -> _Found:
            events = self._read(number)
            self._file(number).unlink(missing_ok=True)
            return look(events)

        return self._each(one)

    def _each(self, work: Callable[[int], Any]) -> Iterator[Any]:
        """Results of `work` in order; not many more than the threads are waiting at any time."""
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[Future[Any]] = deque()
            for number in range(len(self._counts)):
                waiting.append(pool.submit(work, number))
                if len(waiting) > self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read(self, number: int) -> np.ndarray:
        path = self._file(number)
        return np.fromfile(path, EVENT) if path.exists() else np.zeros(0, EVENT)

    def _write(self, number: int, events: np.ndarray, mode: str) -> None:
        # Not `tofile`, whose errors do not say that the disk is full.
        with self._file(number).open(mode) as stream:
            stream.write(np.ascontiguousarray(events).view(np.uint8).data)
            # To write over a file takes a quarter of the time of writing it anew.
            stream.truncate()

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05}.events"
