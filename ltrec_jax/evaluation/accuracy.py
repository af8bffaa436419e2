"""Ranking accuracy of each user with binary relevance: is what the user wanted near the top of the list?

Every function takes hits_UxK (bool: is the item at this rank a target), relevant_U (how many targets the user has,
found or not) and k <= K, and gives float64 [U]. A user without a target gets 0 and must not be counted: a mean is over
users with relevant_U > 0. For a group of items both arguments are restricted to targets in the group; ranks stay those
of the full list. Out of scope: making lists (`ranking`), averaging (`significance`).
"""

from collections.abc import Callable, Mapping

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def ndcg(hits_UxK: np.ndarray, relevant_U: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain, gain 1 for a target, ideal list truncated at k.

    nDCG@k = sum_{r<=k} hit_r / log2(r + 1)  /  sum_{r<=min(k, relevant)} 1 / log2(r + 1).
    Source: Jarvelin & Kekalainen (2002).
    """
    discount_k = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount_k)])[np.minimum(relevant_U, k)]
    return _over(hits_UxK[:, :k] @ discount_k, ideal)


def recall(hits_UxK: np.ndarray, relevant_U: np.ndarray, k: int) -> np.ndarray:
    """Recall@k = hits in the first k / relevant. With more than k targets it cannot reach 1.

    Source: van Rijsbergen, "Information Retrieval" (1979), ch. 7; for top-N lists Cremonesi, Koren & Turrin,
    "Performance of recommender algorithms on top-N recommendation tasks" (RecSys 2010), there with one target a list.
    """
    return _over(hits_UxK[:, :k].sum(1), relevant_U)


def precision(hits_UxK: np.ndarray, relevant_U: np.ndarray, k: int) -> np.ndarray:
    """Precision@k = hits in the first k / k, also where the user has fewer than k targets.

    Source: as `recall`; of the first k Manning, Raghavan & Schuetze, "Introduction to Information Retrieval" (2008),
    ch. 8.4.
    """
    return _over(hits_UxK[:, :k].sum(1), np.where(relevant_U > 0, k, 0))


def hit_rate(hits_UxK: np.ndarray, relevant_U: np.ndarray, k: int) -> np.ndarray:
    """HitRate@k = 1 if any of the first k is a target, else 0.

    Source: Deshpande & Karypis, "Item-based top-N recommendation algorithms" (ACM TOIS 2004), there with one target per
    user.
    """
    return (hits_UxK[:, :k].any(1) & (relevant_U > 0)).astype(np.float64)


def mrr(hits_UxK: np.ndarray, relevant_U: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank: MRR@k = 1 / rank of the first target, 0 if none is among the first k.

    Source: Voorhees, "The TREC-8 Question Answering Track Report" (TREC 1999).
    """
    first = np.where(hits_UxK[:, :k].any(1), hits_UxK[:, :k].argmax(1) + 1, np.inf)
    return np.where(relevant_U > 0, 1.0 / first, 0.0)


def average_precision(hits_UxK: np.ndarray, relevant_U: np.ndarray, k: int) -> np.ndarray:
    """MAP@k of a user = sum_{r<=k} hit_r * Precision@r / min(k, relevant).

    Source: Buckley & Voorhees, "Evaluating evaluation measure stability" (SIGIR 2000), whose denominator is the number
    of relevant ones: min(k, relevant) lets a list of k reach 1.
    """
    hits_Uxk = hits_UxK[:, :k]
    precision_Uxk = np.cumsum(hits_Uxk, axis=1) / np.arange(1, k + 1)[None, :]
    return _over((hits_Uxk * precision_Uxk).sum(1), np.minimum(relevant_U, k))


METRICS: Mapping[str, Metric] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "hitrate": hit_rate,
    "mrr": mrr,
    "map": average_precision,
}
"""Names in a report, followed by @k."""


def _over(total_U: np.ndarray, count_U: np.ndarray) -> np.ndarray:
    return np.divide(total_U, count_U, out=np.zeros(len(total_U)), where=count_U > 0)
