"""What a baseline learns from: the training events of a split, the rating from which one is a like, the item texts."""

import dataclasses
import functools

import numpy as np
import scipy.sparse

from ltrec_jax.baselines.item_texts import ItemTexts
from ltrec_jax.data.dataset import Interactions, Split
from ltrec_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Training:
    """Training events over U users and I items. Rankers learn from `likes`; raters from all events.

    `texts` is None where items have none: models that need them say so. `seed` is the one source of randomness.
    """

    events: Interactions
    num_users: int
    num_items: int
    positive_rating: float
    texts: ItemTexts | None = None
    seed: int = 0

    @functools.cached_property
    def likes(self) -> scipy.sparse.csr_matrix:
        """1 where the user has the item with a rating of at least `positive_rating`: float32 [U, I], sorted, distinct.

        No such event at all is a `UserError`: no ranker can learn from that.
        """
        liked = self.events.rating >= self.positive_rating
        if not liked.any():
            raise UserError(
                f"No training rating reaches {self.positive_rating:g}: there is nothing to rank by. Lower "
                "evaluation.positive_rating."
            )
        pair = np.unique(self.events.user[liked].astype(np.int64) * self.num_items + self.events.item[liked])
        user, item = np.divmod(pair, self.num_items)
        ones, shape = np.ones(len(pair), np.float32), (self.num_users, self.num_items)
        return scipy.sparse.csr_matrix((ones, (user.astype(np.int32), item.astype(np.int32))), shape=shape)

    @functools.cached_property
    def like_counts(self) -> np.ndarray:
        """How many users like each item, int64 [I]."""
        return np.bincount(self.likes.indices, minlength=self.num_items)

    def need_texts(self, model: str) -> ItemTexts:
        """The item texts; without them a `UserError` that names the model which asked."""
        if self.texts is None:
            raise UserError(f"Baseline {model} ranks by item texts, and none were given.")
        return self.texts


def training(split: Split, positive_rating: float, texts: ItemTexts | None = None, seed: int = 0) -> Training:
    """The training part of a split, and nothing else of it."""
    return Training(split.train, split.dataset.num_users, split.dataset.num_items, positive_rating, texts, seed)
