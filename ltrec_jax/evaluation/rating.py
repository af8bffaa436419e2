"""Errors of predicted ratings: RMSE and MAE as sums per user, to be divided once, after everything is merged.

Predictions are taken as the model gives them: clipping to the rating scale is the model's own affair.
"""

from collections.abc import Callable

import numpy as np
import tqdm

from ltrec_jax.evaluation.significance import UserSums
from ltrec_jax.types import Array

_BLOCK_PAIRS = 16_384


def predictions(
    score_pairs: Callable[[np.ndarray, np.ndarray], Array], users_P: np.ndarray, items_P: np.ndarray, *, name: str
) -> np.ndarray:
    """Scores of P pairs, float32 [P], in blocks of one fixed shape (the last is filled up), so that it compiles once.

    `ValueError` if a score is not finite; `name` is the model's, for the message and the progress bar.
    """
    block = min(_BLOCK_PAIRS, max(len(users_P), 1))
    found_P = np.empty(len(users_P), np.float32)
    for start in tqdm.tqdm(range(0, len(users_P), block), f"ratings of {name}", unit="block", delay=1.0, leave=False):
        rows = np.minimum(np.arange(start, start + block), len(users_P) - 1)
        kept = min(block, len(users_P) - start)
        scores = np.asarray(score_pairs(users_P[rows], items_P[rows]))
        if scores.shape != (block,):
            raise ValueError(f"model {name!r}: pair scores have shape {scores.shape}, not {(block,)}")
        found_P[start : start + kept] = scores[:kept]
    if not np.isfinite(found_P).all():
        worst = int(np.flatnonzero(~np.isfinite(found_P))[0])
        raise ValueError(f"model {name!r} scores {found_P[worst]} for user {users_P[worst]}, item {items_P[worst]}")
    return found_P


def rmse(predicted_P: np.ndarray, rating_P: np.ndarray, row_P: np.ndarray, num_rows: int) -> UserSums:
    """RMSE = sqrt(sum_P (predicted - rating)^2 / P), in rating units; `row_P` says which user row a pair belongs to.

    Over all pairs, not a mean of users. Source: Herlocker et al., "Evaluating collaborative filtering recommender
    systems" (ACM TOIS 2004).
    """
    return UserSums(*_sums(errors(predicted_P, rating_P) ** 2, row_P, num_rows), root=True)


def mae(predicted_P: np.ndarray, rating_P: np.ndarray, row_P: np.ndarray, num_rows: int) -> UserSums:
    """MAE = sum_P |predicted - rating| / P, in rating units. Source: as `rmse`."""
    return UserSums(*_sums(np.abs(errors(predicted_P, rating_P)), row_P, num_rows))


METRICS = {"rmse": rmse, "mae": mae}
"""Names in a report."""


def errors(predicted_P: np.ndarray, rating_P: np.ndarray) -> np.ndarray:
    """predicted - rating, float64 [P]; `ValueError` for unequal shapes."""
    if predicted_P.shape != rating_P.shape:
        raise ValueError(f"predictions have shape {predicted_P.shape}, ratings {rating_P.shape}")
    return predicted_P.astype(np.float64) - rating_P.astype(np.float64)


def _sums(loss_P: np.ndarray, row_P: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    total = np.bincount(row_P, weights=loss_P, minlength=num_rows)
    return total, np.bincount(row_P, minlength=num_rows).astype(np.float64)
