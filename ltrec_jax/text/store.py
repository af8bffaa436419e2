"""The tokens of all texts of a catalogue, built once per (tokenizer, length, texts) and memory-mapped.

Ragged: no padding is stored. Out of scope: making texts (`templates`), batches of them (`packing`).
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self

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
        """A store of these texts, in this order, in memory. Costs what the texts taken cost, however many there are."""
        starts = np.asarray(self.offsets[texts])
        lengths = self.offsets[np.asarray(texts, np.int64) + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths)
        source = np.repeat(starts, lengths) + within
        return type(self)(np.asarray(self.values[source]), offsets)


def build_store(texts: Sequence[str], tokenizer: Tokenizer, max_length: int, cache: Path | None = None) -> TokenStore:
    """Tokenise all texts, in parallel and in chunks; with `cache`, once per content, and mapped from there.

    With `cache` no more than one chunk of tokens is in memory, however many texts there are. A stored result that is
    damaged is built again, with a warning.
    """
    if cache is None:
        parts = list(tokenizer.encode_chunks(_chunks(texts), max_length))
        return TokenStore(
            np.concatenate([np.zeros(0, np.int32), *(values for values, *_ in parts)]),
            _offsets(lengths for _, lengths, _ in parts),
            sum(cut for *_, cut in parts),
        )
    place = Path(cache) / _key(texts, tokenizer, max_length)
    with storage.lock(place.with_suffix(".lock")):
        if place.is_dir():
            try:
                return _open(place, len(texts))
            except UserError as error:
                warnings.warn(f"{error} The texts are tokenised again.", stacklevel=2)
        with storage.new_directory(place, replace=True) as directory:
            write_store(directory, _chunks(texts), tokenizer, max_length)
        return _open(place, len(texts))


def _key(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> str:
    # A hash of hashes: to hash all texts at once they would first be copied into one string.
    pieces = (storage.content_hash(list(texts[start : start + _CHUNK])) for start in range(0, len(texts), _CHUNK))
    return storage.content_hash(tokenizer.fingerprint, max_length, *pieces)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    starts = range(0, len(texts), _CHUNK)
    return (texts[start : start + _CHUNK] for start in tqdm(starts, "tokenise", unit="chunk", disable=len(starts) < 2))


def _offsets(lengths: Iterable[np.ndarray]) -> np.ndarray:
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))


def write_store(directory: Path, chunks: Iterable[Sequence[str]], tokenizer: Tokenizer, max_length: int) -> None:
    """Tokenise texts as they come, in chunks of the caller's size, into an existing directory that `open_store` reads.

    One chunk's tokens are in memory at a time, and eight bytes per text.
    """
    lengths: list[np.ndarray] = []
    truncated = 0
    with (directory / "values.npy").open("wb") as stream:
        _values_header(stream, 0)
        for values, each, cut in tokenizer.encode_chunks(chunks, max_length):
            stream.write(values.tobytes())
            lengths.append(each)
            truncated += cut
        offsets = _offsets(lengths)
        # How many tokens there are is known only now; NumPy leaves room in the header for a longer first axis.
        stream.seek(0)
        _values_header(stream, int(offsets[-1]))
    np.save(directory / "offsets.npy", offsets, allow_pickle=False)
    storage.write_json(
        directory / "store.json",
        {
            "truncated": truncated,
            "sha256": {n: storage.sha256_file(directory / n) for n in ("values.npy", "offsets.npy")},
        },
    )


def _values_header(stream: BinaryIO, count: int) -> None:
    header = {"descr": np.dtype(np.int32).str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, header)


def open_store(place: Path) -> TokenStore:
    """Map a store that `write_store` made; one that is missing, changed or inconsistent is a `UserError`."""
    description = storage.read_json(place / "store.json")
    if not isinstance(description, dict) or not {"sha256", "truncated"} <= description.keys():
        raise UserError(f"{place / 'store.json'} is damaged: it lacks its entries.")
    for name, digest in description["sha256"].items():
        if not (place / name).is_file() or storage.sha256_file(place / name) != digest:
            raise UserError(f"{place / name} is missing or changed.")
    values, offsets = (storage.read_array(place / f"{name}.npy", mapped=True) for name in ("values", "offsets"))
    if len(values) != offsets[-1]:
        raise UserError(f"{place} is damaged: {len(values)} tokens, not {offsets[-1]}.")
    return TokenStore(values, offsets, description["truncated"])


def _open(place: Path, count: int) -> TokenStore:
    store = open_store(place)
    if len(store) != count:
        raise UserError(f"{place} holds {len(store)} texts, not {count}.")
    return store
