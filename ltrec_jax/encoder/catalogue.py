"""Every distinct text of a catalogue encoded once: packed rows, a few compiled shapes, on one device or several.

Out of scope: tokenizing (`text`), calls and what runs side by side (`calls`), vectors on disk (`shards`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ltrec_jax import parallel
from ltrec_jax.encoder import calls, dense, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.calls import Call
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.inference import prepare
from ltrec_jax.encoder.pooling import Pooling
from ltrec_jax.encoder.weights import Encoder
from ltrec_jax.parallel import Parallel
from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.text.store import TokenStore
from ltrec_jax.types import PyTree


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
    `tokens_per_call` tokens go through a device in one call (default: `calls.default_tokens_per_call`).
    """
    first, inverse = distinct_texts(tokens)
    texts = tokens.take(first)
    runner = make_runner(encoder, policy, calls.row_lengths(texts.lengths), tokens_per_call, spread)
    with Progress(len(first), shown=progress) as bar:
        return runner.vectors(texts, bar.advance)[inverse]


def finish(encoder: Encoder, pooled_KxE: jax.Array) -> jax.Array:
    """What the encoder does after pooling: normalisation, where its checkpoint asks for it."""
    return pooling.normalise(pooled_KxE) if encoder.normalize else pooled_KxE


@dataclasses.dataclass(frozen=True)
class Runner:
    """An encoder on its devices. `rows`: lengths of rows that texts are packed into; `compiled`: shapes that ran.

    `prompt_tokens`: how many of each text's first tokens are a prompt that is read and not pooled. `tokens_per_call`:
    None for what suits the device and the length of rows.
    """

    encoder: Encoder
    policy: dense.Policy
    rows: tuple[int, ...]
    tokens_per_call: int | None
    spread: Parallel
    params: PyTree
    prompt_tokens: int = 0
    compiled: set[Hashable] = dataclasses.field(default_factory=set)

    def vectors(self, tokens: TokenStore, advance: Callable[[int, int], None]) -> np.ndarray:
        """Vectors of all texts of a store, float32 [I, E]; equal texts are not looked for. Zeros for an empty text.

        `advance(texts, tokens)` is told what has come back. A text longer than the encoder reads: `ValueError`.
        """
        lengths = tokens.lengths
        longest, most = int(lengths.max(initial=0)), self.encoder.config.max_positions
        if longest > most:
            raise ValueError(f"a text has {longest} tokens, the encoder reads {most}")
        vectors = np.zeros((len(tokens), self.encoder.config.hidden_size), np.float32)
        at_once = calls.calls_at_once(self.spread.count)
        for group, found in calls.side_by_side(self._jobs(tokens), at_once, self.compiled):
            for device, call in enumerate(group):
                vectors[call.texts] = found[device * call.slots : device * call.slots + len(call.texts)]
            advance(sum(len(call.texts) for call in group), int(sum(lengths[call.texts].sum() for call in group)))
        return vectors

    def _jobs(self, tokens: TokenStore) -> Iterator[tuple[list[Call], Hashable, Callable[[], jax.Array]]]:
        no_key = self.spread.replicate(np.zeros((), np.uint32))
        for group in self._groups(tokens):
            slots = group[0].slots
            encode = _compiled(
                self.encoder.config,
                self.policy,
                self.encoder.pooling,
                self.encoder.normalize,
                self.spread,
                slots,
                self.prompt_tokens,
            )
            arrays = ((call.ids, call.slot, call.position) for call in group[self.spread.share])
            batch = self.spread.shard(tuple(np.stack(each) for each in zip(*arrays, strict=True)))
            yield group, group[0].shape, functools.partial(self._run, encode, batch, no_key)

    def _run(self, encode: parallel.Body, batch: PyTree, no_key: PyTree) -> jax.Array:
        found: jax.Array = self.spread.local(encode(self.params, batch, no_key)[1])
        return found

    def _groups(self, tokens: TokenStore) -> Iterator[list[Call]]:
        """Calls of one shape, one per device. The last ones of a shape may be empty."""
        pad_id = self.encoder.config.pad_token_id
        packed = calls.packed_calls(tokens, self.rows, self.policy, pad_id, self.tokens_per_call)
        for _, alike in itertools.groupby(packed, key=lambda call: call.shape):
            while group := list(itertools.islice(alike, self.spread.count)):
                yield group + [group[0].emptied()] * (self.spread.count - len(group))


def make_runner(
    encoder: Encoder,
    policy: dense.Policy,
    rows: tuple[int, ...],
    tokens_per_call: int | None = None,
    spread: Parallel | None = None,
    prompt_tokens: int = 0,
) -> Runner:
    """Place an encoder on its devices (default: the first), its parameters prepared for inference by the policy."""
    spread = spread or parallel.choose("jit")
    params = spread.replicate(prepare(jax.tree.map(jnp.asarray, encoder.params), policy))
    return Runner(encoder, policy, rows, tokens_per_call, spread, params, prompt_tokens)


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
    config: EncoderConfig,
    policy: dense.Policy,
    kind: Pooling,
    normalize: bool,
    spread: Parallel,
    num_slots: int,
    prompt_tokens: int,
) -> parallel.Body:
    bert = Bert(config, dense.for_inference(policy))

    def encode(params: PyTree, call: PyTree, _: Any) -> tuple[None, jax.Array]:
        ids_RxL, slot_RxL, position_RxL = call
        segments_RxL = jnp.where(slot_RxL < num_slots, slot_RxL + 1, 0)
        hidden = bert.apply({"params": params}, ids_RxL, segments_RxL, position_RxL)
        if prompt_tokens and kind != "cls":
            slot_RxL = jnp.where(position_RxL < prompt_tokens, num_slots, slot_RxL)
        pooled = pooling.pool(hidden, slot_RxL, num_slots, kind)
        finished = pooling.normalise(pooled) if normalize else pooled
        return None, parallel.gather_over_devices(finished, spread.axis)

    return spread.compile(encode, donate=False)
