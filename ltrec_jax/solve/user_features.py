"""Where the prior of a user stands, from the user's events: side information as somebody new has it.

The prior mean of a row of features z is z^T W, W the user map of `bayes`. Blocks that events tell are sums over them,
so that W is multiplied into each item's part once:

    mean(u) = base + own_u + count(n) + 1/n sum_i history_i + n^-1/2 sum_i singular_i        i the n events' items

A training user has the mean of training so. Somebody new has no own part (attributes and profile are at their mean),
and where n is below the fewest events of any training user, the map was fitted to no such user: the events that are
missing count as average ones. Out of scope: the solve itself (`fold_in`).
"""

import dataclasses

import numpy as np

from ltrec_jax.solve.side_information import INTERCEPT, SideInformation

_COUNT, _HISTORY, _SINGULAR = "popularity", "history", "singular"


@dataclasses.dataclass(frozen=True)
class UserFeatures:
    """The terms of the formula above, D' = D + 1 with the bias first: base [D'], own [U, D'], history and singular
    [I, D'], all float32.

    count [3, D']: what 1, log(1 + n) and its squared distance from the users' mean of it are multiplied with; limits
    [3]: that mean, the fewest and the most events of a training user. noise [U]: a_u of the training users.
    """

    base: np.ndarray
    own: np.ndarray
    count: np.ndarray
    limits: np.ndarray
    history: np.ndarray
    singular: np.ndarray
    noise: np.ndarray

    def mean(self, items_M: np.ndarray, user: int | None = None) -> np.ndarray:
        """The prior mean [D'], float64, of a user with events of these items; `user`: a training user's number.

        Items that came after training tell nothing, as if they had not been seen.
        """
        items_M = np.asarray(items_M)
        items_M = items_M[items_M < len(self.history)]
        found = np.asarray(self.base, np.float64)
        if user is not None:
            found = found + self.own[user]
        if len(items_M) == 0:
            return found
        center, fewest, most = (float(value) for value in self.limits)
        number = max(len(items_M), fewest)
        log = np.log1p(min(number, most))
        by_item = [part[items_M].sum(axis=0, dtype=np.float64) for part in (self.history, self.singular)]
        said = np.array([1.0, log, (log - center) ** 2]) @ np.asarray(self.count, np.float64)
        return found + said + by_item[0] / number + by_item[1] / np.sqrt(number)


def of_model(users: SideInformation, counts_U: np.ndarray, map_FxD: np.ndarray, noise_U: np.ndarray) -> UserFeatures:
    """The terms for a fitted user map [F, D'], the training events of each user [U] and their noise precisions [U].

    Blocks that no event tells (`SideInformation.per_item` is without them) are the users' own.
    """
    map_FxD, per_item = np.asarray(map_FxD, np.float64), users.per_item
    width, log_U, known = map_FxD.shape[1], np.log1p(counts_U.astype(np.float64)), counts_U[counts_U > 0]
    told = {INTERCEPT, *((_COUNT, *per_item) if per_item else ())}
    own_F = np.array([users.names[group] not in told for group in users.group])
    base, count = map_FxD[0].copy(), np.zeros((3, width))
    if _COUNT in told and _COUNT in users.names:
        mean, scaled_map = _unscaled(users, _COUNT, map_FxD)
        count[0], count[1:] = -mean @ scaled_map, scaled_map
    num_items = max((len(part) for part in per_item.values()), default=0)
    history, singular = np.zeros((num_items, width)), np.zeros((num_items, width))
    if _HISTORY in per_item and _HISTORY in users.names:
        mean, scaled_map = _unscaled(users, _HISTORY, map_FxD)
        history = (per_item[_HISTORY] - mean) @ scaled_map
    if _SINGULAR in per_item and _SINGULAR in users.names:
        mean, scaled_map = _unscaled(users, _SINGULAR, map_FxD)
        singular, base = per_item[_SINGULAR] @ scaled_map, base - mean @ scaled_map
    return UserFeatures(
        base=base.astype(np.float32),
        own=(np.asarray(users.columns, np.float64)[:, own_F] @ map_FxD[own_F]).astype(np.float32),
        count=count.astype(np.float32),
        limits=np.array([log_U.mean(), known.min(), known.max()] if len(known) else [0, 1, 1], np.float32),
        history=history.astype(np.float32),
        singular=singular.astype(np.float32),
        noise=np.asarray(noise_U, np.float32),
    )


def _unscaled(users: SideInformation, name: str, map_FxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [F_b] of a block as it was made, and the map of that block before it was standardised [F_b, D']."""
    mean, deviation, kept = users.scaling[name]
    scaled_map = np.zeros((len(mean), map_FxD.shape[1]))
    scaled_map[kept] = map_FxD[users.group == users.names.index(name)] / deviation[kept][:, None]
    return mean, scaled_map
