"""What a metric would be without the bias of what was observed: IPS, SNIPS and the doubly robust estimator.

Test events are not a fair sample of all pairs: popular items are seen more often. Each event counts 1 / p, p being the
probability that it was observed. An item without training events has no propensity (its p is 0 here): its events count
for nothing, and what is estimated is the mean over the items that have one. Any floor in its place would be made up,
and give a few new items most of the weight. Everything comes as sums per user. Out of scope: where propensities come
from (`data.popularity`), intervals (`significance`); the intervals take the propensities as known.
"""

import numpy as np

from ltrec_jax.evaluation.ranking import Lists, Targets
from ltrec_jax.evaluation.significance import UserSums


def calibrated(relative_I: np.ndarray, events: int, users: int) -> np.ndarray:
    """Propensities float64 [I] in [0, 1] with the shape of `relative_I`, so that `events` pairs are expected.

    p_i = min(1, c r_i), c = events / (users sum_i r_i). (Where some p_i hit 1, slightly fewer are expected.) All 0
    where `relative_I` is. `events` are those with the items that have a propensity.
    """
    expected = users * float(relative_I.sum())
    return np.minimum(1.0, relative_I * (events / expected)) if expected else np.zeros(len(relative_I))


def weights(propensity_N: np.ndarray) -> np.ndarray:
    """1 / p, and 0 where there is no propensity: float64 [N]."""
    return np.divide(1.0, propensity_N, out=np.zeros(len(propensity_N)), where=propensity_N > 0)


def effective_size(propensity_N: np.ndarray) -> float:
    """How many equally weighted events the N weighted ones are worth: (sum w)^2 / sum w^2, w = 1 / p.

    Source: Kish, "Survey Sampling" (1965).
    """
    weight_N = weights(propensity_N)
    return float(weight_N.sum() ** 2 / (weight_N**2).sum()) if weight_N.any() else 0.0


def ips(
    loss_P: np.ndarray, propensity_P: np.ndarray, row_P: np.ndarray, num_rows: int, num_items: int, *, root: bool
) -> UserSums:
    """Inverse propensity scoring: R = sum_observed loss / p / (U I), U users of the test, I items with a propensity.

    Unbiased if p is right, with a large variance where p is small. `root`: sqrt R (of squared errors: an RMSE).
    Source: Schnabel et al., "Recommendations as Treatments" (ICML 2016).
    """
    total_U = np.bincount(row_P, weights=loss_P * weights(propensity_P), minlength=num_rows)
    return UserSums(total_U, np.full(num_rows, float(num_items)), root, by_users=True)


def snips(loss_P: np.ndarray, propensity_P: np.ndarray, row_P: np.ndarray, num_rows: int, *, root: bool) -> UserSums:
    """Self-normalised IPS: R = sum_observed loss / p / sum_observed 1 / p. Only the shape of p matters.

    A weighted mean of the observed losses, so never outside their range. Source: Swaminathan & Joachims (NIPS 2015),
    Schnabel et al. (2016).
    """
    weight_P = weights(propensity_P)
    total_U = np.bincount(row_P, weights=loss_P * weight_P, minlength=num_rows)
    return UserSums(total_U, np.bincount(row_P, weights=weight_P, minlength=num_rows), root, by_users=True)


def doubly_robust(
    loss_P: np.ndarray,
    imputed_P: np.ndarray,
    imputed_U: np.ndarray,
    propensity_P: np.ndarray,
    row_P: np.ndarray,
    num_items: int,
    *,
    root: bool,
) -> UserSums:
    """Doubly robust: R = (sum_all e' + sum_observed (loss - e') / p) / (U I), right if either p or e' is.

    e' is the loss imputed to every pair: `imputed_P` its value at the observed pairs, `imputed_U` float64 [U] its sum
    over the I items with a propensity for each user. R may be negative; `root` then gives 0. Source: Dudik et al. (ICML
    2011), for ratings Wang et al., "Doubly Robust Joint Learning for Recommendation on Data Missing Not at Random"
    (ICML 2019).
    """
    correction_U = np.bincount(row_P, weights=(loss_P - imputed_P) * weights(propensity_P), minlength=len(imputed_U))
    return UserSums(imputed_U + correction_U, np.full(len(imputed_U), float(num_items)), root, by_users=True)


def ranking(lists: Lists, wanted: Targets, propensity_I: np.ndarray, k: int) -> dict[str, UserSums]:
    """SNIPS-weighted recall and (not normalised) DCG, for each of the V users with a target.

    R_u = sum_targets c(rank) / p / sum_targets 1 / p; c = 1 within the first k for recall, 1 / log2(rank + 1) for DCG,
    0 beyond. Targets on items without a propensity are left out; a user without others is skipped. Source: Yang et al.,
    "Unbiased offline recommender evaluation for missing-not-at-random implicit feedback" (RecSys 2018).
    """
    hits_Vxk, weight_I = lists.hits[:, :k], weights(propensity_I)
    # Item -1 reads the last weight, but is never a hit.
    gain_Vxk = np.where(hits_Vxk, weight_I[lists.items[:, :k]], 0.0)
    weight_V = np.bincount(wanted.row_N, weights=weight_I[wanted.item_N], minlength=len(wanted.users))
    discount_k = 1.0 / np.log2(np.arange(2, hits_Vxk.shape[1] + 2))
    counted_V = (weight_V > 0).astype(np.float64)
    gains = {"recall": gain_Vxk.sum(1), "dcg": gain_Vxk @ discount_k}
    return {
        name: UserSums(np.divide(gain_V, weight_V, out=np.zeros(len(gain_V)), where=weight_V > 0), counted_V)
        for name, gain_V in gains.items()
    }
