"""New users without retraining: the one row solve that a training user's vector came from, and its recursive form.

A user's row is w = p, or w = [b | p] where the model has user biases. Both recipes are a Gaussian prior and weighted
squared errors over the user's events m, with design row d_m = q_i, or [1 | q_i]:

    (Lambda + n ridge I + sum_m a w_m (d_m d_m^T + C_i)) w = Lambda m0 + sum_m a w_m (t_m d_m - e_i)

whole data (`anchored_als`): Lambda = a0 Q^T Q + l2 a0 |I| I, m0 = 0, ridge = l2, t = 1 - b_i with b_i = 0. Explicit
(`bayes`): Lambda and m0 of the user prior, t = rating - mu - b_i, and where item vectors are uncertain their covariance
C_i and its part e_i with the item's bias; a is the user's own noise scale.
NumPy on the host, float64 inside: 20 events at width 384 take under a millisecond, and no length has to be compiled.
"""

import dataclasses
import functools

import numpy as np
import scipy.linalg

from ltrec_jax.config import WholeDataConfig
from ltrec_jax.errors import UserError
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.solve.user_features import UserFeatures


@dataclasses.dataclass(frozen=True)
class UserPrior:
    """What fold-in needs beside item vectors and biases. D' = D, or D + 1 with `explicit` (the bias goes first).

    precision [D', D'], mean [D'], weight_I [I] (of an event with each item; a never-trained item's too), ridge (per
    event). Of an uncertain model: covariance [I, D', D'] and cross [I, D'], else None. `features` move the mean from
    that of a user of average features to a user's own (`of`). `newcomer` [D'] is the row of whoever has no event, where
    that is not the mean (`newcomer`, whole data).
    """

    explicit: bool
    precision: np.ndarray
    mean: np.ndarray
    weight_I: np.ndarray
    ridge: float = 0.0
    covariance: np.ndarray | None = None
    cross: np.ndarray | None = None
    features: UserFeatures | None = None
    newcomer: np.ndarray | None = None

    def of(self, items_M: np.ndarray, user: int | None = None) -> "UserPrior":
        """The prior of a user with events of these items; `user`: the number of a training user."""
        if self.features is None:
            return self
        return dataclasses.replace(self, mean=self.features.mean(items_M, user))

    def scale_of(self, user: int | None) -> float:
        """The noise scale a of a training user, or of somebody new (1)."""
        return 1.0 if self.features is None or user is None else float(self.features.noise[user])

    @functools.cached_property
    def basis(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues and eigenvectors (columns) of the precision: found once, they make every short fold-in cheap."""
        values, vectors = np.linalg.eigh(np.asarray(self.precision, np.float64))
        return values, vectors


@dataclasses.dataclass(frozen=True)
class UserRow:
    """A user's row that takes events one by one: mean [D'], float64, and the inverse of its left side [D', D'].

    Under `explicit` the inverse is the posterior covariance: the variance of a score is d^T inverse d, plus the noise.
    """

    mean: np.ndarray
    inverse: np.ndarray


def whole_data_prior(
    item_vectors: np.ndarray, counts_I: np.ndarray, num_active: int, settings: WholeDataConfig
) -> UserPrior:
    """The prior of `anchored_als` at its final item vectors [I, D] and the training counts int [I] of U active users.

    Only warm items enter the sum over all pairs, as in training. An event with a cold item weighs as much as one with
    an item of one event. The mean is 0, as in training: `newcomer` is for users without events alone. With
    it as the mean everybody is shown what is popular. On validation of MovieLens-100K the sum of warm, tail and cold
    nDCG@20 falls from .408 to .353 and the tail to 0; of MovieTweetings, with three events a user, the tail goes too
    and cold gains (fine-tuned, one cut: warm .0923 to .0915, cold .186 to .223).
    """
    warm = counts_I > 0
    q_IxD = np.asarray(item_vectors, np.float64)[warm]
    a0 = settings.unobserved_weight
    precision = a0 * (q_IxD.T @ q_IxD) + settings.l2 * a0 * warm.sum() * np.eye(item_vectors.shape[1])
    weight_I = popularity_weights(counts_I, settings.propensity_power)
    rare = weight_I[warm].max(initial=1.0)
    return UserPrior(
        explicit=False,
        precision=precision,
        mean=np.zeros(item_vectors.shape[1]),
        weight_I=np.where(warm, weight_I, rare),
        ridge=settings.l2,
        newcomer=newcomer(item_vectors, counts_I, num_active, settings),
    )


def newcomer(item_vectors: np.ndarray, counts_I: np.ndarray, num_active: int, settings: WholeDataConfig) -> np.ndarray:
    """The vector [D], float64, of a user of whom nothing is known, at the final item vectors [I, D] of `anchored_als`.

    Of all vectors it fits everybody best: it minimises the training objective of U users (`num_active`: those with
    events) who all have this one vector, divided by U, with the penalty of one mean user instead of U:

        sum_i s_i w_i (<p, q_i> - 1)^2  +  a0 sum_(warm i) <p, q_i>^2  +  lam / U (N / U + a0 |I|) |p|^2

    s_i = n_i / U is the share of users with an event of item i, w_i the weight of such an event, N = sum_i n_i. A
    score is then s_i w_i / (a0 + s_i w_i) as far as D numbers can say that of all items, and a cold item's is what they
    make of its text. U penalties, which is near the mean of the users' vectors, leave less of it.
    """
    warm = counts_I > 0
    q_WxD, share_W = item_vectors[warm].astype(np.float64), counts_I[warm] / num_active
    weight_W = share_W * popularity_weights(counts_I, settings.propensity_power)[warm]
    a0 = settings.unobserved_weight
    ridge = settings.l2 / num_active * (share_W.sum() + a0 * warm.sum())
    left = (q_WxD * (a0 + weight_W)[:, None]).T @ q_WxD + ridge * np.eye(q_WxD.shape[1])
    # Least squares, since without a penalty it may leave directions free, which then stay at 0.
    return np.linalg.lstsq(left, q_WxD.T @ weight_W, rcond=None)[0]


def events(
    prior: UserPrior,
    items_M: np.ndarray,
    ratings_M: np.ndarray | None,
    mu: float,
    item_vectors: np.ndarray,
    item_biases: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Design rows [M, D'] and targets [M] of a user's events, float64.

    Items are internal ids; each once. Under `explicit` ratings are needed and must be finite, else they are ignored.
    """
    items_M = np.asarray(items_M)
    if len(items_M) and not (items_M.min() >= 0 and items_M.max() < len(item_vectors)):
        raise ValueError(f"item ids must lie in 0..{len(item_vectors) - 1}")
    if len(np.unique(items_M)) < len(items_M):
        raise UserError("An item occurs twice among the user's events. Give each item once, with its last rating.")
    q_MxD = np.asarray(item_vectors[items_M], np.float64)
    if not prior.explicit:
        return q_MxD, 1.0 - np.asarray(item_biases[items_M], np.float64)
    if ratings_M is None or len(ratings_M) != len(items_M) or not np.isfinite(ratings_M).all():
        raise UserError("This model predicts ratings: give every event of the user a finite rating.")
    return np.insert(q_MxD, 0, 1.0, axis=1), np.asarray(ratings_M, np.float64) - mu - item_biases[items_M]


def fold_in(
    prior: UserPrior, items_M: np.ndarray, design_MxD: np.ndarray, target_M: np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """The row [D'], float64, of a user with these events (`events` gives design and targets).

    Without events it is `prior.newcomer`, or the prior mean where there is none.

    A training user folded in at the final item vectors, with the prior and the scale that are that user's
    (`UserPrior.of`, `UserPrior.scale_of`), has the vector that training gave. Fewer events than D' are solved by
    Woodbury's identity in the precision's eigenbasis (M^2 D' + D'^2), more by Cholesky. A singular left side is a
    `UserError`.
    """
    if len(items_M) == 0:
        return np.array(prior.mean if prior.newcomer is None else prior.newcomer, np.float64)
    weight_M = scale * np.asarray(prior.weight_I, np.float64)[items_M]
    ridge = len(items_M) * prior.ridge
    right = prior.precision @ prior.mean + design_MxD.T @ (weight_M * target_M)
    if prior.cross is not None:
        right = right - weight_M @ np.asarray(prior.cross, np.float64)[items_M]
    try:
        if prior.covariance is None and len(items_M) < len(prior.mean):
            return _short(prior, ridge, design_MxD, weight_M, right)
        left = prior.precision + ridge * np.eye(len(prior.mean)) + (design_MxD * weight_M[:, None]).T @ design_MxD
        if prior.covariance is not None:
            left = left + np.einsum("m,mde->de", weight_M, np.asarray(prior.covariance, np.float64)[items_M])
        return scipy.linalg.solve(left, right, assume_a="pos")
    except np.linalg.LinAlgError as error:
        raise UserError("The new user's equations are singular: the model was trained without a penalty.") from error


def start(prior: UserPrior, ridge_events: int = 0) -> UserRow:
    """The prior as a row, to be given events one by one with `observe`.

    A whole-data prior's ridge grows with each event, which is no rank-one change: it is fixed here at that of
    `ridge_events` events, and the row equals `fold_in` when it has taken so many (at least one). A prior that
    determines nothing (no ridge, and no weight of unobserved pairs) is a `UserError`.
    """
    left = prior.precision + ridge_events * prior.ridge * np.eye(len(prior.mean))
    try:
        inverse = scipy.linalg.inv(left)
    except np.linalg.LinAlgError as error:
        raise UserError(
            "The new user's equations are singular: the model was trained without a penalty, or without weight of "
            "unobserved pairs and is asked about a user without events."
        ) from error
    return UserRow(inverse @ (prior.precision @ prior.mean), inverse)


def observe(prior: UserPrior, row: UserRow, item: int, design_D: np.ndarray, target: float) -> UserRow:
    """The row after one more event, by Sherman & Morrison: as if all events were solved again, at a cost of D'^2.

        inverse' = inverse - w (inverse d)(inverse d)^T / (1 + w d^T inverse d)
        mean'    = mean + w inverse' d (t - d^T mean)

    Priors with covariances of the items have no rank-one form and are refused with `ValueError`.
    """
    if prior.covariance is not None or prior.cross is not None:
        raise ValueError("a rank-one update has no place for item covariances: fold all events in again")
    weight = float(prior.weight_I[item])
    across_D = row.inverse @ design_D
    inverse = row.inverse - np.outer(across_D, across_D) * (weight / (1.0 + weight * float(design_D @ across_D)))
    return UserRow(row.mean + weight * (target - float(design_D @ row.mean)) * (inverse @ design_D), inverse)


def _short(
    prior: UserPrior, ridge: float, design_MxD: np.ndarray, weight_M: np.ndarray, right_D: np.ndarray
) -> np.ndarray:
    values_D, vectors_DxD = prior.basis
    diagonal_D = values_D + ridge
    if not (diagonal_D > 0).all():
        raise np.linalg.LinAlgError("the prior and the ridge leave a direction free")
    s_MxD = (design_MxD @ vectors_DxD) * np.sqrt(weight_M)[:, None]
    free_D = (right_D @ vectors_DxD) / diagonal_D
    scaled_MxD = s_MxD / diagonal_D
    inner_MxM = np.eye(len(s_MxD)) + scaled_MxD @ s_MxD.T
    turned_D = free_D - scaled_MxD.T @ scipy.linalg.solve(inner_MxM, s_MxD @ free_D, assume_a="pos")
    return vectors_DxD @ turned_D
