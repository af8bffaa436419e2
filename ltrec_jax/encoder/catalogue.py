"""Every distinct text of a catalogue encoded once: packed rows, a few compiled shapes, on one device or several.

Out of scope: tokenizing (`text`), vectors on disk (`shards`).
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ltrec_jax import parallel
from ltrec_jax.encoder import dense, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.inference import prepare
from ltrec_jax.encoder.pooling import Pooling
from ltrec_jax.encoder.weights import Encoder
from ltrec_jax.parallel import Parallel
from ltrec_jax.text import packing
from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.text.store import TokenStore
from ltrec_jax.types import PyTree

# A program on all cores leaves some of them idle between its parts. Small programs side by side, one for each core,
# keep them busy and their activations in the core's own cache. On 2 cores with AMX, film titles (9-18 tokens) take two
# calls of 1,024 tokens at 14.4, 42 and 43 thousand tokens/s (float32, bfloat16, int8), two of 512 at 13.9, 43 and 47,
# one call alone at 12.8, 35 and 35.
_CPU_TOKENS_PER_CALL: dict[dense.Policy, int] = {"float32": 1024, "bfloat16": 512, "int8": 512}
_ACCELERATOR_TOKENS_PER_CALL = 16_384
_SHORTEST_ROW = 48
_ROW_STEP = 32
# Fewer tokens than this go through in less time than their own shape takes to compile.
_WORTH_A_SHAPE = 1 << 15
_FEWEST_SLOTS = 32
_Call = tuple[np.ndarray, np.ndarray, np.ndarray]
_Fetch = Callable[[], np.ndarray]


def default_tokens_per_call(policy: dense.Policy) -> int:
    """How many tokens go through a device at a time unless the caller says so: few on a CPU, whose caches are small."""
    return _CPU_TOKENS_PER_CALL[policy] if jax.default_backend() == "cpu" else _ACCELERATOR_TOKENS_PER_CALL


def encode_catalogue(
    encoder: Encoder,
    tokens: TokenStore,
    *,
    policy: dense.Policy = "float32",
    tokens_per_call: int | None = None,
    spread: Parallel | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Vectors of all texts, float32 [I, E]: pooled, and normalised where the encoder says so.

    Equal token sequences are encoded once. A text without tokens has a zero vector; one longer than the encoder reads
    is a `ValueError` (the tokenizer truncates). `spread` names the devices (default: the first). About
    `tokens_per_call` tokens go through a device in one call (default: `default_tokens_per_call`).
    """
    first, inverse = distinct_texts(tokens)
    texts = tokens.take(first)
    runner = make_runner(encoder, policy, row_lengths(texts.lengths), tokens_per_call, spread)
    with Progress(len(first), shown=progress) as bar:
        return runner.vectors(texts, bar.advance)[inverse]


def finish(encoder: Encoder, pooled_KxE: jax.Array) -> jax.Array:
    """What the encoder does after pooling: normalisation, where its checkpoint asks for it."""
    return pooling.normalise(pooled_KxE) if encoder.normalize else pooled_KxE


def row_lengths(lengths: np.ndarray) -> tuple[int, ...]:
    """The lengths of packed rows that texts of these lengths are worth, shortest first.

    Texts of up to 48 tokens share rows of 48. Longer ones stand alone in rows of the next multiple of 32, lengths that
    few texts have together with the next longer ones: each row length is one program to compile.
    """
    positive = np.asarray(lengths)[np.asarray(lengths) > 0]
    needed = np.maximum(-(-positive // _ROW_STEP) * _ROW_STEP, _SHORTEST_ROW)
    kept, waiting = [], 0
    for length, count in zip(*np.unique(needed, return_counts=True), strict=True):
        waiting += int(length * count)
        if waiting >= _WORTH_A_SHAPE:
            kept.append(int(length))
            waiting = 0
    if waiting:
        kept.append(int(needed.max()))
    return tuple(kept)


@dataclasses.dataclass(frozen=True)
class Runner:
    """An encoder on its devices. `rows`: lengths of rows that texts are packed into; `compiled`: shapes that ran."""

    encoder: Encoder
    policy: dense.Policy
    rows: tuple[int, ...]
    tokens_per_call: int
    spread: Parallel
    params: PyTree
    compiled: set[tuple[int, ...]] = dataclasses.field(default_factory=set)

    def vectors(self, tokens: TokenStore, advance: Callable[[int, int], None]) -> np.ndarray:
        """Vectors of all texts of a store, float32 [I, E]; equal texts are not looked for. Zeros for an empty text.

        `advance(texts, tokens)` is told what has been sent. A text longer than the encoder reads: `ValueError`.
        """
        lengths = tokens.lengths
        longest, most = int(lengths.max(initial=0)), self.encoder.config.max_positions
        if longest > most:
            raise ValueError(f"a text has {longest} tokens, the encoder reads {most}")
        vectors = np.zeros((len(tokens), self.encoder.config.hidden_size), np.float32)
        waiting: collections.deque[tuple[list[np.ndarray], int, _Fetch]] = collections.deque()
        no_key = self.spread.replicate(np.zeros((), np.uint32))
        at_once = _calls_at_once(self.spread)
        with ThreadPoolExecutor(at_once) as pool:
            for chosen, calls, num_slots in self._groups(tokens):
                encode = _compiled(
                    self.encoder.config,
                    self.policy,
                    self.encoder.pooling,
                    self.encoder.normalize,
                    self.spread,
                    num_slots,
                )
                batch = self.spread.shard(
                    tuple(np.stack(arrays) for arrays in zip(*calls[self.spread.share], strict=True))
                )
                shape = (*calls[0][0].shape, num_slots)
                if at_once > 1 and shape in self.compiled:
                    fetch = pool.submit(self._run_and_fetch, encode, batch, no_key).result
                else:  # In this thread: calls over several devices must start in one order, and one thread compiles.
                    fetch = functools.partial(np.asarray, self._run(encode, batch, no_key))
                self.compiled.add(shape)
                waiting.append((chosen, num_slots, fetch))
                # Fetching late lets the devices work while the host packs the next.
                if len(waiting) > at_once:
                    _fetch(waiting, vectors)
                advance(sum(map(len, chosen)), int(sum(lengths[texts].sum() for texts in chosen)))
            while waiting:
                _fetch(waiting, vectors)
        return vectors

    def _run(self, encode: parallel.Body, batch: PyTree, no_key: PyTree) -> jax.Array:
        found: jax.Array = self.spread.local(encode(self.params, batch, no_key)[1])
        return found

    def _run_and_fetch(self, encode: parallel.Body, batch: PyTree, no_key: PyTree) -> np.ndarray:
        return np.asarray(self._run(encode, batch, no_key))

    def _groups(self, tokens: TokenStore) -> Iterator[tuple[list[np.ndarray], list[_Call], int]]:
        """Calls of one shape, one per device: (texts of each, arrays of each, slots). The last ones may be empty."""
        for row_length in self.rows:
            chosen: list[np.ndarray] = []
            calls: list[_Call] = []
            num_slots = 0
            for texts, call, num_slots in self._calls(tokens, row_length):
                chosen.append(texts)
                calls.append(call)
                if len(calls) == self.spread.count:
                    yield chosen, calls, num_slots
                    chosen, calls = [], []
            if calls:
                ids, slot, position = calls[0]
                empty = (np.zeros_like(ids), np.full_like(slot, num_slots), np.zeros_like(position))
                yield chosen, calls + [empty] * (self.spread.count - len(calls)), num_slots

    def _calls(self, tokens: TokenStore, row_length: int) -> Iterator[tuple[np.ndarray, _Call, int]]:
        lengths = tokens.lengths
        shorter = max((length for length in self.rows if length < row_length), default=0)
        bucket = np.flatnonzero((lengths > shorter) & (lengths <= row_length))
        if not len(bucket):
            return
        rows_per_call = max(1, self.tokens_per_call // row_length)
        row, start = packing.pack(lengths[bucket], row_length)
        call_of = row // rows_per_call
        order = np.argsort(call_of, kind="stable")
        edges = np.searchsorted(call_of[order], np.arange(call_of.max() + 2))
        # A power of two: the shards of a catalogue then share a shape or two.
        num_slots = max(_FEWEST_SLOTS, 1 << (int(np.diff(edges).max()) - 1).bit_length())
        pad_id = self.encoder.config.pad_token_id
        for lower, upper in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = order[lower:upper]
            texts = bucket[part]
            ids, slot, position = packing.fill(
                tokens, texts, row[part] % rows_per_call, start[part], rows_per_call, row_length, pad_id
            )
            yield texts, (ids, np.where(slot >= len(part), num_slots, slot).astype(np.int32), position), num_slots


def make_runner(
    encoder: Encoder,
    policy: dense.Policy,
    rows: tuple[int, ...],
    tokens_per_call: int | None = None,
    spread: Parallel | None = None,
) -> Runner:
    """Place an encoder on its devices (default: the first), its parameters prepared for inference by the policy."""
    spread = spread or parallel.choose("jit")
    params = spread.replicate(prepare(jax.tree.map(jnp.asarray, encoder.params), policy))
    return Runner(encoder, policy, rows, tokens_per_call or default_tokens_per_call(policy), spread, params)


def _calls_at_once(spread: Parallel) -> int:
    """One for each core where the one device is the CPU; else one, and the device's own queue."""
    if spread.count > 1 or jax.default_backend() != "cpu":
        return 1
    # macOS and Windows cannot say how many of the cores this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Progress:
    """A bar of texts with texts/s and tokens/s."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self._bar = tqdm(total=total, unit=" texts", desc="encode", disable=not shown)
        self._tokens = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def skip(self, texts: int) -> None:
        """So many texts need no encoding."""
        self._bar.initial += texts
        self._bar.update(texts)

    def advance(self, texts: int, tokens: int) -> None:
        """So many texts and tokens more have been encoded."""
        self._tokens += tokens
        self._bar.update(texts)
        elapsed = self._bar.format_dict["elapsed"]
        if elapsed > 0:
            self._bar.set_postfix_str(f"{self._tokens / elapsed:,.0f} tokens/s", refresh=False)


@functools.cache
def _compiled(
    config: EncoderConfig, policy: dense.Policy, kind: Pooling, normalize: bool, spread: Parallel, num_slots: int
) -> parallel.Body:
    bert = Bert(config, policy)

    def encode(params: PyTree, call: PyTree, _: Any) -> tuple[None, jax.Array]:
        ids_RxL, slot_RxL, position_RxL = call
        segments_RxL = jnp.where(slot_RxL < num_slots, slot_RxL + 1, 0)
        hidden = bert.apply({"params": params}, ids_RxL, segments_RxL, position_RxL)
        pooled = pooling.pool(hidden, slot_RxL, num_slots, kind)
        finished = pooling.normalise(pooled) if normalize else pooled
        return None, parallel.gather_over_devices(finished, spread.axis)

    return spread.compile(encode, donate=False)


def _fetch(waiting: collections.deque[tuple[list[np.ndarray], int, _Fetch]], vectors: np.ndarray) -> None:
    chosen, num_slots, fetch = waiting.popleft()
    found = fetch()
    for device, texts in enumerate(chosen):
        vectors[texts] = found[device * num_slots : device * num_slots + len(texts)]
