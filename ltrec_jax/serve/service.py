"""Answers from a bundle: pure request -> response, no web code.

Out of scope: transport (HTTP comes as a layer on top) and training.
"""

import dataclasses

import numpy as np

from ltrec_jax import topk
from ltrec_jax.bundle import Bundle
from ltrec_jax.data import columns
from ltrec_jax.data.popularity import GROUPS
from ltrec_jax.errors import UserError

NEW = "new"
"""The group of an item without training interactions."""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item: rank from 1, text, score on the rating scale, popularity group, liked items like it."""

    rank: int
    item_id: str
    text: str
    score: float
    group: str
    resembles: tuple[str, ...]


def recommend(bundle: Bundle, user_id: str, k: int = 10, *, reasons: int = 2) -> list[Recommendation]:
    """The `k` items with the highest scores among those the user has not seen, best first, ties by item id.

    Each names up to `reasons` items the user liked (rating at or above the bundle's positive rating) whose vectors
    have the highest cosine with its own. Fewer than `k` come back when fewer are unseen. An unknown user or a `k`
    below 1 is a `UserError`.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, not {k}.")
    user = bundle.user_index(user_id)
    seen, ratings = bundle.history.of(user)
    allowed = np.ones((1, bundle.num_items), bool)
    allowed[0, seen] = False
    items, scores = topk.top_k(bundle.score(np.array([user])), min(k, bundle.num_items), allowed)
    found = [(int(i), float(s)) for i, s in zip(np.asarray(items)[0], np.asarray(scores)[0], strict=True) if i >= 0]
    liked = seen[ratings >= bundle.positive_rating]
    nearest = _nearest(bundle.vectors.item_vectors, np.array([i for i, _ in found], int), liked, reasons)
    texts = bundle.items[columns.TEXT]
    return [
        Recommendation(
            rank=rank,
            item_id=str(bundle.items[columns.ITEM_ID].iloc[item]),
            text=str(texts.iloc[item]),
            score=score,
            group=NEW if bundle.counts[item] == 0 else GROUPS[int(bundle.group[item])],
            resembles=tuple(str(texts.iloc[like]) for like in likes),
        )
        for rank, ((item, score), likes) in enumerate(zip(found, nearest, strict=True), 1)
    ]


def _nearest(vectors: np.ndarray, items: np.ndarray, liked: np.ndarray, count: int) -> list[list[int]]:
    """For each item the `count` liked ones with the highest cosine, nearest first."""
    if len(liked) == 0 or len(items) == 0:
        return [[] for _ in items]
    cosines = _unit(vectors[items]) @ _unit(vectors[liked]).T
    return [[int(liked[j]) for j in np.argsort(-row, kind="stable")[:count]] for row in cosines]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
