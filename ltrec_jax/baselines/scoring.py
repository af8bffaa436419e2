"""How baselines answer: users that do not exist are refused, single pairs get exactly the scores that lists get, and
users without likes get what most people like.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from ltrec_jax.model import two_tower
from ltrec_jax.types import Array, Recommender

_BLOCK_USERS = 256
_MOST_ASKED = 1024
_BLOCK_FLOATS = 1 << 24


def require_known(users_B: np.ndarray, num_users: int) -> np.ndarray:
    """The users as an array; `IndexError` for an id outside 0..num_users-1, which NumPy or JAX might bend."""
    users_B = np.asarray(users_B)
    if len(users_B) and not (users_B.min() >= 0 and users_B.max() < num_users):
        wrong = users_B[(users_B < 0) | (users_B >= num_users)][0]
        raise IndexError(f"user {wrong} is not one of 0..{num_users - 1}")
    return users_B


def pairs_by_rows(score: Callable[[np.ndarray], Array], users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
    """Scores of P pairs, float32 [P], read out of whole rows: each distinct user is scored once, in blocks."""
    users_P, items_P = np.asarray(users_P), np.asarray(items_P)
    if users_P.shape != items_P.shape:
        raise ValueError(f"shapes differ: users {users_P.shape}, items {items_P.shape}")
    users, row_P = np.unique(users_P, return_inverse=True)
    order_P = np.argsort(row_P, kind="stable")
    found_P = np.zeros(len(users_P), np.float32)
    ends = np.searchsorted(row_P[order_P], np.arange(_BLOCK_USERS, len(users) + _BLOCK_USERS, _BLOCK_USERS))
    first = 0
    for block, last in enumerate(ends.tolist()):
        chosen, start = order_P[first:last], block * _BLOCK_USERS
        rows = np.minimum(np.arange(start, start + _BLOCK_USERS), len(users) - 1)
        found_P[chosen] = np.asarray(score(users[rows]))[row_P[chosen] - start, items_P[chosen]]
        first = last
    return found_P


@dataclasses.dataclass(frozen=True)
class Factors:
    """score(u, i) = <p_u, q_i>: p float32 [U, D], q float32 [I, D]. A `Recommender` that predicts no ratings."""

    user_vectors: np.ndarray
    item_vectors: np.ndarray

    predicts_ratings: ClassVar[bool] = False

    def score(self, users_B: np.ndarray) -> jax.Array:
        """float32 [B, I]."""
        p_BxD = self.user_vectors[require_known(users_B, len(self.user_vectors))]
        no_bias_B, no_bias_I = np.zeros(len(p_BxD), np.float32), np.zeros(len(self.item_vectors), np.float32)
        return two_tower.scores(0.0, p_BxD, no_bias_B, self.item_vectors, no_bias_I)

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]."""
        return pairs_by_rows(self.score, users_P, items_P)


@dataclasses.dataclass(frozen=True)
class PopularToNewcomers:
    """A ranker that knows its users by their likes, and shows those without any what most people like.

    score(u, i) is the model's where u likes something (`likes` float32 [U, I]). Else it is log(1 + n_i), n_i users who
    like i; items that nobody likes stand behind the others, at most 0, in the order of the mean score that users with
    likes (1,024 of them at most, evenly spaced) give them. The model alone would score all items 0, a list in the order
    of item ids, which no comparison should be won by.
    """

    model: Recommender
    likes: scipy.sparse.csr_matrix

    predicts_ratings: ClassVar[bool] = False

    @functools.cached_property
    def is_new(self) -> np.ndarray:
        """Which users have no likes, bool [U]."""
        return np.diff(self.likes.indptr) == 0

    @functools.cached_property
    def newcomer_scores(self) -> np.ndarray:
        """What any user without likes scores, float32 [I]."""
        counts_I = np.bincount(self.likes.indices, minlength=self.likes.shape[1])
        score_I, unliked_I = np.log1p(counts_I), counts_I == 0
        known = np.flatnonzero(~self.is_new)
        if unliked_I.any() and len(known):
            asked = known[:: -(-len(known) // _MOST_ASKED)]
            blocks = [asked[start : start + _BLOCK_USERS] for start in range(0, len(asked), _BLOCK_USERS)]
            sums = [np.asarray(self.model.score(users), np.float64)[:, unliked_I].sum(axis=0) for users in blocks]
            mean = np.sum(sums, axis=0) / len(asked)
            score_I[unliked_I] = mean - mean.max()
        return score_I.astype(np.float32)

    def score(self, users_B: np.ndarray) -> Array:
        """float32 [B, I]."""
        users_B = require_known(users_B, self.likes.shape[0])
        new_B, found_BxI = self.is_new[users_B], self.model.score(users_B)
        return jnp.where(new_B[:, None], self.newcomer_scores[None, :], found_BxI) if new_B.any() else found_BxI

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]."""
        return pairs_by_rows(self.score, users_P, items_P)


def item_blocks(num_items: int) -> list[slice]:
    """The catalogue in slices whose rows of [slice, I] hold 64 MB of float32."""
    size = max(_BLOCK_FLOATS // max(num_items, 1), 1)
    return [slice(start, min(start + size, num_items)) for start in range(0, num_items, size)]


def largest_per_row(rows: scipy.sparse.csr_matrix, k: int) -> scipy.sparse.csr_matrix:
    """Of each row of positive float32 entries only the k largest, ties by column: the matrix without the others."""
    rows.sort_indices()
    counts_R = np.diff(rows.indptr)
    row_N = np.repeat(np.arange(len(counts_R), dtype=np.int64), counts_R)
    # The bits of positive floats are ordered as the floats are: one integer key sorts by row, then from the largest on.
    order_N = np.argsort((row_N << 32) | (np.iinfo(np.int32).max - rows.data.view(np.int32)), kind="stable")
    kept = order_N[np.arange(len(row_N)) - np.repeat(rows.indptr[:-1], counts_R) < k]
    return scipy.sparse.csr_matrix((rows.data[kept], (row_N[kept], rows.indices[kept])), shape=rows.shape)
