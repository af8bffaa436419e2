"""Which items, and which of their pairs, are in which batch: a pure function of (seed, epoch, step).

The unit drawn without replacement is (item, chunk of at most `pairs_per_item` of its pairs): every pair comes once
per epoch. Out of scope: what a batch says of its units (`batches`).
"""

import dataclasses
import functools

import numpy as np

_PRIMES = np.array(
    [2147483647, 2147483629, 2147483587, 2147483579, 2147483563, 2147483549, 2147483543, 2147483497], np.int64
)


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one global batch: items, and the pairs of each (row numbers into the item-sorted interactions)."""

    item: np.ndarray
    size: np.ndarray
    pairs: np.ndarray


class UnitDealer:
    """Units of items with some events; rows of the interactions are numbered in the order of their items."""

    def __init__(
        self,
        counts_I: np.ndarray,
        lengths_I: np.ndarray | None,
        *,
        batch_pairs: int,
        batch_items: int,
        pairs_per_item: int,
        seed: int,
    ) -> None:
        """`counts_I`: events of each item; `lengths_I`: tokens of each text, None where no text is encoded.

        Only texts that are encoded are held to `batch_items` in a batch.
        """
        self._start = np.concatenate([[0], np.cumsum(counts_I)]).astype(np.int64)
        self._lengths, self._pairs_per_item, self._seed = lengths_I, pairs_per_item, seed
        self.items = np.flatnonzero(counts_I).astype(np.int32)
        """Those with events; `chunks` int [items]: units of each."""
        self.chunks = -(-counts_I[self.items] // pairs_per_item)
        self.units_per_epoch = int(self.chunks.sum())
        self.steps_per_epoch = -(-int(self._start[-1]) // batch_pairs)
        if lengths_I is not None:
            self.steps_per_epoch = max(self.steps_per_epoch, -(-self.units_per_epoch // batch_items))
        self.steps_per_epoch = min(self.steps_per_epoch, self.units_per_epoch)

    @property
    def others(self) -> float:
        """1 / how often two units meet in a batch, as a multiple of how often they would if each were dealt by itself:
        (n - 1) / (n - steps) for n units an epoch. 1 where no two ever meet."""
        n, steps = self.units_per_epoch, self.steps_per_epoch
        return (n - 1) / (n - steps) if n > steps else 1.0

    def units(self, epoch: int, step: int) -> Units:
        """The units of a global batch, the same on any number of devices.

        Items are shuffled per epoch, their chunks laid end to end and dealt to the batches like cards, so that chunks
        of one item fall into different batches (while no item has more chunks than an epoch has steps). Where texts are
        encoded the shuffled items are sorted by length before, so that every batch gets short and long ones alike and
        little of its static shape is padding. Inside an item the pairs are permuted by j -> (a j + b) mod n with a
        prime a above n: a bijection that needs no memory.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step {step} is outside an epoch of {self.steps_per_epoch} steps")
        order, offsets, deal = self._epoch(epoch)
        position = np.arange(deal[step], self.units_per_epoch, self.steps_per_epoch)
        rank = np.searchsorted(offsets, position, side="right") - 1
        item = self.items[order[rank]]
        chunk = position - offsets[rank]
        start, total = self._start[item], self._start[item + 1] - self._start[item]
        first = chunk * self._pairs_per_item
        size = np.minimum(total - first, self._pairs_per_item)
        owner = np.repeat(np.arange(len(item)), size)
        within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size) + first[owner]
        multiplier, shift = self._permutation(epoch, item)
        pairs = start[owner] + (within * multiplier[owner] + shift[owner]) % total[owner]
        return Units(item, size, pairs)

    def _permutation(self, epoch: int, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        draw = _mix(np.uint64(self._seed), np.uint64(epoch), item.astype(np.uint64))
        total = self._start[item + 1] - self._start[item]
        # A prime above the count is coprime to it, so the map is a bijection.
        multiplier = _PRIMES[(draw % np.uint64(len(_PRIMES))).astype(np.int64)] % total
        shift = ((draw >> np.uint64(8)) % total.astype(np.uint64)).astype(np.int64)
        return multiplier, shift

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a source lives as long as its run
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng([self._seed, 0xBA7C4, epoch])
        order = generator.permutation(len(self.items))
        if self._lengths is not None:
            order = order[np.argsort(self._lengths[self.items[order]], kind="stable")]
        chunks = self.chunks[order]
        return order, np.cumsum(chunks) - chunks, generator.permutation(self.steps_per_epoch)


def _mix(*words: np.ndarray | np.uint64) -> np.ndarray:
    """A 64-bit hash of words, element by element (the finaliser of SplitMix64; Steele, Lea & Flood, 2014)."""
    state = np.asarray(np.uint64(0x9E3779B97F4A7C15))
    with np.errstate(over="ignore"):
        for word in words:
            state = (state ^ word) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
