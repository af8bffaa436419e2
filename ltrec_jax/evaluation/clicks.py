"""Figures of labelled impressions: can a model tell what was taken from what was shown and left?

A pair is positive if its rating reaches the positive rating. Everything comes as sums per user, divided once, after
everything is merged. Out of scope: items that were not shown (`ranking`).
"""

import numpy as np

from ltrec_jax.evaluation.significance import UserSums

_SMALLEST = 1e-7


def auc(score_P: np.ndarray, positive_P: np.ndarray, row_P: np.ndarray, num_rows: int) -> UserSums:
    """Area under the ROC curve within each user, averaged over the users who have pairs of both kinds.

    AUC_u = (sum of the ranks of u's positives - n+ (n+ + 1) / 2) / (n+ n-): the share of (positive, negative) pairs
    of u in the right order, equal scores counting half (mid-ranks). Users with one kind only are skipped. Within users
    as in MIND (Wu et al. 2020), because only such pairs compete for a place. Source: Mann & Whitney (1947), Hanley &
    McNeil (1982).
    """
    order = np.lexsort((score_P, row_P))
    rows, scores, positive = row_P[order], score_P[order], positive_P[order]
    starts = np.ones(len(rows), bool)
    starts[1:] = (rows[1:] != rows[:-1]) | (scores[1:] != scores[:-1])
    block = np.cumsum(starts) - 1
    place = np.arange(1, len(rows) + 1, dtype=np.float64)
    middle = np.bincount(block, weights=place) / np.bincount(block)
    pairs_U = np.bincount(rows, minlength=num_rows)
    rank = middle[block] - (np.cumsum(pairs_U) - pairs_U)[rows]
    positives_U = np.bincount(rows[positive], minlength=num_rows).astype(np.float64)
    ranks_U = np.bincount(rows[positive], weights=rank[positive], minlength=num_rows)
    ordered_U = ranks_U - positives_U * (positives_U + 1) / 2
    both_U = positives_U * (pairs_U - positives_U)
    return UserSums(np.divide(ordered_U, both_U, out=np.zeros(num_rows), where=both_U > 0), (both_U > 0).astype(float))


def log_loss(probability_P: np.ndarray, positive_P: np.ndarray, row_P: np.ndarray, num_rows: int) -> UserSums:
    """Mean over pairs of -log p for a positive and -log(1 - p) for a negative, in nats:

        L = -sum_P (y log p + (1 - y) log(1 - p)) / P        y = 1 for a positive, else 0

    The predicted rating of 0/1 data is taken as the probability (what a squared error estimates), clipped to
    [1e-7, 1 - 1e-7]: a model that is sure and wrong costs 16 nats, not infinity. Source: the logarithmic
    score of Good, "Rational decisions" (Journal of the Royal Statistical Society B, 1952).
    """
    p_P = np.clip(probability_P.astype(np.float64), _SMALLEST, 1.0 - _SMALLEST)
    loss_P = -np.log(np.where(positive_P, p_P, 1.0 - p_P))
    total_U = np.bincount(row_P, weights=loss_P, minlength=num_rows)
    return UserSums(total_U, np.bincount(row_P, minlength=num_rows).astype(np.float64))
