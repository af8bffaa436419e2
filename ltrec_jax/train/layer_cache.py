"""Hidden states above the frozen lowest layers: computed once per distinct text, kept on disk, trained on from there.

Stored as the layers' products take them: bfloat16 where the encoder computes in bfloat16, else float32 (the same result
as without the cache, to float32 rounding). Out of scope: which layers are frozen (`state`), batches (`batches`).
"""

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util

from ltrec_jax import storage
from ltrec_jax.config import Precision
from ltrec_jax.encoder import calls, catalogue, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.calls import Call
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.inference import prepare
from ltrec_jax.encoder.pooling import Pooling
from ltrec_jax.encoder.weights import Encoder
from ltrec_jax.errors import UserError
from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.text.store import TokenStore
from ltrec_jax.types import Array, PyTree

# NumPy's files know no bfloat16: its bits are stored as uint16.
_STORED: dict[Precision, type] = {"float32": np.float32, "bfloat16": np.uint16}
_MOST_BYTES = 32 << 30
"""Stored states beyond that are removed, those used longest ago first. A million texts of 13 tokens take 19 GiB at
width 768 in bfloat16: the states of one such catalogue stay beside those of smaller ones."""
# Seconds: another process may be computing the states of millions of texts.
_LONGEST_WAIT = 7 * 86400.0


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """What leaves the lowest `layers` layers: text i's n_i tokens have values[starts[i] : starts[i] + n_i].

    values float32 or bfloat16 [T, E], mapped from disk; starts int64 [I].
    """

    values: np.ndarray
    starts: np.ndarray
    layers: int

    def packed(self, items_K: np.ndarray, slot_RxL: np.ndarray, position_RxL: np.ndarray) -> np.ndarray:
        """The states of packed rows, [R, L, E]; a slot from K on is padding and gives zeros."""
        used = slot_RxL < len(items_K)
        rows = self.starts[items_K][slot_RxL[used]] + position_RxL[used]
        packed = np.zeros((*slot_RxL.shape, self.values.shape[1]), self.values.dtype)
        packed[used] = self.values[rows]
        return packed


def open_hidden_states(
    encoder: Encoder, tokens: TokenStore, layers: int, precision: Precision, cache: Path
) -> HiddenStates:
    """The states of all texts above the lowest `layers` layers, from `cache` or computed into it, whole or not at all.

    The key is a hash of what they depend on: the weights of embeddings and those layers, the distinct tokens, the
    precision. A stored result that is damaged is computed again, with a warning. After a computation the cache is kept
    to `_MOST_BYTES`.
    """
    first, inverse = distinct_texts(tokens)
    texts = tokens.take(first)
    place = Path(cache) / _key(encoder, texts, layers, precision)
    with storage.lock(place.with_suffix(".lock"), timeout=_LONGEST_WAIT):
        values = _read(place, texts, encoder, precision)
        if values is None:
            with storage.new_directory(place, replace=True) as directory:
                _compute(directory / "values.npy", encoder, texts, layers, precision)
            values = _read(place, texts, encoder, precision)
            assert values is not None
            _prune(place)
        # A directory is as old as its last use.
        os.utime(place)
    return HiddenStates(values, texts.offsets[:-1][inverse], layers)


def empty_hidden_states(encoder: Encoder, tokens: TokenStore, layers: int, precision: Precision) -> HiddenStates:
    """States of the right shape that are all zero and take no memory, to plan with."""
    zero = np.zeros((), ml_dtypes.bfloat16 if precision == "bfloat16" else np.float32)
    values = np.broadcast_to(zero, (len(tokens.values), encoder.config.hidden_size))
    return HiddenStates(values, np.asarray(tokens.offsets[:-1]), layers)


def stored_bytes(encoder: Encoder, tokens: TokenStore, precision: Precision) -> int:
    """What the states of all texts take on disk."""
    texts = tokens.take(distinct_texts(tokens)[0])
    return len(texts.values) * encoder.config.hidden_size * np.dtype(_STORED[precision]).itemsize


def pooled_texts(
    encoder: Encoder, params: PyTree, hidden: HiddenStates, tokens: TokenStore, items: np.ndarray, precision: Precision
) -> np.ndarray:
    """Vectors of these texts under the encoder's `params`, float32 [n, E]; only the layers above the stored are run."""
    vectors = np.zeros((len(items), encoder.config.hidden_size), np.float32)

    def jobs() -> Iterator[tuple[Call, Hashable, Callable[[], jax.Array]]]:
        for call in _calls(tokens.take(items), encoder, precision):
            encode = _upper(encoder.config, precision, encoder.pooling, encoder.normalize, hidden.layers, call.slots)
            states = hidden.packed(items[call.texts], call.slot, call.position)
            yield call, call.shape, functools.partial(encode, params, states, call.slot)

    for call, found in calls.side_by_side(jobs(), calls.calls_at_once(), set()):
        vectors[call.texts] = found[: len(call.texts)]
    return vectors


def _prune(kept: Path) -> None:
    """Remove what was used longest ago beyond `_MOST_BYTES`, but `kept` and what others are opening or computing.

    What a killed computation left behind counts, and goes, like the rest.
    """
    room = _MOST_BYTES
    for _, size, place in sorted(_stored(kept.parent), key=lambda each: (each[2] == kept, each[0]), reverse=True):
        room -= size
        if room >= 0 or place == kept:
            continue
        key = place.name.lstrip(".").partition(storage.TEMPORARY_MARK)[0]
        # Windows removes nothing that is mapped: it stays for another time.
        gone = contextlib.suppress(PermissionError, FileNotFoundError)
        with storage.lock_if_free(kept.parent / f"{key}.lock") as free, gone:
            if free:
                storage.remove_directory(place)


def _stored(cache: Path) -> list[tuple[int, int, Path]]:
    """(last use in nanoseconds, bytes, directory) of everything in the cache."""
    found = []
    for place in cache.iterdir():
        # Another process may be removing it.
        with contextlib.suppress(FileNotFoundError):
            if place.is_dir():
                size = sum(file.stat().st_size for file in place.iterdir())
                found.append((place.stat().st_mtime_ns, size, place))
    return found


def _key(encoder: Encoder, texts: TokenStore, layers: int, precision: Precision) -> str:
    flat = traverse_util.flatten_dict(encoder.params)
    frozen = [path for path in sorted(flat) if path[0] == "embeddings" or path[:2] == ("encoder", "layer")]
    frozen = [path for path in frozen if path[0] == "embeddings" or int(path[2]) < layers]
    weights = [part for path in frozen for part in ("/".join(path), np.asarray(flat[path]))]
    settings = (dataclasses.asdict(encoder.config), layers, precision)
    return storage.content_hash(*settings, *weights, np.asarray(texts.values), np.asarray(texts.offsets))


def _read(place: Path, texts: TokenStore, encoder: Encoder, precision: Precision) -> np.ndarray | None:
    """The stored values if they are there and whole. (The key names their content; they are renamed into place.)"""
    if not place.is_dir():
        return None
    try:
        values = storage.read_array(place / "values.npy", mapped=True)
        if values.shape != (wanted := (len(texts.values), encoder.config.hidden_size)):
            raise UserError(f"{place / 'values.npy'} is damaged: it has shape {values.shape}, not {wanted}.")
    except UserError as error:
        warnings.warn(f"{error} The hidden states are computed again.", stacklevel=2)
        return None
    return values.view(ml_dtypes.bfloat16) if precision == "bfloat16" else values


def _compute(path: Path, encoder: Encoder, texts: TokenStore, layers: int, precision: Precision) -> None:
    shape = (len(texts.values), encoder.config.hidden_size)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=_STORED[precision], shape=shape)
    params = prepare(jax.tree.map(jnp.asarray, encoder.params), precision)
    run = _lower(encoder.config, precision, layers)

    def jobs() -> Iterator[tuple[Call, Hashable, Callable[[], jax.Array]]]:
        for call in _calls(texts, encoder, precision):
            segments = np.where(call.slot < call.slots, call.slot + 1, 0)
            yield call, call.ids.shape, functools.partial(run, params, call.ids, segments, call.position)

    with catalogue.Progress(len(texts)) as bar:
        for call, states in calls.side_by_side(jobs(), calls.calls_at_once(), set()):
            used = call.slot < call.slots
            where = texts.offsets[call.texts][call.slot[used]] + call.position[used]
            values[where] = states[used].view(_STORED[precision])
            bar.advance(len(call.texts), len(where))
    values.flush()


def _calls(tokens: TokenStore, encoder: Encoder, precision: Precision) -> Iterator[Call]:
    return calls.packed_calls(tokens, calls.row_lengths(tokens.lengths), precision, encoder.config.pad_token_id)


@functools.cache
def _lower(config: EncoderConfig, precision: Precision, layers: int) -> Callable[..., jax.Array]:
    bert = Bert(config, precision)

    @jax.jit
    def run(params: PyTree, ids_RxL: jax.Array, segments_RxL: jax.Array, position_RxL: jax.Array) -> jax.Array:
        hidden = bert.apply({"params": params}, ids_RxL, segments_RxL, position_RxL, method="embed")
        hidden = bert.apply({"params": params}, hidden, segments_RxL, 0, layers, method="run_layers")
        return hidden.astype(precision)

    return run


@functools.cache
def _upper(
    config: EncoderConfig, precision: Precision, kind: Pooling, normalize: bool, layers: int, slots: int
) -> Callable[..., jax.Array]:
    bert = Bert(config, precision)

    @jax.jit
    def encode(params: PyTree, hidden_RxLxE: jax.Array, slot_RxL: jax.Array) -> jax.Array:
        states = run_above(bert, params, hidden_RxLxE, slot_RxL, slots, layers)
        pooled = pooling.pool(states, slot_RxL, slots, kind)
        return pooling.normalise(pooled) if normalize else pooled

    return encode


def run_above(bert: Bert, params: PyTree, hidden_RxLxE: Array, slot_RxL: Array, slots: int, layers: int) -> jax.Array:
    """Hidden states of the last layer from stored ones, float32 [R, L, E]; the slot `slots` is padding."""
    segments_RxL = jnp.where(slot_RxL < slots, slot_RxL + 1, 0)
    states = jnp.asarray(hidden_RxLxE, jnp.float32)
    return bert.apply({"params": params}, states, segments_RxL, layers, method="run_layers")
