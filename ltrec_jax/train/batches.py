"""Batches that encode each text once: a pure function of (seed, epoch, step), with static shapes.

A batch holds K item slots, the packed tokens of their texts, and P rating pairs that point at slots. Every pair comes
once per epoch, and an epoch encodes sum_i ceil(n_i / R) texts for at most R pairs with each, beside those of users
where they have some (`user_texts`). There is no iterator state: a resumed run asks for the next step and gets the same
bytes.

Out of scope: what the model does with a batch, where it is placed (`parallel`), which items and pairs it has
(`dealing`), how large its shapes are (`capacities`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from ltrec_jax.data.dataset import Interactions
from ltrec_jax.text import packing
from ltrec_jax.text.store import TokenStore
from ltrec_jax.train.capacities import capacities, sampled_steps
from ltrec_jax.train.dealing import UnitDealer, Units
from ltrec_jax.train.layer_cache import HiddenStates
from ltrec_jax.train.shapes import padded, rung
from ltrec_jax.train.user_texts import Texts, UserTextDealer, UserTexts

Weights = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(item [P], rating [P]) of pairs -> what their errors weigh, float [P]."""


class Source(Protocol):
    """Batches of some units (texts, or items with their pairs) as the loop sees them: a pure function of the step.

    A batch has a `weight` and `token_places` (0 where no text is encoded), every array with a leading device axis.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def units_per_epoch(self) -> int: ...

    @property
    def user_encodings_per_epoch(self) -> int: ...

    @property
    def tokens_per_epoch(self) -> int: ...

    def batch(self, epoch: int, step: int) -> Any: ...


class Batch(NamedTuple):
    """One global batch; every array has a leading device axis. K, P, R and L are per device.

    item int32[K] (number of items = padding), gate float32[K], pair_user int32[P] (number of users = padding),
    pair_item int32[P] (slot 0..K-1), target float32[P], weight float32[P] (0 = padding), and the packed texts
    token_ids, token_slot (K = padding), token_position int32[R, L], or None where no text is encoded. `hidden`
    [R, L, E]: what leaves the frozen layers, or None where all layers are run. `log_q` float32[K]: log of the number of
    slots that the item has in a batch on average, and `user_share` float32[P]: 1 / the pairs of the user in an epoch
    (0 = padding), or None where nothing is compared with them.

    Where users have texts, `user_texts` are those of the batch's users, each distinct one once, in S slots per device,
    and pair_text int32[P] is the slot of each pair's in 0..D S - 1: those of D devices, one after the other.
    """

    item: np.ndarray
    gate: np.ndarray
    pair_user: np.ndarray
    pair_item: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    token_ids: np.ndarray | None
    token_slot: np.ndarray | None
    token_position: np.ndarray | None
    hidden: np.ndarray | None = None
    log_q: np.ndarray | None = None
    user_share: np.ndarray | None = None
    pair_text: np.ndarray | None = None
    user_texts: Texts | None = None

    @property
    def texts(self) -> Texts:
        """Those of the items."""
        return Texts(self.item, self.token_ids, self.token_slot, self.token_position, self.hidden)

    @property
    def token_places(self) -> int:
        """Tokens that the packed rows hold, padding included."""
        blocks = (self.token_ids, None if self.user_texts is None else self.user_texts.token_ids)
        return sum(ids.size for ids in blocks if ids is not None)


class BatchSource:
    """Batches of some rows of interactions. Building it sorts them by item once; a batch then costs O(its size)."""

    def __init__(
        self,
        interactions: Interactions,
        rows: np.ndarray,
        *,
        num_users: int,
        num_items: int,
        gate_I: np.ndarray,
        tokens: TokenStore | None,
        batch_pairs: int,
        batch_items: int,
        pairs_per_item: int,
        row_length: int,
        pad_id: int = 0,
        devices: int = 1,
        accumulate: int = 1,
        share: slice = slice(None),
        seed: int = 0,
        hidden: HiddenStates | None = None,
        weights: Weights | None = None,
        with_log_q: bool = False,
        user_texts: UserTexts | None = None,
        user_row_length: int = 0,
        user_hidden: HiddenStates | None = None,
    ) -> None:
        """`weights` weighs pairs (None: all alike).

        With `user_texts` batches have those of their users, packed into rows of `user_row_length` if items' are.
        """
        if len(rows) == 0:
            raise ValueError("the training part of the split is empty")
        # Columns may be memory-mapped: only the row numbers, sorted by item, are kept in memory.
        items = interactions.item[rows]
        order = np.argsort(items, kind="stable")
        narrow = np.int32 if len(interactions) <= np.iinfo(np.int32).max else np.int64
        self._rows = np.asarray(rows, narrow)[order]
        self._interactions = interactions
        counts = np.bincount(items, minlength=num_items)
        self._gate, self._tokens, self._hidden, self._weights = gate_I, tokens, hidden, weights
        self._lengths = None if tokens is None else np.asarray(tokens.lengths)
        self._num_users, self._num_items = num_users, num_items
        self._row_length, self._pad_id = row_length, pad_id
        self.devices, self.accumulate, self._share = devices, accumulate, share
        self._dealer = UnitDealer(
            counts,
            self._lengths,
            batch_pairs=batch_pairs,
            batch_items=batch_items,
            pairs_per_item=pairs_per_item,
            seed=seed,
        )
        self.units_per_epoch, self.steps_per_epoch = self._dealer.units_per_epoch, self._dealer.steps_per_epoch
        self.pairs_per_epoch = len(rows)
        self._log_q: np.ndarray | None = None
        if with_log_q:
            self._log_q = np.zeros(num_items, np.float32)
            self._log_q[self._dealer.items] = np.log(self._dealer.chunks / self.steps_per_epoch)
        self._user_counts = np.bincount(interactions.user[rows], minlength=num_users) if with_log_q else None
        slots = -(-self.units_per_epoch // self.steps_per_epoch)
        self._parts = devices * accumulate
        self._slots = -(-slots // self._parts)
        self._pair_capacity, self._row_capacity = capacities(self._needed(), steps_per_epoch=self.steps_per_epoch)
        self._users: UserTextDealer | None = None
        if user_texts is not None:
            self._users = UserTextDealer(
                user_texts,
                (self._users_of_slices(self.units(epoch, step)) for epoch, step in sampled_steps(self.steps_per_epoch)),
                packed=tokens is not None,
                row_length=user_row_length,
                pad_id=pad_id,
                devices=devices,
                steps_per_epoch=self.steps_per_epoch,
                hidden=user_hidden,
            )

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens encoded in one epoch: each unit's text once, and about those of the users' texts."""
        dealt = self._dealer
        items = 0 if self._lengths is None else int((self._lengths[dealt.items] * dealt.chunks).sum())
        return items if self._users is None else items + int(self._users.lengths_per_epoch.sum())

    @property
    def has_user_texts(self) -> bool:
        """Whether batches have the texts of their users."""
        return self._users is not None

    @property
    def user_encodings_per_epoch(self) -> int:
        """Texts of users that an epoch encodes, about: how many distinct ones a batch has is told by a sample."""
        return 0 if self._users is None else len(self._users.lengths_per_epoch)

    @property
    def lengths_per_epoch(self) -> np.ndarray:
        """Tokens of each text that an epoch encodes, int64 [units + texts of users]; none where none is encoded."""
        if self._lengths is None:
            return np.zeros(0, np.int64)
        items = np.repeat(self._lengths[self._dealer.items], self._dealer.chunks)
        return items if self._users is None else np.concatenate([items, self._users.lengths_per_epoch])

    @property
    def others(self) -> float:
        """As of its units (`UnitDealer.others`)."""
        return self._dealer.others

    def units(self, epoch: int, step: int) -> Units:
        """The units of a global batch, the same on any number of devices."""
        return self._dealer.units(epoch, step)

    def batch(self, epoch: int, step: int) -> Batch:
        """The global batch of a step, sliced for the devices: unit j goes to device j mod D.

        With `accumulate` = A above 1 unit j goes to part j mod (D A), and every array has the leading axes [D, A].
        With a `share` (a slice of 0..D-1, the devices of this process) only those slices are built, of the same shapes.
        """
        units = self.units(epoch, step)
        owner = np.repeat(np.arange(len(units.item)), units.size)
        parts = [np.flatnonzero(np.arange(len(units.item)) % self._parts == d) for d in range(self._parts)]
        pair_parts = [np.flatnonzero(owner % self._parts == d) for d in range(self._parts)]
        pair_capacity = rung(self._pair_capacity, max(len(p) for p in pair_parts))
        packed = [self._pack(units.item[part]) for part in parts]
        row_capacity = rung(self._row_capacity, max(rows for _, _, rows in packed)) if self._tokens is not None else 0
        chosen = [
            part
            for device in range(self.devices)[self._share]
            for part in range(device * self.accumulate, (device + 1) * self.accumulate)
        ]
        slices = [
            self._slice(units, parts[n], pair_parts[n], owner, packed[n], pair_capacity, row_capacity) for n in chosen
        ]
        batch = Batch._make(self._stacked(slices))
        if self._users is None:
            return batch
        slot_of_slice, blocks = self._users.blocks(self._users_of_slices(units), self._share)
        slot_of_pair = np.zeros(len(owner), np.int32)
        for number, slots in enumerate(slot_of_slice):
            slot_of_pair[owner % self.accumulate == number] = slots
        pair_text = np.stack([padded(slot_of_pair[pair_parts[n]], pair_capacity, 0) for n in chosen])
        return batch._replace(
            pair_text=pair_text.reshape(batch.pair_item.shape),
            user_texts=Texts._make(self._stacked([block for device in zip(*blocks, strict=True) for block in device])),
        )

    def _stacked(self, slices: Sequence[Batch | Texts]) -> list[np.ndarray | None]:
        """The arrays of all slices, [D, ...] or [D, A, ...]."""
        stacked = [None if arrays[0] is None else np.stack(arrays) for arrays in zip(*slices, strict=True)]
        if self.accumulate > 1:
            stacked = [a if a is None else a.reshape(-1, self.accumulate, *a.shape[1:]) for a in stacked]
        return stacked

    def _users_of_slices(self, units: Units) -> list[np.ndarray]:
        """The users of the pairs of each of the slices that go through one after the other, of all devices."""
        number = np.repeat(np.arange(len(units.item)), units.size) % self.accumulate
        users = self._interactions.user[self._rows[units.pairs]]
        return [users[number == slice_] for slice_ in range(self.accumulate)]

    def _slice(
        self,
        units: Units,
        part: np.ndarray,
        pairs: np.ndarray,
        owner: np.ndarray,
        layout: tuple[np.ndarray, np.ndarray, int],
        pair_capacity: int,
        row_capacity: int,
    ) -> Batch:
        rows = self._rows[units.pairs[pairs]]
        log_q = None if self._log_q is None else padded(self._log_q[units.item[part]], self._slots, 0.0)
        ratings = self._interactions.rating[rows]
        if self._weights is None:
            weight = np.ones(len(rows), np.float32)
        else:
            weight = self._weights(units.item[owner[pairs]], ratings).astype(np.float32)
        users = self._interactions.user[rows]
        share = None
        if self._user_counts is not None:
            share = padded((1.0 / self._user_counts[users]).astype(np.float32), pair_capacity, 0.0)
        items = padded(units.item[part], self._slots, self._num_items)
        gate = padded(self._gate[units.item[part]].astype(np.float32), self._slots, 0.0)
        token_ids = token_slot = token_position = hidden = None
        if self._tokens is not None:
            row, start, _ = layout
            token_ids, token_slot, token_position = packing.fill(
                self._tokens, units.item[part], row, start, row_capacity, self._row_length, self._pad_id
            )
            if self._hidden is not None:
                hidden = self._hidden.packed(units.item[part], token_slot, token_position)
            token_slot = np.where(token_slot == len(part), self._slots, token_slot).astype(np.int32)
        return Batch(
            item=items,
            gate=gate,
            pair_user=padded(users, pair_capacity, self._num_users),
            pair_item=padded((owner[pairs] // self._parts).astype(np.int32), pair_capacity, 0),
            target=padded(ratings, pair_capacity, 0.0),
            weight=padded(weight, pair_capacity, 0.0),
            token_ids=token_ids,
            token_slot=token_slot,
            token_position=token_position,
            hidden=hidden,
            log_q=log_q,
            user_share=share,
        )

    def _pack(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        if self._lengths is None:
            return np.zeros(0, np.int32), np.zeros(0, np.int32), 0
        row, start = packing.pack(self._lengths[items], self._row_length)
        return row, start, int(row.max(initial=-1)) + 1

    def _needed(self) -> Iterator[tuple[int, int]]:
        """The pairs and token rows that each slice of some batches needs."""
        for epoch, step in sampled_steps(self.steps_per_epoch):
            units = self.units(epoch, step)
            for first in range(self._parts):
                part = slice(first, None, self._parts)
                yield int(units.size[part].sum()), self._pack(units.item[part])[2]


def prefetch(source: Source, first: int, last: int, place: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
    """(global step, placed batch) for steps `first` .. `last` - 1; the next one is built and sent while one is used."""

    def produce(step: int) -> Any:
        epoch, within = divmod(step, source.steps_per_epoch)
        return place(source.batch(epoch, within))

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        upcoming = pool.submit(produce, first) if first < last else None
        for step in range(first, last):
            assert upcoming is not None
            batch = upcoming.result()
            upcoming = pool.submit(produce, step + 1) if step + 1 < last else None
            yield step, batch
