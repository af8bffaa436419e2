"""What a set of lists does to the catalogue: how much of it is shown, how evenly, how popular, how new.

These are shares of exposure, not accuracy: a random model wins most of them. They stand beside the accuracy of the
tail group, never instead of it. Lists are items int32 [U, k] with -1 where a list is shorter; counts are TRAINING
events of each item. Without any listed item every function gives None.
"""

from collections.abc import Callable

import numpy as np

from ltrec_jax.data import popularity


def coverage(items_Uxk: np.ndarray, num_items: int) -> float | None:
    """Coverage@k = share of the catalogue that stands in at least one list, 0..1."""
    exposure_I = _exposure(items_Uxk, num_items)
    return float((exposure_I > 0).mean()) if exposure_I.any() else None


def gini(items_Uxk: np.ndarray, num_items: int) -> float | None:
    """Gini index of exposure over all items: 0 = all shown equally often, (I - 1) / I = one item takes every place.

    G = sum_i (2 i - I - 1) e_(i) / (I sum e), e_(1) <= ... <= e_(I) the number of lists that show an item.
    """
    exposure_I = _exposure(items_Uxk, num_items)
    return popularity.gini(exposure_I) if exposure_I.any() else None


def arp(items_Uxk: np.ndarray, train_count_I: np.ndarray) -> float | None:
    """Average recommendation popularity: mean over users of the mean training count of the listed items.

    Source: Yin et al. (2012), named so by Abdollahpouri et al. (2019).
    """
    return _mean_of_lists(items_Uxk, lambda items: train_count_I[items].astype(np.float64))


def aplt(items_Uxk: np.ndarray, tail_I: np.ndarray) -> float | None:
    """Average percentage of long-tail items: mean over users of the share of the list in the tail (bool [I]), 0..1.

    Source: Abdollahpouri et al. (2019).
    """
    return _mean_of_lists(items_Uxk, lambda items: tail_I[items].astype(np.float64))


def novelty(items_Uxk: np.ndarray, train_count_I: np.ndarray) -> float | None:
    """Expected free discovery without relevance: mean self-information of the listed items, rank-discounted, in bits.

    EFD = sum_r d_r (-log2 p(i_r)) / sum_r d_r averaged over users, d_r = 1 / log2(r + 1), p(i) = max(n_i, 1) / sum n
    (a never-seen item counts as seen once; the paper leaves it undefined). Source: Vargas & Castells (2011), whose
    EFD also weighs by relevance: see `efd`.
    """
    return _discounted(items_Uxk, np.ones(items_Uxk.shape, bool), _self_information(train_count_I))


def efd(items_Uxk: np.ndarray, hits_Uxk: np.ndarray, train_count_I: np.ndarray) -> float | None:
    """Expected free discovery: as `novelty`, but only hits count in the numerator (p(rel) = 1 for a target, 0 else)."""
    return _discounted(items_Uxk, hits_Uxk, _self_information(train_count_I))


def epc(items_Uxk: np.ndarray, hits_Uxk: np.ndarray, train_count_I: np.ndarray, num_users: int) -> float | None:
    """Expected popularity complement: EPC = sum_r d_r hit_r (1 - n_i / U) / sum_r d_r, averaged over users, 0..1.

    n_i / U is the share of users who have the item in training. Source: Vargas & Castells (2011).
    """
    return _discounted(items_Uxk, hits_Uxk, 1.0 - np.minimum(train_count_I / max(num_users, 1), 1.0))


def _exposure(items_Uxk: np.ndarray, num_items: int) -> np.ndarray:
    return np.bincount(items_Uxk[items_Uxk >= 0], minlength=num_items)


def _self_information(train_count_I: np.ndarray) -> np.ndarray:
    seen_I = np.maximum(train_count_I, 1)
    return -np.log2(seen_I / max(int(train_count_I.sum()), 1))


def _mean_of_lists(items_Uxk: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> float | None:
    """Mean over users with a list of the mean value of their listed items."""
    listed_Uxk = items_Uxk >= 0
    length_U = listed_Uxk.sum(1)
    if not length_U.any():
        return None
    total_U = np.where(listed_Uxk, value(np.maximum(items_Uxk, 0)), 0.0).sum(1)
    return float((total_U[length_U > 0] / length_U[length_U > 0]).mean())


def _discounted(items_Uxk: np.ndarray, counted_Uxk: np.ndarray, value_I: np.ndarray) -> float | None:
    listed_Uxk = items_Uxk >= 0
    discount_Uxk = np.where(listed_Uxk, (1.0 / np.log2(np.arange(2, items_Uxk.shape[1] + 2)))[None, :], 0.0)
    norm_U = discount_Uxk.sum(1)
    if not norm_U.any():
        return None
    gained_Uxk = np.where(listed_Uxk & counted_Uxk, value_I[np.maximum(items_Uxk, 0)], 0.0)
    total_U = (discount_Uxk * gained_Uxk).sum(1)
    return float((total_U[norm_U > 0] / norm_U[norm_U > 0]).mean())
