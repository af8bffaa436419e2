"""The texts of a pretraining run as tokens: distinct ones, parted into training, validation and held-out, by the seed.

Tokens lie in the run directory, for a run that goes on; what is trained on is copied into memory, in the order drawn.
Out of scope: masking, batches.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import processes, storage
from ltrec_jax.encoder.weights import Encoder
from ltrec_jax.errors import UserError
from ltrec_jax.text import masking
from ltrec_jax.text.corpus import Corpus
from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.text.masking import Maskable
from ltrec_jax.text.store import TokenStore, open_store, write_store
from ltrec_jax.text.tokenizer import Tokenizer
from ltrec_jax.train.pretrain_config import PretrainConfig

_TOKENS_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True)
class PretrainTexts:
    """Three disjoint stores; `rows` texts were read, `truncated` of them cut to `max_length` tokens."""

    train: TokenStore
    validation: TokenStore
    held_out: TokenStore
    vocabulary: Maskable
    rows: int
    truncated: int
    max_length: int

    @property
    def longest(self) -> int:
        """Tokens of the longest text of all three."""
        return max(int(store.lengths.max()) for store in (self.train, self.validation, self.held_out))

    def describe(self, corpus: Corpus) -> dict[str, Any]:
        """Plain figures for the report."""
        return {
            "source": corpus.name,
            "rows": self.rows,
            "trained": len(self.train),
            "validation": len(self.validation),
            "held_out": len(self.held_out),
            "tokens_per_epoch": len(self.train.values),
            "truncated": self.truncated,
            "max_length": self.max_length,
        }


def read_texts(
    corpus: Corpus, tokenizer: Tokenizer, encoder: Encoder, config: PretrainConfig, out: Path
) -> PretrainTexts:
    """Tokenise once into `out/tokens` and part the distinct texts that have a word at all.

    Too few of them for the asked share, or none: `UserError`.
    """
    vocabulary = masking.maskable(tokenizer)
    length = min(config.max_length, encoder.max_length)
    place = out / "tokens"

    def write() -> None:
        if not place.is_dir():
            with storage.new_directory(place) as directory:
                write_store(directory, (texts for _, texts in corpus.chunks()), tokenizer, length)

    processes.first_does(write)
    store = open_store(place)
    chosen, _ = distinct_texts(store)
    chosen = chosen[_with_words(store, vocabulary)[chosen]]
    if not len(chosen):
        raise UserError(f"{corpus.name} has no texts with words to learn from ({len(store):,} rows were read).")
    aside = round(config.held_out * len(chosen))
    if aside < 2 or aside >= len(chosen):
        raise UserError(
            f"held_out = {config.held_out} of {len(chosen):,} distinct texts is {aside}: at least 2 must be held out "
            "and 1 trained on. Choose another share or more texts."
        )
    chosen = chosen[np.random.default_rng([config.seed, 0x4E1D]).permutation(len(chosen))]
    held_out, validation, train = np.split(chosen, [aside // 2, aside])
    return PretrainTexts(
        train=store.take(train),
        validation=store.take(validation),
        held_out=store.take(held_out),
        vocabulary=vocabulary,
        rows=len(store),
        truncated=store.truncated,
        max_length=length,
    )


def _with_words(store: TokenStore, vocabulary: Maskable) -> np.ndarray:
    """Which texts have a token that may be hidden, bool[I]; one byte of memory per token."""
    ordinary_T = np.empty(len(store.values), bool)
    for at in range(0, len(ordinary_T), _TOKENS_AT_ONCE):
        here = slice(at, at + _TOKENS_AT_ONCE)
        ordinary_T[here] = ~vocabulary.special_V[store.values[here]]
    found_I = store.lengths > 0
    # Without the empty texts, of which `reduceat` would make something, each ends where the next one begins.
    found_I[found_I] = np.logical_or.reduceat(ordinary_T, store.offsets[:-1][found_I])
    return found_I
