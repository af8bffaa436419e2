"""A Hugging Face tokenizer behind one function, checked against the encoder's vocabulary.

The `tokenizers` library reads `tokenizer.json` itself; transformers, slow to import, is asked only for directories that
do not have that file.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import tokenizers

from ltrec_jax import storage
from ltrec_jax.errors import UserError
from ltrec_jax.text import tokenizer_workers
from ltrec_jax.text.sentence_config import read_sentence_config
from ltrec_jax.text.tokenizer_workers import Tokens

_SLICE = 1024
# Fewer are done before the processes have started.
_MANY = 8192
# Tables of words are padded to a multiple of some number, 1,024 at most. A tokenizer that misses more rows, or most of
# them, belongs to another checkpoint, or was made by transformers from no vocabulary at all (five special tokens).
_MOST_PADDING = 1024


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts to token ids with the model's special tokens around them; `fingerprint` changes whenever an id would.

    `vocab_size` counts the rows of the encoder's word table. There may be more of them than tokens.
    """

    engine: tokenizers.Tokenizer
    vocab_size: int
    fingerprint: str
    _cutting: dict[int, tokenizers.Tokenizer] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(values int32[T], offsets int64[N + 1], number of texts that were cut) of N texts, in parallel.

        A text of more than `max_length` tokens keeps its first ones and its closing special token.
        """
        values, lengths, cut = tokenizer_workers.encode(self._engine(max_length), texts)
        return values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), cut

    def encode_chunks(self, chunks: Iterable[Sequence[str]], max_length: int) -> Iterator[Tokens]:
        """For each chunk of texts in turn (values int32[T], lengths int64[N], number of texts that were cut).

        Many texts are tokenised by other processes, one for each core, the next chunk while one is taken.
        """
        engine, rest = self._engine(max_length), iter(chunks)
        first = next(rest, [])
        if len(first) < _MANY:
            yield from (tokenizer_workers.encode(engine, chunk) for chunk in itertools.chain([first], rest) if chunk)
            return
        with tokenizer_workers.Workers(engine) as workers:
            waiting: deque[list[Future[Tokens]]] = deque()
            for chunk in itertools.chain([first], rest):
                slices = range(0, len(chunk), _SLICE)
                waiting.append([workers.submit(chunk[start : start + _SLICE]) for start in slices])
                if len(waiting) > 1:
                    yield _joined(waiting.popleft())
            yield _joined(waiting.popleft())

    def _engine(self, max_length: int) -> tokenizers.Tokenizer:
        """One that cuts at a length: made once, for it takes longer (14 ms) than a short text through the encoder."""
        if max_length not in self._cutting:
            engine = tokenizers.Tokenizer.from_str(self.engine.to_str())
            engine.no_padding()
            engine.enable_truncation(max_length)
            self._cutting[max_length] = engine
        return self._cutting[max_length]

    @property
    def special(self) -> tuple[int, ...]:
        """Ids of the tokens that are no words, such as "[CLS]"."""
        return tuple(self.engine.get_added_tokens_decoder())

    def token_id(self, token: str) -> int | None:
        """The id of one token of the vocabulary, such as "[MASK]"; None if it has none."""
        return self.engine.token_to_id(token)


def _joined(parts: "list[Future[Tokens]]") -> Tokens:
    values, lengths, cut = zip(*(part.result() for part in parts), strict=True)
    return np.concatenate(values), np.concatenate(lengths), sum(cut)


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of an encoder's directory, for a word table of `vocab_size` rows.

    Rows without a token are padding, as XLM-R's sentence encoders have it (250,002 tokens, 250,037 rows). A token
    without a row, and a tokenizer that leaves more rows than padding explains, are `UserError`s. Texts are lowered
    first where sentence-transformers' notes in the directory say so.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if path.is_file():
        try:
            engine = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every damaged file
            raise UserError(f"{path} is damaged: {error}.") from error
    else:
        engine = _converted(directory)
    ids = engine.get_vocab(with_added_tokens=True).values()
    last = max(ids, default=-1)
    if last >= vocab_size or vocab_size - len(ids) >= min(_MOST_PADDING, vocab_size / 2):
        raise UserError(
            f"The tokenizer in {directory} knows {len(ids)} tokens (the last is {last}), the encoder's vocab_size is "
            f"{vocab_size}: they do not belong together. Take both from the same checkpoint."
        )
    if read_sentence_config(directory).lower_case:
        rest = [] if engine.normalizer is None else [engine.normalizer]
        engine.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *rest])
    return Tokenizer(engine, vocab_size, storage.content_hash(engine.to_str()))


def _converted(directory: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True)
    except Exception as error:  # each class of transformers raises its own: also for a library that it misses
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{directory} has no tokenizer (no tokenizer.json, and transformers says: {reason})") from error
    engine = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(engine, tokenizers.Tokenizer):
        raise UserError(
            f"The tokenizer in {directory} ({type(tokenizer).__name__}) runs in Python alone, which is not supported: "
            "it cannot be written as a tokenizer.json. Choose an encoder that has one."
        )
    return engine
