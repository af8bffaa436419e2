"""ItemKNN: an item is scored by how much it resembles what the user likes; alike is what the same users like."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np
import scipy.sparse
import tqdm
from typing_extensions import Doc

from ltrec_jax.baselines.scoring import item_blocks, largest_per_row, pairs_by_rows, require_known
from ltrec_jax.baselines.training import Training


@dataclasses.dataclass(frozen=True)
class ItemKnnSettings:
    """Neighbourhoods of items."""

    neighbours: Annotated[int, Doc("k: most similar items that an item is scored by")] = 100
    shrink: Annotated[float, Doc("added to the denominator of the cosine: few common users weigh less")] = 20.0


@dataclasses.dataclass(frozen=True)
class ItemKnn:
    """score(u, i) = sum over what u likes of s_ji; `similar` float32 [I, I] has at most k entries in column i.

    Cold items score 0, the lowest there is, and so does everything for a user without likes, whom `registry.fit` shows
    what is popular. A `Recommender` that predicts no ratings.
    """

    likes: scipy.sparse.csr_matrix
    similar: scipy.sparse.csr_matrix

    predicts_ratings: ClassVar[bool] = False

    def score(self, users_B: np.ndarray) -> np.ndarray:
        """float32 [B, I], by sparse products on the host."""
        users_B = require_known(users_B, self.likes.shape[0])
        return (self.likes[users_B] @ self.similar).toarray()

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]."""
        return pairs_by_rows(self.score, users_P, items_P)


def fit(train: Training, settings: ItemKnnSettings | None = None) -> ItemKnn:
    """Keep for each item its k nearest others by the shrunk cosine

        s_ij = n_ij / (sqrt(n_i n_j) + shrink)

    n_ij users like both, n_i like i. Ties by item id. Memory: blocks of rows, then k entries per item, never U x I.
    Source: Sarwar et al. (WWW 2001); shrinkage of Bell & Koren (2007).
    """
    settings = settings or ItemKnnSettings()
    if settings.neighbours < 1 or settings.shrink < 0:
        raise ValueError(f"neighbours must be at least 1 and shrink at least 0, not {settings}")
    likes, root_I = train.likes, np.sqrt(train.like_counts).astype(np.float32)
    by_item, parts = likes.T.tocsr(), []
    for rows in tqdm.tqdm(item_blocks(train.num_items), "similar items", unit="block", delay=2.0, leave=False):
        together = (by_item[rows] @ likes).tocoo()
        first, second = together.row + rows.start, together.col
        value = together.data / (root_I[first] * root_I[second] + np.float32(settings.shrink))
        others = first != second
        block = scipy.sparse.csr_matrix(
            (value[others], (together.row[others], second[others])), shape=(rows.stop - rows.start, train.num_items)
        )
        parts.append(largest_per_row(block, settings.neighbours))
    return ItemKnn(likes, scipy.sparse.vstack(parts).T.tocsr())
