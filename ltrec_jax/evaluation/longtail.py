"""What a set of lists does to the catalogue: how much of it is shown, how evenly, how popular, how new.

These are shares of exposure, not accuracy: a random model wins most of them. They stand beside the accuracy of the
tail group, never instead of it. Lists are items int32 [V, k] with -1 where a list is shorter; counts are TRAINING
events of each item. Coverage and Gini belong to the whole catalogue: one number, None without any listed item. The
others are means over the users with a list and come as sums per user.
"""

from collections.abc import Callable

import numpy as np

from ltrec_jax.data import popularity
from ltrec_jax.evaluation.significance import UserSums


def coverage(items_Vxk: np.ndarray, num_items: int) -> float | None:
    """Coverage@k = |union of the users' lists of k| / I, the share of the catalogue that stands in a list, 0..1.

    Source: "catalog coverage" of Ge, Delgado-Battenfeld & Jannach, "Beyond accuracy: evaluating recommender systems by
    coverage and serendipity" (RecSys 2010).
    """
    exposure_I = _exposure(items_Vxk, num_items)
    return float((exposure_I > 0).mean()) if exposure_I.any() else None


def gini(items_Vxk: np.ndarray, num_items: int) -> float | None:
    """Gini index of exposure over all items: 0 = all shown equally often, (I - 1) / I = one item takes every place.

    G = sum_i (2 i - I - 1) e_(i) / (I sum e), e_(1) <= ... <= e_(I) the number of lists that show an item. Source:
    Gini, "Variabilita e mutabilita" (1912); of what recommenders show Fleder & Hosanagar, "Blockbuster culture's next
    rise or fall" (Management Science 2009).
    """
    exposure_I = _exposure(items_Vxk, num_items)
    return popularity.gini(exposure_I) if exposure_I.any() else None


def arp(items_Vxk: np.ndarray, train_count_I: np.ndarray) -> UserSums:
    """Average recommendation popularity: mean over users of the mean training count of the listed items.

    Source: Yin et al. (2012), named so by Abdollahpouri et al. (2019).
    """
    return _mean_of_lists(items_Vxk, lambda items: train_count_I[items].astype(np.float64))


def aplt(items_Vxk: np.ndarray, tail_I: np.ndarray) -> UserSums:
    """Average percentage of long-tail items: mean over users of the share of the list in the tail (bool [I]), 0..1.

    Source: Abdollahpouri et al. (2019).
    """
    return _mean_of_lists(items_Vxk, lambda items: tail_I[items].astype(np.float64))


def novelty(items_Vxk: np.ndarray, train_count_I: np.ndarray) -> UserSums:
    """Expected free discovery without relevance: mean self-information of the listed items, rank-discounted, in bits.

    EFD = sum_r d_r (-log2 p(i_r)) / sum_r d_r averaged over users, d_r = 1 / log2(r + 1), p(i) = max(n_i, 1) / sum n
    (a never-seen item counts as seen once; the paper leaves it undefined). Source: Vargas & Castells (2011), whose
    EFD also weighs by relevance: see `efd`.
    """
    return _discounted(items_Vxk, np.ones(items_Vxk.shape, bool), _self_information(train_count_I))


def efd(items_Vxk: np.ndarray, hits_Vxk: np.ndarray, train_count_I: np.ndarray) -> UserSums:
    """Expected free discovery: EFD = sum_r d_r hit_r (-log2 p(i_r)) / sum_r d_r, averaged over users, in bits.

    As `novelty`, but only hits count in the numerator (p(rel) = 1 for a target, 0 else). Source: Vargas & Castells
    (2011).
    """
    return _discounted(items_Vxk, hits_Vxk, _self_information(train_count_I))


def epc(items_Vxk: np.ndarray, hits_Vxk: np.ndarray, train_count_I: np.ndarray, num_users: int) -> UserSums:
    """Expected popularity complement: EPC = sum_r d_r hit_r (1 - n_i / U) / sum_r d_r, averaged over users, 0..1.

    n_i / U is the share of users who have the item in training. Source: Vargas & Castells (2011).
    """
    return _discounted(items_Vxk, hits_Vxk, 1.0 - np.minimum(train_count_I / max(num_users, 1), 1.0))


def _exposure(items_Vxk: np.ndarray, num_items: int) -> np.ndarray:
    return np.bincount(items_Vxk[items_Vxk >= 0], minlength=num_items)


def _self_information(train_count_I: np.ndarray) -> np.ndarray:
    seen_I = np.maximum(train_count_I, 1)
    return -np.log2(seen_I / max(int(train_count_I.sum()), 1))


def _mean_of_lists(items_Vxk: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> UserSums:
    """The mean value of the listed items of each user with a list."""
    listed_Vxk = items_Vxk >= 0
    length_V = listed_Vxk.sum(1)
    total_V = np.where(listed_Vxk, value(np.maximum(items_Vxk, 0)), 0.0).sum(1)
    return UserSums(total_V / np.maximum(length_V, 1), (length_V > 0).astype(np.float64))


def _discounted(items_Vxk: np.ndarray, counted_Vxk: np.ndarray, value_I: np.ndarray) -> UserSums:
    listed_Vxk = items_Vxk >= 0
    discount_Vxk = np.where(listed_Vxk, (1.0 / np.log2(np.arange(2, items_Vxk.shape[1] + 2)))[None, :], 0.0)
    norm_V = discount_Vxk.sum(1)
    gained_Vxk = np.where(listed_Vxk & counted_Vxk, value_I[np.maximum(items_Vxk, 0)], 0.0)
    total_V = (discount_Vxk * gained_Vxk).sum(1)
    return UserSums(np.divide(total_V, norm_V, out=np.zeros(len(norm_V)), where=norm_V > 0), (norm_V > 0).astype(float))
