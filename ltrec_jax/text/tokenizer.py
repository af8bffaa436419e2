"""A Hugging Face tokenizer behind one function, checked against the encoder's vocabulary.

The `tokenizers` library reads `tokenizer.json` itself; transformers, slow to import, is asked only for directories that
do not have that file.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tokenizers

from ltrec_jax import storage
from ltrec_jax.errors import UserError

_SLICE = 1024


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts to token ids with the model's special tokens around them; `fingerprint` changes whenever an id would."""

    engine: tokenizers.Tokenizer
    vocab_size: int
    fingerprint: str

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(values int32[T], offsets int64[N + 1], number of texts that were cut) of N texts, in parallel.

        A text of more than `max_length` tokens keeps its first ones and its closing special token.
        """
        engine = tokenizers.Tokenizer.from_str(self.engine.to_str())
        engine.no_padding()
        engine.enable_truncation(max_length)

        def some(start: int) -> tuple[list[int], list[int], int]:
            encoded = engine.encode_batch_fast(list(texts[start : start + _SLICE]))
            ids = [one.ids for one in encoded]
            return (
                list(itertools.chain.from_iterable(ids)),
                list(map(len, ids)),
                sum(bool(one.overflowing) for one in encoded),
            )

        # The library's own threads wait for each other within a batch: several batches at once keep all cores busy.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = list(pool.map(some, range(0, len(texts), _SLICE)))
        values = np.concatenate([np.zeros(0, np.int32), *(np.array(tokens, np.int32) for tokens, _, _ in parts)])
        lengths = np.fromiter(itertools.chain.from_iterable(each for _, each, _ in parts), np.int64, len(texts))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return values, offsets, sum(cut for *_, cut in parts)

    def token_id(self, token: str) -> int | None:
        """The id of one token of the vocabulary, such as "[MASK]"; None if it has none."""
        return self.engine.token_to_id(token)


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of an encoder's directory. One whose vocabulary is not `vocab_size` long is a `UserError`."""
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if path.is_file():
        try:
            engine = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every damaged file
            raise UserError(f"{path} is damaged: {error}.") from error
    else:
        engine = _converted(directory)
    found = engine.get_vocab_size(with_added_tokens=True)
    if found != vocab_size:
        raise UserError(
            f"The tokenizer in {directory} knows {found} tokens, the encoder's vocab_size is {vocab_size}: they do not "
            "belong together. Take both from the same checkpoint."
        )
    return Tokenizer(engine, found, storage.content_hash(engine.to_str()))


def _converted(directory: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{directory} has no tokenizer (no tokenizer.json, and transformers says: {reason})") from error
    return tokenizer.backend_tokenizer
