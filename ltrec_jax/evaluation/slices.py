"""The parts of a test set that are reported on their own: item groups, groups of users, bins of item popularity.

Every part is a pair of masks (which items' targets, which users) and the candidates that lists are made from, so one
piece of code measures all of them.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ltrec_jax.evaluation.exam import ALL, Exam
from ltrec_jax.evaluation.results import AMONG, GROUP, OVERALL

USERS, POPULARITY = "users", "popularity"
ACTIVITY = ("quiet", "medium", "active")
TASTE = ("niche", "mixed", "mainstream")
USER_GROUPS = ACTIVITY + TASTE


@dataclasses.dataclass(frozen=True)
class Slice:
    """Targets on items in `items_I` (bool [I]) of test users in `users_U` (bool [U]), in lists from `candidates`."""

    kind: str
    name: str
    items_I: np.ndarray
    users_U: np.ndarray
    candidates: str = ALL


def slices(asked: Exam, groups: Mapping[str, np.ndarray]) -> list[Slice]:
    """Overall, item groups (among all items, among warm or cold ones), groups of users, items by training count.

    Users are grouped by their training events, and by the mean training count of the items they had.
    """
    all_I, all_U = np.ones(asked.num_items, bool), np.ones(len(asked.users), bool)
    found = [Slice(OVERALL, OVERALL, all_I, all_U)]
    found += [Slice(GROUP, name, np.asarray(mask, bool), all_U) for name, mask in groups.items()]
    for candidates, allowed_I in asked.candidates.items():
        inside = {name: np.asarray(mask, bool) & allowed_I for name, mask in groups.items() if candidates != ALL}
        found += [
            Slice(GROUP, f"{name}{AMONG}{candidates}", mask_I, all_U, candidates)
            for name, mask_I in inside.items()
            if (candidates == "warm" or name == candidates) and mask_I[asked.wanted.item_N].any()
        ]
    for names, value_U in ((ACTIVITY, asked.profiles.events_V), (TASTE, asked.profiles.popularity_V)):
        found += [Slice(USERS, name, all_I, mask) for name, mask in thirds(value_U, names).items()]
    for first, last in popularity_bins(asked.train_count_I):
        inside_I = (asked.train_count_I >= first) & (asked.train_count_I <= last)
        found.append(Slice(POPULARITY, f"{first}-{last}", inside_I, all_U))
    return found


def thirds(value_U: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Equal parts of the users by a value, lowest first, ties by position: one mask bool [U] for each name."""
    rank_U = np.empty(len(value_U), np.int64)
    rank_U[np.argsort(value_U, kind="stable")] = np.arange(len(value_U))
    part_U = rank_U * len(names) // max(len(value_U), 1)
    return {name: part_U == position for position, name in enumerate(names)}


def popularity_bins(train_count_I: np.ndarray) -> list[tuple[int, int]]:
    """Bins (first, last) that double in width: 0, 1, 2-3, 4-7, ... up to the largest training count."""
    most = int(train_count_I.max(initial=0))
    return [(0, 0)] + [(1 << power, (2 << power) - 1) for power in range(most.bit_length())]
