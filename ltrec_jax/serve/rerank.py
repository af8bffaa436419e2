"""A longer list of candidates made into the list that is shown: the tail dial and diversity. Pure functions.

Out of scope: scores and which items may be shown.
"""

import numpy as np


def tail_dial(scores_N: np.ndarray, counts_N: np.ndarray, tail: float) -> np.ndarray:
    """Values to rank N candidates by, float64 [N]:

        value_i = (1 - t) z(score_i) - t z(log(1 + n_i)),        z(x) = (x - mean) / standard deviation

    t = `tail` in [0, 1], n_i = the item's training count, z over the candidates of this list. t = 0 is the order of the
    scores, t = 1 shows the rarest of the candidates first; between them the mean of log(1 + n) of the k best never
    rises with t. A standard deviation of 0 counts as 1. For scores with biases, as of ratings: those of a model solved
    for lists are multiplied by n^-t instead (`solve.cold_start.dial_factors`).
    """
    if not 0.0 <= tail <= 1.0:
        raise ValueError(f"tail must lie in [0, 1], not {tail}")
    return (1.0 - tail) * _z(np.asarray(scores_N, np.float64)) - tail * _z(np.log1p(np.asarray(counts_N, np.float64)))


def diverse(values_N: np.ndarray, unit_NxE: np.ndarray, k: int, diversity: float) -> np.ndarray:
    """Positions of k of the N candidates, chosen one after the other by maximal marginal relevance:

        next = argmax_i (1 - d) v_i - d max_{j chosen} cos(i, j)

    d = `diversity` in [0, 1], v = `values_N` scaled to [0, 1], `unit_NxE` unit rows whose products are the cosines.
    d = 0 is the order of the values; ties go to the earlier candidate. Source: Carbonell and Goldstein, SIGIR 1998.
    """
    if not 0.0 <= diversity <= 1.0:
        raise ValueError(f"diversity must lie in [0, 1], not {diversity}")
    values_N = np.asarray(values_N, np.float64)
    k = min(k, len(values_N))
    if diversity == 0.0 or k == 0:
        return np.argsort(-values_N, kind="stable")[:k]
    spread = np.ptp(values_N)
    relevance_N = (values_N - values_N.min()) / (spread if spread > 0 else 1.0)
    nearest_N = np.full(len(values_N), -np.inf)
    chosen: list[int] = []
    for _ in range(k):
        gain_N = (1.0 - diversity) * relevance_N - (diversity * nearest_N if chosen else 0.0)
        gain_N[chosen] = -np.inf
        best = int(np.argmax(gain_N))
        chosen.append(best)
        nearest_N = np.maximum(nearest_N, unit_NxE @ unit_NxE[best])
    return np.array(chosen)


def _z(values_N: np.ndarray) -> np.ndarray:
    deviation = values_N.std() if len(values_N) else 0.0
    return (values_N - values_N.mean()) / deviation if deviation > 0 else np.zeros_like(values_N)
