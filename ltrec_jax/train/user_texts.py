"""The texts of a batch's users beside those of its items: each distinct one once, dealt to the devices, packed.

Many users share a profile text, and a user has pairs with many items: what is encoded are the distinct texts of all
pairs of the global batch, each on one device; the vectors are gathered from all of them (`pair_loss`). The slices of an
accumulated batch go through one after the other, so that each has texts of its own, and a text that is in two of them
is encoded twice. Out of scope: which pairs are in a batch (`batches`).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np

from ltrec_jax.text import packing
from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.text.store import TokenStore
from ltrec_jax.train.layer_cache import HiddenStates
from ltrec_jax.train.shapes import padded, rung

_SLOTS_MULTIPLE = 8


class Texts(NamedTuple):
    """The texts of some slots as the encoder takes them; in a batch every array has a leading device axis.

    name int32[K] tells which text (item, or distinct text of users) a slot holds, a number beyond them all padding. The
    packed texts token_ids, token_slot (K = padding), token_position int32[R, L] are None where none is encoded;
    `hidden` [R, L, E]: what leaves the frozen layers, or None where all layers are run.
    """

    name: np.ndarray
    token_ids: np.ndarray | None
    token_slot: np.ndarray | None
    token_position: np.ndarray | None
    hidden: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class UserTexts:
    """`tokens`: the distinct texts T of users; `text_U` int32 [U]: which of them is a user's."""

    tokens: TokenStore
    text_U: np.ndarray

    @classmethod
    def of(cls, tokens: TokenStore) -> Self:
        """From one text per user."""
        first, inverse = distinct_texts(tokens)
        return cls(tokens.take(first), inverse.astype(np.int32))


class Deal(NamedTuple):
    """Texts of one slice of a batch: device d of D has `texts`[d], and pair p's text is number `rank`[p] of them all in
    the order (0, device 0), (0, device 1), .. (1, device 0), .."""

    texts: list[np.ndarray]
    rank: np.ndarray


class UserTextDealer:
    """Blocks of user texts for batches, of few shapes, which a sample of batches decides."""

    def __init__(
        self,
        users: UserTexts,
        samples: Iterable[Sequence[np.ndarray]],
        *,
        packed: bool,
        row_length: int,
        pad_id: int,
        devices: int,
        steps_per_epoch: int,
        hidden: HiddenStates | None = None,
    ) -> None:
        """`samples`: batches, each as the users of the pairs of its slices. Not `packed`: nothing is encoded."""
        self._users, self._hidden, self._devices = users, hidden, devices
        self._packed, self._row_length, self._pad_id = packed, row_length, pad_id
        self._lengths = np.asarray(users.tokens.lengths)
        slots, rows, batches, lengths = 1, 1, 0, [np.zeros(0, np.int64)]
        for slices in samples:
            batches += 1
            for deal in map(self._deal, slices):
                slots = max(slots, len(deal.texts[0]))
                rows = max(rows, *(self._pack(texts)[2] for texts in deal.texts))
                lengths.extend(self._lengths[texts] for texts in deal.texts)
        more_slots, more_rows = (1.05, 1.05) if steps_per_epoch > 1 else (1.0, 1.0)
        slots = -(-int(slots * more_slots) // _SLOTS_MULTIPLE) * _SLOTS_MULTIPLE
        self._slot_capacity = min(slots, -(-len(self._lengths) // devices))
        self._row_capacity = int(np.ceil(rows * more_rows))
        seen = np.concatenate(lengths)
        each = round(len(seen) / max(batches, 1) * steps_per_epoch)
        self.lengths_per_epoch = np.resize(seen, each) if packed else seen[:0]
        """Tokens of the texts that an epoch encodes, about, by the sample; int64 [encodings]."""

    def blocks(
        self, slices: Sequence[np.ndarray], share: slice = slice(None)
    ) -> tuple[list[np.ndarray], list[list[Texts]]]:
        """For the users int [P] of the pairs of each slice: the slot of each pair's text int32 [P], counted over the
        gathered slots of all devices (device after device), and each slice's blocks, one for each device of `share`."""
        deals = [self._deal(users) for users in slices]
        layouts = [[self._pack(texts) for texts in deal.texts] for deal in deals]
        slots = rung(self._slot_capacity, max(len(deal.texts[0]) for deal in deals))
        rows = rung(self._row_capacity, max(rows for layout in layouts for *_, rows in layout))
        of_pairs = [(deal.rank % self._devices * slots + deal.rank // self._devices).astype(np.int32) for deal in deals]
        mine = range(self._devices)[share]
        blocks = [
            [self._block(deal.texts[device], layout[device], slots, rows) for device in mine]
            for deal, layout in zip(deals, layouts, strict=True)
        ]
        return of_pairs, blocks

    def _deal(self, users_P: np.ndarray) -> Deal:
        """Sorted by length before they are dealt, so that the devices' rows are alike."""
        distinct, place = np.unique(self._users.text_U[users_P], return_inverse=True)
        order = np.argsort(self._lengths[distinct], kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        dealt = distinct[order]
        return Deal([dealt[device :: self._devices] for device in range(self._devices)], rank[place])

    def _pack(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        if not self._packed:
            return np.zeros(0, np.int32), np.zeros(0, np.int32), 0
        row, start = packing.pack(self._lengths[texts], self._row_length)
        return row, start, int(row.max(initial=-1)) + 1

    def _block(self, texts: np.ndarray, layout: tuple[np.ndarray, np.ndarray, int], slots: int, rows: int) -> Texts:
        name = padded(texts.astype(np.int32), slots, len(self._lengths))
        if not self._packed:
            return Texts(name, None, None, None, None)
        row, start, _ = layout
        ids, slot, position = packing.fill(self._users.tokens, texts, row, start, rows, self._row_length, self._pad_id)
        hidden = None if self._hidden is None else self._hidden.packed(texts, slot, position)
        slot = np.where(slot == len(texts), slots, slot).astype(np.int32)
        return Texts(name, ids, slot, position, hidden)
