"""Who has interacted with what: the training events of each user as one compressed sparse row structure."""

import dataclasses

import numpy as np

from ltrec_jax.data.dataset import Interactions


@dataclasses.dataclass(frozen=True)
class History:
    """Items and ratings per user: user u has `items[offsets[u]:offsets[u + 1]]`, ascending by item id.

    offsets int64[U + 1], items int32[N], ratings float32[N].
    """

    offsets: np.ndarray
    items: np.ndarray
    ratings: np.ndarray

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Events of each user, int64[U]."""
        return np.diff(self.offsets)

    def of(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """(items, ratings) of one user."""
        rows = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        return self.items[rows], self.ratings[rows]


def history(events: Interactions, num_users: int) -> History:
    """The history of every user, users without events included (empty)."""
    order = np.lexsort((events.item, events.user))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(events.user, minlength=num_users))]).astype(np.int64)
    return History(offsets, np.asarray(events.item[order]), np.asarray(events.rating[order]))
