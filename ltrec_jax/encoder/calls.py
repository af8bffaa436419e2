"""Texts as calls of a compiled program: packed rows in a few shapes, and on a CPU several calls side by side.

Out of scope: what the program computes (`catalogue`, and whoever keeps hidden states).
"""

import collections
import functools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from ltrec_jax.encoder import dense
from ltrec_jax.text import packing
from ltrec_jax.text.store import TokenStore

_Label = TypeVar("_Label")

# A program on all cores leaves some of them idle between its parts. Small programs side by side, one for each core,
# keep them busy and their activations in the core's own cache. On 2 cores with AMX, film titles (9-18 tokens) take two
# calls of 1,024 tokens at 14.4, 42 and 43 thousand tokens/s (float32, bfloat16, int8), two of 512 at 13.9, 43 and 47,
# one call alone at 12.8, 35 and 35.
# Long rows want larger calls, and never one row alone: on 2 cores of an AMD EPYC without AMX, rows of 128 tokens take
# calls of 512 and 1,024 at 13.8 and 14.5 thousand tokens/s in bfloat16, rows of 256 at 12.7 and 13.4, and rows of 352
# one, two and four at a time at 10.6, 11.2 and 11.8 (float32: 7.4 all three; of 288: 7.0, 7.7 and 7.6). Texts of 180 to
# 410 tokens take calls of 1,024 tokens, two rows at least, at 11.5 and four rows at least at 11.8 in bfloat16.
_CPU_TOKENS_PER_CALL: dict[dense.Policy, int] = {"float32": 1024, "bfloat16": 512, "int8": 512}
_CPU_LONG_ROW, _CPU_TOKENS_OF_LONG_ROWS, _CPU_FEWEST_ROWS = 128, 1024, 4
# What the host does for a call is a millisecond or two. On an H200 calls of 16,384 tokens of MiniLM take no longer than
# that, and the device waits.
_ACCELERATOR_TOKENS_PER_CALL = 32_768
_SHORTEST_ROW = 48
_CPU_ROW_STEP, _ACCELERATOR_ROW_STEP = 16, 32
# What a program of its own is worth to a row length, in tokens. On 2 cores of an AMD EPYC one takes 1.1 to 1.3 s to
# compile and 0.6 s out of JAX's cache on disk, as long as 4,000 to 15,000 tokens of long texts. Less is asked for: 768
# long texts have 6.5% of padding in six lengths; at 8,000 they would have 10% in four, and take a second or two less
# the first time, 3% more each time after.
_TOKENS_OF_A_SHAPE = 3_000
_FEWEST_SLOTS = 32


class Call(NamedTuple):
    """Rows of packed texts: `texts` are their numbers, ids, slot and position int32 [R, L]; from `slots` on: padding.

    Every slot below `slots` may be used; as many as there are texts are.
    """

    texts: np.ndarray
    ids: np.ndarray
    slot: np.ndarray
    position: np.ndarray
    slots: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(R, L, slots): calls of one shape share a program."""
        return (*self.ids.shape, self.slots)

    def emptied(self) -> "Call":
        """A call of the same shape without texts."""
        nothing = np.zeros_like(self.ids)
        return Call(self.texts[:0], nothing, np.full_like(self.slot, self.slots), nothing, self.slots)


def default_tokens_per_call(policy: dense.Policy, row_length: int) -> int:
    """How many tokens in rows of this length go through a device at a time: few on a CPU, whose caches are small."""
    if jax.default_backend() != "cpu":
        return _ACCELERATOR_TOKENS_PER_CALL
    tokens = _CPU_TOKENS_PER_CALL[policy] if row_length < _CPU_LONG_ROW else _CPU_TOKENS_OF_LONG_ROWS
    return max(tokens, _CPU_FEWEST_ROWS * row_length)


def row_lengths(lengths: np.ndarray) -> tuple[int, ...]:
    """The lengths of packed rows that texts of these lengths are worth, shortest first.

    Texts of up to 48 tokens share rows of 48. Longer ones stand alone, in the shortest row that holds them; rows are
    multiples of 16 tokens long, on accelerators of 32. Of all choices of such lengths the one with the fewest tokens,
    padding included, where each length, a program to compile, counts for 3,000 more.
    """
    positive = np.asarray(lengths)[np.asarray(lengths) > 0]
    step = _CPU_ROW_STEP if jax.default_backend() == "cpu" else _ACCELERATOR_ROW_STEP
    needed = np.maximum(-(-positive // step) * step, _SHORTEST_ROW)
    choices, counts = np.unique(needed, return_counts=True)
    texts = np.concatenate([[0], np.cumsum(counts)])
    # least[n], chosen[n]: for the texts of the n shortest lengths. The last row holds those of `first` up to n.
    least: list[int] = [0]
    chosen: list[tuple[int, ...]] = [()]
    for n, length in enumerate(choices.tolist(), start=1):
        costs = [least[first] + int(texts[n] - texts[first]) * length for first in range(n)]
        first = int(np.argmin(costs))
        least.append(costs[first] + _TOKENS_OF_A_SHAPE)
        chosen.append((*chosen[first], length))
    return chosen[-1]


def packed_calls(
    tokens: TokenStore, rows: tuple[int, ...], policy: dense.Policy, pad_id: int, tokens_per_call: int | None = None
) -> Iterator[Call]:
    """All texts that have tokens, in calls of about `tokens_per_call`; those of one length of `rows` share a shape.

    The default is that of `policy` (`default_tokens_per_call`).
    """
    lengths = tokens.lengths
    for shorter, row_length in zip((0, *rows), rows, strict=False):
        bucket = np.flatnonzero((lengths > shorter) & (lengths <= row_length))
        if not len(bucket):
            continue
        rows_per_call = max(1, (tokens_per_call or default_tokens_per_call(policy, row_length)) // row_length)
        row, start = packing.pack(lengths[bucket], row_length)
        call_of = row // rows_per_call
        order = np.argsort(call_of, kind="stable")
        edges = np.searchsorted(call_of[order], np.arange(call_of.max() + 2))
        # A power of two: the shards of a catalogue then share a shape or two.
        slots = max(_FEWEST_SLOTS, 1 << (int(np.diff(edges).max()) - 1).bit_length())
        for lower, upper in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = order[lower:upper]
            texts = bucket[part]
            ids, slot, position = packing.fill(
                tokens, texts, row[part] % rows_per_call, start[part], rows_per_call, row_length, pad_id
            )
            yield Call(texts, ids, np.where(slot >= len(part), slots, slot).astype(np.int32), position, slots)


def calls_at_once(devices: int = 1) -> int:
    """One for each core where the one device is the CPU; else one, and the device's own queue."""
    if devices > 1 or jax.default_backend() != "cpu":
        return 1
    # macOS and Windows cannot say how many of the cores this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(
    jobs: Iterable[tuple[_Label, Hashable, Callable[[], jax.Array]]], at_once: int, compiled: set[Hashable]
) -> Iterator[tuple[_Label, np.ndarray]]:
    """(label, result) of every job, in order, `at_once` of them running while the next one is made.

    A job is a label, the shape of its program and what starts it. `compiled` has the shapes that have run: the first
    job of another one is started in this thread, so that one thread compiles. So are all where one runs at a time:
    calls over several devices must start in one order.
    """
    waiting: collections.deque[tuple[_Label, Callable[[], np.ndarray]]] = collections.deque()
    with ThreadPoolExecutor(at_once) as pool:
        for label, shape, start in jobs:
            if at_once > 1 and shape in compiled:
                waiting.append((label, pool.submit(_started_and_fetched, start).result))
            else:
                waiting.append((label, functools.partial(np.asarray, start())))
            compiled.add(shape)
            # Fetching late lets the devices work while the host packs the next.
            if len(waiting) > at_once:
                yield _fetched(waiting)
        while waiting:
            yield _fetched(waiting)


def _started_and_fetched(start: Callable[[], jax.Array]) -> np.ndarray:
    return np.asarray(start())


def _fetched(
    waiting: collections.deque[tuple[_Label, Callable[[], np.ndarray]]],
) -> tuple[_Label, np.ndarray]:
    label, fetch = waiting.popleft()
    return label, fetch()
