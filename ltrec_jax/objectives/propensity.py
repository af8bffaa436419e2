"""Inverse-propensity weights of an objective: events that were unlikely to be observed count for those that were not.

Out of scope: estimating the propensities of single events (`data.popularity`: by rating value, naive Bayes).
"""

import numpy as np


def inverse_propensity_weights(
    propensity_N: np.ndarray,
    *,
    clip: float = 0.0,
    self_normalised: bool = True,
    counts_N: np.ndarray | None = None,
) -> np.ndarray:
    """w_n = min(1 / p_n, clip), divided by their mean if `self_normalised`: float64 [N].

    `counts_N`: how many events each propensity stands for in that mean (default: one). `clip` bounds the variance at
    the price of bias (0: none); a mean of 1 keeps the scale of the loss and of its penalties (SNIPS, Swaminathan &
    Joachims, NeurIPS 2015; for recommendation Schnabel et al., ICML 2016). No event gives no weight. A propensity
    outside (0, 1] is `ValueError`.
    """
    propensity_N = np.asarray(propensity_N, np.float64)
    if len(propensity_N) and not (propensity_N.min() > 0 and propensity_N.max() <= 1):
        raise ValueError("propensities must lie in (0, 1]")
    weight_N = 1.0 / propensity_N
    if clip:
        weight_N = np.minimum(weight_N, clip)
    if self_normalised and len(weight_N):
        weight_N = weight_N / np.average(weight_N, weights=counts_N)
    return weight_N


def popularity_weights(counts_I: np.ndarray, power: float, *, clip: float = 0.0) -> np.ndarray:
    """Weight of each item's events, w_i ~ n_i^-power with sum_i w_i n_i = sum_i n_i: float64 [I], 0 if n_i = 0.

    Inverse propensities, self-normalised, where an item is seen with a probability that goes with its popularity's
    power (Yang et al., RecSys 2018). Before they are normalised, weights are at most `clip` times that of the most
    popular item (0: no bound).
    """
    counts_I = np.asarray(counts_I, np.float64)
    weight = np.power(counts_I, -power, out=np.zeros_like(counts_I), where=counts_I > 0)
    if clip:
        weight = np.minimum(weight, clip * counts_I.max(initial=1.0) ** -power)
    return weight * counts_I.sum() / max(float(weight @ counts_I), 1e-12)
