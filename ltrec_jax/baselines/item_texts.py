"""The texts of a catalogue as vectors: by a frozen encoder, and by weighted words (TF-IDF), each made on first use.

Out of scope: learning from them.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from ltrec_jax import storage
from ltrec_jax.config import Config, WholeDataConfig
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.encoder import catalogue
from ltrec_jax.encoder.weights import Encoder, load_encoder
from ltrec_jax.solve.anchored_als import anchors
from ltrec_jax.text import templates
from ltrec_jax.text.lexical import fit_lexical
from ltrec_jax.text.store import TokenStore, build_store
from ltrec_jax.text.tokenizer import load_tokenizer

_WORD_RANK = 384
"""Dimensions of the words' vectors: as many as those of the usual sentence encoders."""


@dataclasses.dataclass(frozen=True)
class ItemTexts:
    """Two views of I texts, as functions that make them: by an encoder float32 [I, E], by words float32 [I, R]."""

    encode: Callable[[], np.ndarray]
    count_words: Callable[[], np.ndarray]

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Vectors by the encoder, float32 [I, E]."""
        return np.asarray(self.encode(), np.float32)

    @functools.cached_property
    def word_vectors(self) -> np.ndarray:
        """Vectors by words, float32 [I, R]: the control that tells what the language model adds to words."""
        return np.asarray(self.count_words(), np.float32)

    def words_for(self, settings: WholeDataConfig) -> np.ndarray | None:
        """Unit vectors of the words in as many dimensions as a solve with these settings takes, or None."""
        if not settings.lexical_share:
            return None
        return directions(self.word_vectors[:, : settings.lexical_rank], center=False)

    def permuted(self, seed: int) -> "ItemTexts":
        """The control: every item gets the text of another, so that whatever texts add must be lost."""

        def shuffle(vectors: np.ndarray) -> np.ndarray:
            return np.random.default_rng(seed).permutation(vectors)

        return ItemTexts(lambda: shuffle(self.vectors), lambda: shuffle(self.word_vectors))


def item_texts(dataset: Dataset, config: Config) -> ItemTexts:
    """The texts of a dataset's items as `config` renders them, and the encoder as it was loaded, not fine-tuned."""

    @functools.cache
    def prepared() -> tuple[Encoder, TokenStore, tuple[int, ...]]:
        template = config.data.template or dataset.info.get("template") or templates.default_template(dataset.items)
        encoder = load_encoder(config.encoder.name)
        tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
        length = min(config.data.max_length, encoder.max_length)
        texts = templates.render(str(template), dataset.items)
        tokens = build_store(texts, tokenizer, length, cache=storage.cache_directory() / "tokens")
        return encoder, tokens, tokenizer.special

    def encode() -> np.ndarray:
        encoder, tokens, _ = prepared()
        return catalogue.encode_catalogue(encoder, tokens, policy=config.encoder.precision)

    def count_words() -> np.ndarray:
        encoder, tokens, special = prepared()
        return fit_lexical(tokens, encoder.config.vocab_size, rank=_WORD_RANK, special=special).vectors(tokens)

    return ItemTexts(encode, count_words)


def directions(vectors_IxE: np.ndarray, *, center: bool = True) -> np.ndarray:
    """(f_i - mean) / |f_i - mean|, or f_i / |f_i|: float32 [I, E]; a vector of length 0 stays 0."""
    middle = vectors_IxE.mean(axis=0) if center else np.zeros(vectors_IxE.shape[1], np.float32)
    return anchors(vectors_IxE, middle, 1.0)
