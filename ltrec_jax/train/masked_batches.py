"""Batches of masked texts: a pure function of (seed, epoch, step), packed, with static shapes.

An epoch has every text once. What is hidden is drawn anew in every epoch, for the whole global batch at once, so that
it does not depend on the number of devices. Out of scope: which tokens may be hidden (`text.masking`), the model.
"""

import functools
from typing import NamedTuple

import numpy as np

from ltrec_jax.text import masking, packing
from ltrec_jax.text.masking import Maskable
from ltrec_jax.text.store import TokenStore
from ltrec_jax.train.shapes import padded, rung

_SAMPLED_STEPS = 16
_SLACK = 1.15


class MaskedBatch(NamedTuple):
    """One global batch; every array has a leading device axis. R, L and M are per device.

    The packed texts token_ids, segment_ids (0 = padding, else 1 + the text's place in the global batch), token_position
    int32[R, L]; and of the M hidden tokens their place in the flattened rows, masked_place int32[M], what they were,
    target int32[M], and weight float32[M] (0 = padding).
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    token_position: np.ndarray
    masked_place: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    @property
    def token_places(self) -> int:
        """Tokens that the packed rows hold, padding included."""
        return self.token_ids.size


class MaskedSource:
    """Masked batches of the texts of a store. Texts are dealt by length, so that every batch packs alike."""

    user_encodings_per_epoch = 0

    def __init__(
        self,
        tokens: TokenStore,
        vocabulary: Maskable,
        *,
        batch_tokens: int,
        row_length: int,
        pad_id: int,
        mask_share: float = masking.SHARE,
        whole_words: bool = True,
        every_text: bool = False,
        devices: int = 1,
        share: slice = slice(None),
        seed: int = 0,
    ) -> None:
        """`share`: the slices of a batch, one for each of the `devices`, that this process builds.

        `every_text`: every text has something to guess (see `masking.corrupt`), as a measurement needs it.
        """
        if len(tokens) == 0:
            raise ValueError("there are no texts")
        self._tokens, self._vocabulary = tokens, vocabulary
        self._lengths = np.asarray(tokens.lengths)
        self._row_length, self._pad_id = row_length, pad_id
        self._mask_share, self._whole_words, self._every_text = mask_share, whole_words, every_text
        self.devices, self.seed, self._share = devices, seed, share
        self.units_per_epoch = len(tokens)
        self.tokens_per_epoch = int(self._lengths.sum())
        self.steps_per_epoch = min(max(1, -(-self.tokens_per_epoch // batch_tokens)), len(tokens))
        self._row_capacity, self._masked_capacity = self._measure()

    def texts(self, epoch: int, step: int) -> np.ndarray:
        """The texts of a global batch, int64, the same on any number of devices."""
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step {step} is outside an epoch of {self.steps_per_epoch} steps")
        order, deal = self._epoch(epoch)
        return order[deal[step] :: self.steps_per_epoch]

    def batch(self, epoch: int, step: int) -> MaskedBatch:
        """The global batch of a step; text j of it goes to device j mod D.

        With a `share` (a slice of 0..D-1, the devices of this process) only those slices are built, of the same shapes.
        """
        taken = self._tokens.take(self.texts(epoch, step))
        shown, chosen = masking.corrupt(
            taken.values,
            taken.offsets,
            self._vocabulary,
            np.random.default_rng([self.seed, 0x3A5C, epoch, step]),
            share=self._mask_share,
            whole_words=self._whole_words,
            every_text=self._every_text,
        )
        reads = TokenStore(shown, taken.offsets)
        answers = TokenStore(np.where(chosen, taken.values, -1).astype(np.int32), taken.offsets)
        parts = [np.arange(device, len(taken), self.devices) for device in range(self.devices)]
        layouts = [packing.pack(taken.lengths[part], self._row_length) for part in parts]
        rows = rung(self._row_capacity, max(int(row.max(initial=-1)) + 1 for row, _ in layouts))
        hidden_of_text = np.diff(np.concatenate([[0], np.cumsum(chosen)])[taken.offsets])
        hidden = rung(self._masked_capacity, max(int(hidden_of_text[part].sum()) for part in parts))
        slices = []
        for part, layout in list(zip(parts, layouts, strict=True))[self._share]:
            ids, slot, position = packing.fill(reads, part, *layout, rows, self._row_length, self._pad_id)
            answer = packing.fill(answers, part, *layout, rows, self._row_length, -1)[0].reshape(-1)
            place = np.flatnonzero(answer >= 0).astype(np.int32)
            segments = np.append(part + 1, 0)[slot].astype(np.int32)
            guessed = (place, answer[place], np.ones(len(place), np.float32))
            slices.append((ids, segments, position, *(padded(values, hidden, 0) for values in guessed)))
        return MaskedBatch._make(np.stack(arrays) for arrays in zip(*slices, strict=True))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a source lives as long as its run
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng([self.seed, 0x7E875, epoch])
        order = generator.permutation(len(self._lengths))
        order = order[np.argsort(self._lengths[order], kind="stable")]
        return order, generator.permutation(self.steps_per_epoch)

    def _measure(self) -> tuple[int, int]:
        """Capacities per device, of rows and of hidden tokens, that nearly every batch fits."""
        rows = tokens = texts = 1
        for step in np.unique(np.linspace(0, self.steps_per_epoch - 1, _SAMPLED_STEPS).astype(int)):
            lengths = self._lengths[self.texts(0, int(step))]
            for device in range(self.devices):
                part = lengths[device :: self.devices]
                rows = max(rows, int(packing.pack(part, self._row_length)[0].max(initial=-1)) + 1)
                tokens, texts = max(tokens, int(part.sum())), max(texts, len(part))
        masked = max(self._mask_share * tokens * _SLACK + 2 * np.sqrt(tokens), texts * self._every_text)
        return rows if self.steps_per_epoch == 1 else int(np.ceil(rows * 1.02)), -(-int(masked) // 16) * 16
