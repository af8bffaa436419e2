"""The tokens of all texts of a catalogue, built once per (tokenizer, length, texts) and memory-mapped.

Ragged: no padding is stored. Out of scope: making texts (`templates`), batches of them (`packing`).
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.errors import UserError
from ltrec_jax.text.tokenizer import Tokenizer

_CHUNK = 16384


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """Text i has the tokens `values[offsets[i]:offsets[i + 1]]`; values int32[T], offsets int64[I + 1].

    `truncated` counts the texts that were cut to the longest length.
    """

    values: np.ndarray
    offsets: np.ndarray
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64[I]."""
        return np.diff(self.offsets)

    def row(self, text: int) -> np.ndarray:
        """The tokens of one text, int32."""
        return self.values[self.offsets[text] : self.offsets[text + 1]]

    def take(self, texts: np.ndarray) -> Self:
        """A store of these texts, in this order, in memory."""
        lengths = self.lengths[texts]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths)
        source = np.repeat(np.asarray(self.offsets)[:-1][texts], lengths) + within
        return type(self)(np.asarray(self.values[source]), offsets)


def build_store(texts: Sequence[str], tokenizer: Tokenizer, max_length: int, cache: Path | None = None) -> TokenStore:
    """Tokenise all texts, in parallel and in chunks; with `cache`, once per content, and mapped from there.

    A stored result that is damaged is built again, with a warning.
    """
    if cache is None:
        chunks = list(_chunks(texts, tokenizer, max_length))
        return TokenStore(*_joined(chunks), sum(cut for *_, cut in chunks))
    place = Path(cache) / storage.content_hash(tokenizer.fingerprint, max_length, list(texts))
    with storage.lock(place.with_suffix(".lock")):
        if place.is_dir():
            try:
                return _open(place, len(texts))
            except UserError as error:
                warnings.warn(f"{error} The texts are tokenised again.", stacklevel=2)
        chunks = list(_chunks(texts, tokenizer, max_length))
        values, offsets = _joined(chunks)
        with storage.new_directory(place, replace=True) as directory:
            np.save(directory / "values.npy", values, allow_pickle=False)
            np.save(directory / "offsets.npy", offsets, allow_pickle=False)
            storage.write_json(
                directory / "store.json",
                {
                    "truncated": sum(cut for *_, cut in chunks),
                    "sha256": {n: storage.sha256_file(directory / n) for n in ("values.npy", "offsets.npy")},
                },
            )
        return _open(place, len(texts))


def _chunks(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    starts = range(0, len(texts), _CHUNK)
    shown = tqdm(starts, desc="tokenise", unit="chunk", disable=len(starts) < 2)
    return [tokenizer.encode(texts[start : start + _CHUNK], max_length) for start in shown]


def _joined(chunks: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [np.diff(offsets) for _, offsets, _ in chunks]
    values = np.concatenate([np.zeros(0, np.int32), *(values for values, *_ in chunks)])
    return values, np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]).astype(np.int64)


def _open(place: Path, count: int) -> TokenStore:
    description = storage.read_json(place / "store.json")
    for name, digest in description["sha256"].items():
        if not (place / name).is_file() or storage.sha256_file(place / name) != digest:
            raise UserError(f"{place / name} is missing or changed.")
    values, offsets = (storage.read_array(place / f"{name}.npy", mapped=True) for name in ("values", "offsets"))
    if len(offsets) != count + 1:
        raise UserError(f"{place} holds {len(offsets) - 1} texts, not {count}.")
    return TokenStore(values, offsets, description["truncated"])
