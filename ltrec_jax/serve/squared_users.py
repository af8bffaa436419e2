"""The rule of users who minimise squared errors: normal equations that grow by one event at a time.

A new user's row u = [b | p], or p alone, minimises what the user table was trained on, given the items' vectors. For a
table trained by gradient (`config.ModelConfig`) that is

    sum_i w_i [ (r_i - mu - b_i - <p, q_i> - b)^2 + delta sum_d p_d^2 q_id^2 ] + n (user_l2 |p|^2 + bias_l2 b^2)

where delta = dropout / (1 - dropout) is what dropping a share of the products adds in the mean, w_i the propensity
weight of the item (1 without) and n the number of events. Where users have texts, the penalties are those of u - c, c
what the text alone says; somebody new, whose text is not known, has the mean of the known ones. A known user moves from
the trained u0 by minimising the same sum over the new events plus (u - u0)^T A0 (u - u0), A0 the left side of the
user's training events: recursive least squares, one solve per event. Out of scope: objectives that only rank
(`ranking_users`).
"""

import dataclasses

import numpy as np

from ltrec_jax.bundle import Bundle
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.serve.user_rules import Events


@dataclasses.dataclass(frozen=True)
class FoldIn:
    """What training minimises in one user's row u, [b | p] or p alone: a prior and the user's events.

    Without events u = mean with this precision, or u = `center` where the precision is 0: u = center + v, and it is v
    that the ridge pulls to 0. Where ratings are not `explicit`, those from `positive_rating` on are
    events, and the others none. An event with design row x ([1 | q_i] or q_i), target t (r - mu - b_i, or 1 where
    ratings are not `explicit`) and its item's weight w adds w x x^T + diag(ridge + w spread x^2) [+ w C_i] on the left
    and w t x [- w e_i] on the right. C_i and e_i are an uncertain item's covariance and its part with the bias.
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

    def fresh(self) -> "Row":
        """Somebody without events."""
        return Row(self, self.precision.copy(), self.precision @ self.mean)

    def around(self, vector_D: np.ndarray, bias: float) -> "FoldIn":
        """The rule of a user whose text alone says this."""
        return dataclasses.replace(self, center=np.insert(np.asarray(vector_D, np.float64), 0, bias))

    def known(self, trained: Events, vector_D: np.ndarray, bias: float) -> "Row":
        """A user of the training, who stands at u0 = [bias | vector] until something new is known."""
        events = trained.where(self.counts(trained.ratings))
        matrix = self.precision + self.left(events.numbers, self.design(events.vectors))
        solution = np.asarray(vector_D, np.float64)
        solution = np.insert(solution, 0, bias) if self.explicit else solution
        return Row(self, matrix, matrix @ (solution if self.center is None else solution - self.center))

    def counts(self, rating_N: np.ndarray) -> np.ndarray:
        """Which ratings enter the equations, bool [N]."""
        return np.full(len(rating_N), True) if self.explicit else np.asarray(rating_N) >= self.positive_rating

    def targets(self, events: Events) -> np.ndarray:
        """t of events [N], float64."""
        if not self.explicit:
            return np.ones(len(events.numbers))
        return np.asarray(events.ratings, np.float64) - self.mu - events.biases

    def design(self, q_NxD: np.ndarray) -> np.ndarray:
        """Rows x [N, D'], float64."""
        q_NxD = np.asarray(q_NxD, np.float64)
        return np.insert(q_NxD, 0, 1.0, axis=1) if self.explicit else q_NxD

    def weights(self, numbers: np.ndarray) -> np.ndarray:
        """Of events with these items; a later item weighs as much as the rarest known one."""
        numbers = np.asarray(numbers)
        known = numbers < len(self.weight_I)
        most = float(self.weight_I.max(initial=1.0))
        return np.where(known, self.weight_I[np.where(known, numbers, 0)] if len(self.weight_I) else most, most)

    def left(self, numbers: np.ndarray, x_NxD: np.ndarray) -> np.ndarray:
        """What N events add to the left side, [D', D']."""
        weight_N = self.weights(numbers)
        matrix = (x_NxD * weight_N[:, None]).T @ x_NxD
        matrix[np.diag_indices_from(matrix)] += len(x_NxD) * self.ridge + self.spread * (weight_N @ x_NxD**2)
        known = numbers < len(self.weight_I)
        if self.covariance is not None and known.any():
            matrix += np.einsum("n,nde->de", weight_N[known], np.asarray(self.covariance, np.float64)[numbers[known]])
        return matrix

    def right(self, numbers: np.ndarray, x_NxD: np.ndarray, target_N: np.ndarray) -> np.ndarray:
        """What N events add to the right side, [D']."""
        weight_N = self.weights(numbers)
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
    """A user's normal equations A u = c, float64."""

    rule: FoldIn
    matrix: np.ndarray
    right: np.ndarray

    def take(self, events: Events) -> None:
        """Items are rated for the first time."""
        self._add(events.where(self.rule.counts(events.ratings)), 1.0)

    def change(self, event: Events, before: float) -> None:
        """One item that was rated `before` is rated anew."""
        old = dataclasses.replace(event, ratings=np.array([before]))
        (now,), (then,) = self.rule.counts(event.ratings), self.rule.counts(old.ratings)
        if now and then:
            difference_1 = self.rule.targets(event) - self.rule.targets(old)
            self.right += (self.rule.weights(event.numbers) * difference_1) @ self.rule.design(event.vectors)
        elif now != then:
            self._add(event, 1.0 if now else -1.0)

    def solve(self) -> tuple[np.ndarray, float]:
        """(vector, bias) of A u = c; where no event and no penalty speaks of a direction, zero (or the center)."""
        try:
            solution = np.linalg.solve(self.matrix, self.right)
        except np.linalg.LinAlgError:
            solution = np.linalg.lstsq(self.matrix, self.right, rcond=None)[0]
        solution = solution if self.rule.center is None else solution + self.rule.center
        return (solution[1:], float(solution[0])) if self.rule.explicit else (solution, 0.0)

    def _add(self, events: Events, sign: float) -> None:
        x_NxD = self.rule.design(events.vectors)
        self.matrix += sign * self.rule.left(events.numbers, x_NxD)
        self.right += sign * self.rule.right(events.numbers, x_NxD, self.rule.targets(events))


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
        )
    model, train = bundle.config.model, bundle.config.train
    width = bundle.vectors.item_vectors.shape[1]
    delta = model.embedding_dropout / (1.0 - model.embedding_dropout)
    weight_I = popularity_weights(bundle.counts, train.propensity_power, clip=train.propensity_clip)
    return FoldIn(
        explicit=True,
        precision=np.zeros((width + 1, width + 1)),
        mean=np.zeros(width + 1),
        weight_I=np.where(bundle.counts > 0, weight_I, weight_I.max(initial=1.0)),
        ridge=np.r_[model.bias_l2, np.full(width, model.user_l2)],
        spread=np.r_[0.0, np.full(width, delta)],
        positive_rating=bundle.positive_rating,
        mu=bundle.vectors.mu,
    )
