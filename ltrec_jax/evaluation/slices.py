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
COLD_USERS = "cold users"
USER_GROUPS = (COLD_USERS, *ACTIVITY, *TASTE)


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

    Users without training events are the cold users; the others are grouped by their training events, and by the mean
    training count of the items they had.
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
    known_U = asked.profiles.events_V > 0
    found.append(Slice(USERS, COLD_USERS, all_I, ~known_U))
    for names, value_U in ((ACTIVITY, asked.profiles.events_V), (TASTE, asked.profiles.popularity_V)):
        for name, mask in thirds(value_U[known_U], names).items():
            users_U = np.zeros(len(known_U), bool)
            users_U[known_U] = mask
            found.append(Slice(USERS, name, all_I, users_U))
    for first, last in popularity_bins(asked.train_count_I):
        inside_I = (asked.train_count_I >= first) & (asked.train_count_I <= last)
        found.append(Slice(POPULARITY, f"{first}-{last}", inside_I, all_U))
    return found


def thirds(value_U: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Parts of the users by a value, lowest first, as equal as ties allow: one mask bool [U] for each name.

    Users of one value stay together, in the part in which the middle of their places lies: all equal are all in the
    middle part, and a part may be empty.
    """
    sorted_U = np.sort(value_U)
    below_U, up_to_U = np.searchsorted(sorted_U, value_U), np.searchsorted(sorted_U, value_U, "right")
    part_U = (below_U + up_to_U) * len(names) // max(2 * len(value_U), 1)
    return {name: part_U == position for position, name in enumerate(names)}


def popularity_bins(train_count_I: np.ndarray) -> list[tuple[int, int]]:
    """Bins (first, last) that double in width: 0, 1, 2-3, 4-7, ... up to the largest training count."""
    most = int(train_count_I.max(initial=0))
    return [(0, 0)] + [(1 << power, (2 << power) - 1) for power in range(most.bit_length())]
