"""The texts of a catalogue as features: by a frozen encoder, and by weighted words (TF-IDF), each made on first use.

Out of scope: learning from them.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from ltrec_jax import storage
from ltrec_jax.baselines.extra import needed
from ltrec_jax.config import Config
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.encoder import catalogue
from ltrec_jax.encoder.weights import load_encoder
from ltrec_jax.text import templates
from ltrec_jax.text.store import build_store
from ltrec_jax.text.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class ItemTexts:
    """One text per item, and `encode`, which turns texts into vectors float32 [I, E]."""

    texts: Sequence[str]
    encode: Callable[[Sequence[str]], np.ndarray]

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Vectors of the texts by the encoder, float32 [I, E]."""
        return np.asarray(self.encode(self.texts), np.float32)

    @functools.cached_property
    def tf_idf(self) -> scipy.sparse.csr_matrix:
        """TF-IDF of lower-case words, sublinear in the count, rows of length 1: float32 [I, words] (scikit-learn)."""
        text_features = needed("sklearn.feature_extraction.text", "TF-IDF of item texts")
        vectorizer = text_features.TfidfVectorizer(sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
        if not any(any(letter.isalnum() for letter in text) for text in self.texts):
            return scipy.sparse.csr_matrix((len(self.texts), 1), dtype=np.float32)
        return scipy.sparse.csr_matrix(vectorizer.fit_transform(self.texts))

    def permuted(self, seed: int) -> "ItemTexts":
        """The control: every item gets the text of another, so that whatever texts add must be lost."""
        order = np.random.default_rng(seed).permutation(len(self.texts))
        return ItemTexts([self.texts[i] for i in order], self.encode)


def item_texts(dataset: Dataset, config: Config) -> ItemTexts:
    """The texts of a dataset's items as `config` renders them, and the encoder as it was loaded, not fine-tuned."""
    template = config.data.template or str(dataset.info.get("template") or templates.default_template(dataset.items))

    def encode(texts: Sequence[str]) -> np.ndarray:
        print(f"Encoding {len(texts):,} item texts for the baselines.", file=sys.stderr)
        encoder = load_encoder(config.encoder.name)
        tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
        length = min(config.data.max_length, encoder.max_length)
        tokens = build_store(texts, tokenizer, length, cache=storage.cache_directory() / "tokens")
        return catalogue.encode_catalogue(encoder, tokens, policy=config.encoder.precision)

    return ItemTexts(templates.render(template, dataset.items), encode)
