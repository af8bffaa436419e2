"""Text-kNN: a user is the mean of the texts he likes, an item is scored by its cosine with that. Behaviour counts only
for who likes what, so a never-seen item stands as well as any other.
"""

import dataclasses
from typing import Annotated

import numpy as np
from typing_extensions import Doc

from ltrec_jax.baselines.item_texts import directions
from ltrec_jax.baselines.scoring import Factors
from ltrec_jax.baselines.training import Training


@dataclasses.dataclass(frozen=True)
class TextKnnSettings:
    """Profiles in the space of text vectors."""

    center: Annotated[bool, Doc("measure texts from their mean, which most of them share a good part of")] = True


def fit(train: Training, settings: TextKnnSettings | None = None) -> Factors:
    """Cosine of an item's text vector with the mean of those the user likes.

    0 for a user without likes, whom `registry.fit` shows what is popular.
    """
    return _profiles(train, train.need_texts("text-knn").vectors, settings)


def fit_words(train: Training, settings: TextKnnSettings | None = None) -> Factors:
    """The same with TF-IDF in place of the encoder: the control that tells what the language model adds to words."""
    return _profiles(train, train.need_texts("tfidf-knn").word_vectors, settings)


def _profiles(train: Training, vectors_IxE: np.ndarray, settings: TextKnnSettings | None) -> Factors:
    text_IxE = directions(vectors_IxE, center=(settings or TextKnnSettings()).center)
    return Factors(directions(train.likes @ text_IxE, center=False), text_IxE)
