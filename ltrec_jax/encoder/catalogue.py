"""Every distinct text of a catalogue encoded once: packed rows, a few compiled shapes. Tokenizing belongs to `text`."""

import collections
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ltrec_jax.encoder import dense, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.inference import prepare
from ltrec_jax.encoder.pooling import Pooling
from ltrec_jax.encoder.weights import Encoder
from ltrec_jax.text import packing
from ltrec_jax.text.store import TokenStore
from ltrec_jax.types import Array, PyTree

_SHORTEST_ROW = 64
_SLOT_STEP = 32
_IN_FLIGHT = 2


def encode_catalogue(
    encoder: Encoder,
    tokens: TokenStore,
    *,
    policy: dense.Policy = "float32",
    tokens_per_call: int = 1024,
    progress: bool = True,
) -> np.ndarray:
    """Vectors of all texts, float32 [I, E]: pooled, and normalised where the encoder says so.

    Equal token sequences are encoded once. A text without tokens has a zero vector; one longer than the encoder reads
    is a `ValueError` (the tokenizer truncates). About `tokens_per_call` tokens go through the encoder at a time: 1,024
    is fastest on a CPU with a few MB of cache (705 texts/s of 32 tokens; 587 at 2,048), a GPU wants more.
    """
    lengths = np.asarray(tokens.lengths)
    if len(lengths) and lengths.max() > encoder.config.max_positions:
        raise ValueError(f"a text has {lengths.max()} tokens, the encoder reads {encoder.config.max_positions}")
    first, inverse = distinct_texts(tokens)
    params = prepare(jax.tree.map(jnp.asarray, encoder.params), policy)
    encode = _compiled_encode(encoder.config, policy, encoder.pooling, encoder.normalize)
    vectors = np.zeros((len(first), encoder.config.hidden_size), np.float32)
    waiting: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()
    bar = tqdm(total=len(first), unit=" texts", desc="encode", disable=not progress)
    counted = 0
    with bar:
        for chosen, call in _calls(tokens, first, tokens_per_call, encoder.config.pad_token_id):
            waiting.append((chosen, encode(params, *call)))
            # Fetching one call late lets the device work while the host packs the next.
            if len(waiting) >= _IN_FLIGHT:
                _fetch(waiting, vectors)
            counted += int(lengths[first[chosen]].sum())
            bar.update(len(chosen))
            bar.set_postfix_str(_tokens_per_second(bar, counted), refresh=False)
        while waiting:
            _fetch(waiting, vectors)
    return vectors[inverse]


def finish(encoder: Encoder, pooled_KxE: jax.Array) -> jax.Array:
    """What the encoder does after pooling: normalisation, where its checkpoint asks for it."""
    return pooling.normalise(pooled_KxE) if encoder.normalize else pooled_KxE


def distinct_texts(tokens: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """(first, inverse), int64: the first text of each distinct token sequence, and for every text its place there."""
    values, offsets = np.asarray(tokens.values), np.asarray(tokens.offsets).tolist()
    seen: dict[bytes, int] = {}
    inverse = np.empty(len(offsets) - 1, np.int64)
    first: list[int] = []
    for i in range(len(inverse)):
        key = values[offsets[i] : offsets[i + 1]].tobytes()
        place = seen.setdefault(key, len(seen))
        if place == len(first):
            first.append(i)
        inverse[i] = place
    return np.asarray(first, np.int64), inverse


@functools.cache
def _compiled_encode(
    config: EncoderConfig, policy: dense.Policy, kind: Pooling, normalize: bool
) -> Callable[..., jax.Array]:
    bert = Bert(config, policy)

    @functools.partial(jax.jit, static_argnums=4)
    def encode(params: PyTree, ids_RxL: Array, slot_RxL: Array, position_RxL: Array, num_slots: int) -> jax.Array:
        segments_RxL = jnp.where(slot_RxL < num_slots, slot_RxL + 1, 0)
        hidden = bert.apply({"params": params}, ids_RxL, segments_RxL, position_RxL)
        pooled = pooling.pool(hidden, slot_RxL, num_slots, kind)
        return pooling.normalise(pooled) if normalize else pooled

    return encode


def _calls(
    tokens: TokenStore, first: np.ndarray, tokens_per_call: int, pad_id: int
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray, int]]]:
    """(places in `first`, arguments of one encoder call), short texts first; one static shape per row length."""
    lengths = np.asarray(tokens.lengths)[first]
    for row_length in _row_lengths(lengths):
        shortest = row_length // 2 if row_length > _SHORTEST_ROW else 0
        bucket = np.flatnonzero((lengths > shortest) & (lengths <= row_length))
        rows_per_call = max(1, tokens_per_call // row_length)
        row, start = packing.pack(lengths[bucket], row_length)
        call_of = row // rows_per_call
        order = np.argsort(call_of, kind="stable")
        edges = np.searchsorted(call_of[order], np.arange(call_of.max() + 2))
        most = int(np.diff(edges).max())
        num_slots = -(-most // _SLOT_STEP) * _SLOT_STEP
        for lower, upper in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = order[lower:upper]
            chosen = bucket[part]
            ids, slot, position = packing.fill(
                tokens, first[chosen], row[part] % rows_per_call, start[part], rows_per_call, row_length, pad_id
            )
            slot = np.where(slot >= len(part), num_slots, slot).astype(np.int32)
            yield chosen, (ids, slot, position, num_slots)


def _row_lengths(lengths: np.ndarray) -> list[int]:
    """64, 128, ... up to the longest text; those that some text needs."""
    positive = lengths[lengths > 0]
    needed = np.maximum(_SHORTEST_ROW, 2 ** np.ceil(np.log2(np.maximum(positive, 1))).astype(np.int64))
    return [int(length) for length in np.unique(needed)]


def _fetch(waiting: collections.deque[tuple[np.ndarray, jax.Array]], vectors: np.ndarray) -> None:
    chosen, result = waiting.popleft()
    vectors[chosen] = np.asarray(result)[: len(chosen)]


def _tokens_per_second(bar: tqdm, counted: int) -> str:
    elapsed = bar.format_dict["elapsed"]
    return f"{counted / elapsed:,.0f} tokens/s" if elapsed > 0 else ""
