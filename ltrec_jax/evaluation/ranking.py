"""Full ranking: the top list of every user over the whole catalogue, seen items taken out, and which of it are hits.

No sampled negatives. Runs on the device in blocks of users through `topk`; what comes back is V x K, never U x I.
Out of scope: metrics (`accuracy`, `longtail`).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tqdm

from ltrec_jax import topk
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.data.history import History
from ltrec_jax.types import Recommender


@dataclasses.dataclass(frozen=True)
class Targets:
    """What should be found: users int32[V] (ascending) with at least one target, and N distinct pairs of targets.

    row_N: position of the pair's user in `users`; item_N: int32. `repeats`: relevant test pairs left out because the
    user has the item in the history, where no list may show it.
    """

    users: np.ndarray
    row_N: np.ndarray
    item_N: np.ndarray
    repeats: int

    def relevant(self, allowed_I: np.ndarray) -> np.ndarray:
        """How many targets each user has among the allowed items (bool [I]): int64 [V]."""
        return np.bincount(self.row_N[allowed_I[self.item_N]], minlength=len(self.users))


@dataclasses.dataclass(frozen=True)
class Lists:
    """Top lists: items int32 [V, K] (-1 where candidates ran out), hits bool [V, K] (which of them are targets)."""

    items: np.ndarray
    hits: np.ndarray


def targets(test: Interactions, seen: History, num_items: int, positive_rating: float) -> Targets:
    """The test events with a rating of at least `positive_rating`, once each, without those in the user's history.

    Users without such an event are left out (skipped, not counted as zero); there may be none at all.
    """
    positive = test.rating >= positive_rating
    pairs = np.unique(test.user[positive].astype(np.int64) * num_items + test.item[positive])
    history_user = np.repeat(np.arange(seen.num_users, dtype=np.int64), seen.counts)
    repeated = contained(history_user * num_items + seen.items, pairs)
    pairs = pairs[~repeated]
    users, row_N = np.unique(pairs // num_items, return_inverse=True)
    return Targets(users.astype(np.int32), row_N, (pairs % num_items).astype(np.int32), int(repeated.sum()))


def rank(
    model: Recommender,
    wanted: Targets,
    seen: History,
    num_items: int,
    k: int,
    *,
    candidates: Mapping[str, np.ndarray | None],
    block_users: int,
    name: str = "model",
) -> dict[str, Lists]:
    """The k best unseen items of each target user, and which of them are targets, from each set of candidates.

    `candidates`: name -> bool [I], None for the whole catalogue. Ties by item id. `ValueError` for scores of the wrong
    shape or NaN, with the model's name.
    """
    blocks = topk.ranked_among(
        model.score,
        wanted.users,
        list(candidates.values()),
        num_items=num_items,
        k=k,
        seen=seen,
        block_users=block_users,
    )
    count = -(-len(wanted.users) // block_users)
    bar = tqdm.tqdm(blocks, f"lists of {name}", count, unit="block", delay=1.0, leave=False)
    try:
        found = [[items for items, _ in block] for block in bar]
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    keys = wanted.row_N * num_items + wanted.item_N
    lists = {}
    for place, each in enumerate(candidates):
        items_VxK = np.concatenate([np.zeros((0, k), np.int32), *(block[place] for block in found)])
        listed = np.arange(len(items_VxK), dtype=np.int64)[:, None] * num_items + items_VxK
        lists[each] = Lists(items_VxK, contained(keys, listed) & (items_VxK != topk.NO_ITEM))
    return lists


def contained(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of `wanted` are among keys that are sorted already: np.isin would hash all of them first."""
    if len(sorted_keys) == 0:
        return np.zeros(wanted.shape, bool)
    return sorted_keys[np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)] == wanted
