"""The rule of users who minimise squared errors: normal equations that grow by one event at a time.

A new user's row u = [b | p], or p alone, minimises what the user table was trained on, given the items' vectors. For a
table trained by gradient (`config.ModelConfig`) that is

    sum_i w_i [ (r_i - mu - b_i - <p, q_i> - b)^2 + delta sum_d p_d^2 q_id^2 ] + n (user_l2 |p|^2 + bias_l2 b^2)

where delta = dropout / (1 - dropout) is what dropping a share of the products adds in the mean, w_i the propensity
weight of the item or of the rating's value (1 without) and n the number of events. Where users have texts, the
penalties are those of u - c, c what the text alone says; somebody new, whose text is not known, has the mean of the
known ones. A known user moves from the trained u0 by minimising the same sum over the new events plus
(u - u0)^T A0 (u - u0), A0 the left side of the user's training events: recursive least squares, one solve per event.
With `train.objective` whole_data events are likes, r - mu is 1, there is no b, and
a0 sum_i [(b_i + <p, q_i>)^2 + delta sum_d p_d^2 q_id^2] over all items with likes is added. Out of scope: objectives
that only rank (`ranking_users`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ltrec_jax.bundle import Bundle
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.serve.user_rules import Events
from ltrec_jax.solve.user_features import UserFeatures


@dataclasses.dataclass(frozen=True)
class FoldIn:
    """What training minimises in one user's row u, [b | p] or p alone: a prior and the user's events.

    Without events u = mean with this precision (with `features`, the mean follows from the user's events), or
    u = `center` where the precision is 0: u = center + v, and it is v that the ridge pulls to 0. Where
    ratings are not `explicit`, those from `positive_rating` on are events, and the others none. An event with design
    row x ([1 | q_i] or q_i), target t (r - mu - b_i, or 1 - b_i where ratings are not `explicit`) and its weight w adds
    w x x^T + diag(ridge + w spread x^2) [+ w C_i] on the left and w t x [- w e_i] on the right. C_i and e_i are an
    uncertain item's covariance and its part with the bias. w is the item's in `weight_I` times, with `rating_weights`
    (values ascending, their weights), the nearest value's. Where there is a row `newcomer`, whoever has no event has
    it; with the first event one starts from the mean like everybody else.
    """

    explicit: bool
    precision: np.ndarray
    mean: np.ndarray
    weight_I: np.ndarray
    ridge: np.ndarray
    spread: np.ndarray
    covariance: np.ndarray | None = None
    cross: np.ndarray | None = None
    positive_rating: float = 0.0
    mu: float = 0.0
    center: np.ndarray | None = None
    rating_weights: tuple[np.ndarray, np.ndarray] | None = None
    features: UserFeatures | None = None
    newcomer: np.ndarray | None = None

    def fresh(self) -> "Row":
        """Somebody without events."""
        return Row(self, self.precision.copy(), np.zeros(len(self.mean)))

    def around(self, vector_D: np.ndarray, bias: float) -> "FoldIn":
        """The rule of a user whose text alone says this."""
        return dataclasses.replace(self, center=np.insert(np.asarray(vector_D, np.float64), 0, bias))

    def known(self, user: int, trained: Events, vector_D: np.ndarray, bias: float) -> "Row":
        """A user of the training, who stands at u0 = [bias | vector] until something new is known."""
        events = trained.where(self.counts(trained.ratings))
        scale = 1.0 if self.features is None else float(self.features.noise[user])
        matrix = self.precision + scale * self.left(events)
        solution = np.asarray(vector_D, np.float64)
        solution = np.insert(solution, 0, bias) if self.explicit else solution
        if self.newcomer is not None and len(events.ratings) == 0:
            solution = self.mean
        right = matrix @ (solution if self.center is None else solution - self.center)
        numbers = [np.asarray(events.numbers)]
        right = right - self.precision @ self.prior_mean(numbers, user)
        return Row(self, matrix, right, user, scale, numbers, len(events.ratings))

    def prior_mean(self, numbers: Sequence[np.ndarray], user: int | None) -> np.ndarray:
        """Where a user with these events stands but for what the ratings say, [D']."""
        if self.features is None:
            return self.mean
        return self.features.mean(np.concatenate([np.zeros(0, np.int64), *numbers]), user)

    def counts(self, rating_N: np.ndarray) -> np.ndarray:
        """Which ratings enter the equations, bool [N]."""
        return np.full(len(rating_N), True) if self.explicit else np.asarray(rating_N) >= self.positive_rating

    def targets(self, events: Events) -> np.ndarray:
        """t of events [N], float64."""
        if not self.explicit:
            return 1.0 - np.asarray(events.biases, np.float64)
        return np.asarray(events.ratings, np.float64) - self.mu - events.biases

    def design(self, q_NxD: np.ndarray) -> np.ndarray:
        """Rows x [N, D'], float64."""
        q_NxD = np.asarray(q_NxD, np.float64)
        return np.insert(q_NxD, 0, 1.0, axis=1) if self.explicit else q_NxD

    def weights(self, events: Events) -> np.ndarray:
        """Of events, float64 [N]; one with a later item weighs as much as one with the rarest known item."""
        numbers = np.asarray(events.numbers)
        known = numbers < len(self.weight_I)
        most = float(self.weight_I.max(initial=1.0))
        weight_N = np.where(known, self.weight_I[np.where(known, numbers, 0)] if len(self.weight_I) else most, most)
        if self.rating_weights is None:
            return weight_N
        values_V, weight_V = self.rating_weights
        between_V = (values_V[1:] + values_V[:-1]) / 2
        return weight_N * weight_V[np.searchsorted(between_V, events.ratings)]

    def left(self, events: Events) -> np.ndarray:
        """What N events add to the left side, [D', D']."""
        weight_N, x_NxD, numbers = self.weights(events), self.design(events.vectors), np.asarray(events.numbers)
        matrix = (x_NxD * weight_N[:, None]).T @ x_NxD
        matrix[np.diag_indices_from(matrix)] += len(x_NxD) * self.ridge + self.spread * (weight_N @ x_NxD**2)
        known = numbers < len(self.weight_I)
        if self.covariance is not None and known.any():
            matrix += np.einsum("n,nde->de", weight_N[known], np.asarray(self.covariance, np.float64)[numbers[known]])
        return matrix

    def right(self, events: Events) -> np.ndarray:
        """What N events add to the right side, [D']."""
        weight_N, x_NxD, numbers = self.weights(events), self.design(events.vectors), np.asarray(events.numbers)
        target_N = self.targets(events)
        if self.center is not None:
            target_N = target_N - x_NxD @ self.center
        row = x_NxD.T @ (weight_N * target_N)
        if self.center is not None:
            row -= self.spread * (weight_N @ x_NxD**2) * self.center
        known = numbers < len(self.weight_I)
        if self.cross is not None and known.any():
            row -= weight_N[known] @ np.asarray(self.cross, np.float64)[numbers[known]]
        return row


@dataclasses.dataclass
class Row:
    """A user's normal equations A u = c + precision m0, float64: m0 the prior mean, which may follow from the events.

    `user`: the number of a training user, whose ratings have the noise scale `scale`. `numbers`: of the items rated.
    `events`: how many ratings are in the equations.
    """

    rule: FoldIn
    matrix: np.ndarray
    right: np.ndarray
    user: int | None = None
    scale: float = 1.0
    numbers: list[np.ndarray] = dataclasses.field(default_factory=list)
    events: int = 0

    def take(self, events: Events) -> None:
        """Items are rated for the first time."""
        self._add(events.where(self.rule.counts(events.ratings)), 1.0)
        self.numbers.append(np.asarray(events.numbers))

    def change(self, event: Events, before: float) -> None:
        """One item that was rated `before` is rated anew."""
        old = dataclasses.replace(event, ratings=np.array([before]))
        (now,), (then,) = self.rule.counts(event.ratings), self.rule.counts(old.ratings)
        if then:
            self._add(old, -1.0)
        if now:
            self._add(event, 1.0)

    def solve(self) -> tuple[np.ndarray, float]:
        """(vector, bias) of A u = c; where no event and no penalty speaks of a direction, zero (or the center)."""
        if self.events == 0 and self.rule.newcomer is not None:
            return (np.array(self.rule.newcomer, np.float64), 0.0)
        right = self.right + self.rule.precision @ self.rule.prior_mean(self.numbers, self.user)
        try:
            solution = np.linalg.solve(self.matrix, right)
        except np.linalg.LinAlgError:
            solution = np.linalg.lstsq(self.matrix, right, rcond=None)[0]
        solution = solution if self.rule.center is None else solution + self.rule.center
        return (solution[1:], float(solution[0])) if self.rule.explicit else (solution, 0.0)

    def _add(self, events: Events, sign: float) -> None:
        self.matrix += sign * self.scale * self.rule.left(events)
        self.right += sign * self.scale * self.rule.right(events)
        self.events += int(sign) * len(events.ratings)


def of_bundle(bundle: Bundle) -> FoldIn:
    """The rule under which the bundle's user table was solved for, or trained by gradient on squared errors."""
    if (prior := bundle.prior) is not None:
        none = np.zeros(len(prior.mean))
        return FoldIn(
            prior.explicit,
            prior.precision,
            prior.mean,
            prior.weight_I,
            none + prior.ridge,
            none,
            prior.covariance,
            prior.cross,
            positive_rating=bundle.positive_rating,
            mu=bundle.vectors.mu,
            features=prior.features,
            newcomer=prior.newcomer,
        )
    if bundle.config.train.objective == "whole_data":
        return _of_whole_data(bundle)
    model, train = bundle.config.model, bundle.config.train
    width = bundle.vectors.item_vectors.shape[1]
    delta = model.embedding_dropout / (1.0 - model.embedding_dropout)
    weight_I = popularity_weights(bundle.counts, train.propensity_power, clip=train.propensity_clip)
    by_rating = bundle.about.get("rating_weights")
    return FoldIn(
        explicit=True,
        precision=np.zeros((width + 1, width + 1)),
        mean=np.zeros(width + 1),
        weight_I=np.where(bundle.counts > 0, weight_I, weight_I.max(initial=1.0)),
        ridge=np.r_[model.bias_l2, np.full(width, model.user_l2)],
        spread=np.r_[0.0, np.full(width, delta)],
        positive_rating=bundle.positive_rating,
        mu=bundle.vectors.mu,
        rating_weights=None if by_rating is None else (np.asarray(by_rating[0]), np.asarray(by_rating[1])),
    )


def _of_whole_data(bundle: Bundle) -> FoldIn:
    model, train, vectors = bundle.config.model, bundle.config.train, bundle.vectors
    liked = bundle.history.items[bundle.history.ratings >= bundle.positive_rating]
    counts_I = np.bincount(liked, minlength=bundle.num_items)
    warm, width = counts_I > 0, vectors.item_vectors.shape[1]
    q_WxD = np.asarray(vectors.item_vectors[warm], np.float64)
    a0, delta = bundle.config.whole_data.unobserved_weight, model.embedding_dropout / (1.0 - model.embedding_dropout)
    gramian_DxD = q_WxD.T @ q_WxD
    precision = a0 * (gramian_DxD + delta * np.diag(np.diag(gramian_DxD)))
    pull_D = -a0 * q_WxD.T @ np.asarray(vectors.item_biases[warm], np.float64)
    weight_I = popularity_weights(counts_I, train.propensity_power, clip=train.propensity_clip)
    return FoldIn(
        explicit=False,
        precision=precision,
        mean=np.linalg.lstsq(precision, pull_D, rcond=None)[0],
        weight_I=np.where(warm, weight_I, weight_I.max(initial=1.0)),
        ridge=np.full(width, model.user_l2),
        spread=np.full(width, delta),
        positive_rating=bundle.positive_rating,
        mu=vectors.mu,
    )
