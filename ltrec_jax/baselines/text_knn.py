"""Text-kNN: a user is the mean of the texts he likes, an item is scored by its cosine with that. Behaviour counts only
for who likes what, so a never-seen item stands as well as any other.
"""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np
import scipy.sparse
from typing_extensions import Doc

from ltrec_jax.baselines.scoring import Factors, pairs_by_rows, require_known
from ltrec_jax.baselines.training import Training


@dataclasses.dataclass(frozen=True)
class TextKnnSettings:
    """Profiles in the space of text vectors."""

    center: Annotated[bool, Doc("measure texts from their mean, which most of them share a good part of")] = True


@dataclasses.dataclass(frozen=True)
class WordKnn:
    """score(u, i) = <profile_u, words_i>, both sparse rows of length 1: profiles float32 [U, V], words [I, V].

    A user without likes scores 0 everywhere; so does an item without known words. A `Recommender` that predicts no
    ratings.
    """

    profiles: scipy.sparse.csr_matrix
    words: scipy.sparse.csr_matrix

    predicts_ratings: ClassVar[bool] = False

    def score(self, users_B: np.ndarray) -> np.ndarray:
        """float32 [B, I], by sparse products on the host."""
        return (self.profiles[require_known(users_B, self.profiles.shape[0])] @ self.words.T).toarray()

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]."""
        return pairs_by_rows(self.score, users_P, items_P)


def directions(vectors_IxE: np.ndarray, *, center: bool = True) -> np.ndarray:
    """(f_i - mean) / |f_i - mean| (or f_i / |f_i|), float32 [I, E]; a vector of length 0 stays 0."""
    shifted = vectors_IxE - vectors_IxE.mean(axis=0, keepdims=True) if center else vectors_IxE
    length = np.linalg.norm(shifted, axis=1, keepdims=True)
    return (shifted / np.maximum(length, 1e-6)).astype(np.float32)


def fit(train: Training, settings: TextKnnSettings | None = None) -> Factors:
    """Cosine of an item's text vector with the mean of those the user likes (0 for a user without likes)."""
    settings = settings or TextKnnSettings()
    text_IxE = directions(train.need_texts("text-knn").vectors, center=settings.center)
    return Factors(directions(train.likes @ text_IxE, center=False), text_IxE)


def fit_words(train: Training) -> WordKnn:
    """The same with TF-IDF in place of the encoder: the control that tells what the language model adds to words."""
    words = train.need_texts("tfidf-knn").tf_idf
    profiles = (train.likes @ words).tocsr()
    length = np.sqrt(np.asarray(profiles.multiply(profiles).sum(axis=1)).ravel())
    scale = scipy.sparse.diags(1.0 / np.maximum(length, 1e-6)).astype(np.float32)
    return WordKnn((scale @ profiles).tocsr(), words)
