"""The parts of a test set that are reported on their own: item groups, user activity, bins of item popularity.

Every part is a pair of masks (which items' targets, which users), so one piece of code measures all of them.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ltrec_jax.evaluation.results import GROUP, OVERALL

ACTIVITY, POPULARITY = "activity", "popularity"
ACTIVITY_NAMES = ("quiet", "medium", "active")


@dataclasses.dataclass(frozen=True)
class Slice:
    """Targets on items in `items_I` (bool [I]) of users in `users_U` (bool [U test users])."""

    kind: str
    name: str
    items_I: np.ndarray
    users_U: np.ndarray


def slices(groups: Mapping[str, np.ndarray], train_count_I: np.ndarray, user_events_U: np.ndarray) -> list[Slice]:
    """Overall, every group of items, users by activity (`user_events_U` training events), items by training count."""
    all_I, all_U = np.ones(len(train_count_I), bool), np.ones(len(user_events_U), bool)
    found = [Slice(OVERALL, OVERALL, all_I, all_U)]
    found += [Slice(GROUP, name, np.asarray(mask, bool), all_U) for name, mask in groups.items()]
    found += [Slice(ACTIVITY, name, all_I, mask) for name, mask in activity(user_events_U).items()]
    for first, last in popularity_bins(train_count_I):
        inside_I = (train_count_I >= first) & (train_count_I <= last)
        found.append(Slice(POPULARITY, f"{first}-{last}", inside_I, all_U))
    return found


def activity(user_events_U: np.ndarray) -> dict[str, np.ndarray]:
    """Thirds of the users by number of training events, ties by position: quiet, medium, active (bool [U])."""
    rank_U = np.empty(len(user_events_U), np.int64)
    rank_U[np.argsort(user_events_U, kind="stable")] = np.arange(len(user_events_U))
    third_U = rank_U * len(ACTIVITY_NAMES) // max(len(user_events_U), 1)
    return {name: third_U == position for position, name in enumerate(ACTIVITY_NAMES)}


def popularity_bins(train_count_I: np.ndarray) -> list[tuple[int, int]]:
    """Bins (first, last) that double in width: 0, 1, 2-3, 4-7, ... up to the largest training count."""
    most = int(train_count_I.max(initial=0))
    return [(0, 0)] + [(1 << power, (2 << power) - 1) for power in range(most.bit_length())]
