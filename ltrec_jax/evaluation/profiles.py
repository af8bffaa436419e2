"""Lists against the taste of their owners: does a user who likes rare items get rare items?

A profile is what a user did in training. Figures come as sums per list owner; users without a list or a profile are
skipped. Out of scope: groups of users (`slices`).
"""

import dataclasses

import numpy as np

from ltrec_jax.data.history import History
from ltrec_jax.evaluation.significance import UserSums


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Of V users: training events, mean training count of their items (float64 [V]), share in each item group [V, G].

    Users without training events have 0 everywhere.
    """

    events_V: np.ndarray
    popularity_V: np.ndarray
    share_VxG: np.ndarray

    def take(self, rows: np.ndarray) -> "Profiles":
        """The profiles of some of the users."""
        return Profiles(self.events_V[rows], self.popularity_V[rows], self.share_VxG[rows])


def profiles(
    training: History, users_V: np.ndarray, train_count_I: np.ndarray, group_I: np.ndarray, groups: int
) -> Profiles:
    """The profiles of these users; `group_I` int [I] in 0..groups - 1 parts the items."""
    user_N = np.repeat(np.arange(training.num_users), training.counts)
    events_U = np.maximum(training.counts, 1)
    total_U = np.bincount(user_N, weights=train_count_I[training.items], minlength=training.num_users)
    inside = np.bincount(user_N * groups + group_I[training.items], minlength=training.num_users * groups)
    share_UxG = inside.reshape(training.num_users, groups) / events_U[:, None]
    return Profiles(training.counts[users_V], (total_U / events_U)[users_V], share_UxG[users_V])


def popularity_lift(items_Vxk: np.ndarray, known: Profiles, train_count_I: np.ndarray) -> UserSums:
    """How much more popular the lists are than the profiles: (GAP(lists) - GAP(profiles)) / GAP(profiles).

    GAP = mean over users of the mean training count of a user's items. 0 = as popular as the profile, 1 = twice.
    Source: Abdollahpouri et al., "The Unfairness of Popularity Bias in Recommendation" (2019).
    """
    listed = items_Vxk >= 0
    length_V = listed.sum(1)
    total_V = np.where(listed, train_count_I[np.maximum(items_Vxk, 0)], 0).sum(1)
    counted_V = (length_V > 0) & (known.popularity_V > 0)
    gained_V = total_V / np.maximum(length_V, 1) - known.popularity_V
    return UserSums(np.where(counted_V, gained_V, 0.0), np.where(counted_V, known.popularity_V, 0.0), by_users=True)


def miscalibration(items_Vxk: np.ndarray, known: Profiles, group_I: np.ndarray) -> UserSums:
    """Jensen-Shannon divergence between a user's shares of item groups in profile and list, mean over users, 0..1 bit.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, logarithms to base 2; 0 = calibrated. With head, mid and
    tail as groups this is the user popularity deviation of Abdollahpouri et al. (UMAP 2021); calibration: Steck
    (RecSys 2018), whose KL needs smoothing where a list lacks a group.
    """
    groups = known.share_VxG.shape[1]
    listed = items_Vxk >= 0
    length_V = listed.sum(1)
    inside_VxkxG = (group_I[np.maximum(items_Vxk, 0)][:, :, None] == np.arange(groups)) & listed[:, :, None]
    q_VxG = inside_VxkxG.sum(1) / np.maximum(length_V, 1)[:, None]
    p_VxG = known.share_VxG
    m_VxG = (p_VxG + q_VxG) / 2
    counted_V = (length_V > 0) & (p_VxG.sum(1) > 0)
    divergence_V = (_relative_entropy(p_VxG, m_VxG) + _relative_entropy(q_VxG, m_VxG)) / 2
    return UserSums(np.where(counted_V, divergence_V, 0.0), counted_V.astype(np.float64))


def _relative_entropy(p_VxG: np.ndarray, m_VxG: np.ndarray) -> np.ndarray:
    """sum_g p log2(p / m), a term with p = 0 being 0."""
    ratio = np.divide(p_VxG, m_VxG, out=np.ones(p_VxG.shape), where=p_VxG > 0)
    return (p_VxG * np.log2(ratio)).sum(1)
