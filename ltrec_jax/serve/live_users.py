"""User vectors as they are now: the bundle's, moved by feedback since, and new users from a few ratings. No retraining.

A new user's row u minimises what the user table was trained on, given the items' vectors (`FoldIn`). For a table
trained by gradient (`config.ModelConfig`) that is

    sum_i w_i [ (r_i - mu - b_i - <p, q_i> - b)^2 + delta sum_d p_d^2 q_id^2 ] + n (user_l2 |p|^2 + bias_l2 b^2)

where delta = dropout / (1 - dropout) is what dropping a share of the products adds in the mean, w_i the propensity
weight of the item (1 without) and n the number of events. A known user moves from the trained u0 by minimising the same
sum over the new events plus (u - u0)^T A0 (u - u0), A0 the left side of the user's training events: recursive least
squares, one solve per event. Under an objective that only ranks (`softmax`, `bpr`) nobody moves and nobody is new.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ltrec_jax.bundle import Bundle
from ltrec_jax.data import columns
from ltrec_jax.errors import UserError
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.serve.live_items import LiveItems


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is known of a user now: vector p [D], bias, and the numbers of items seen and liked (changed ones too)."""

    vector: np.ndarray
    bias: float
    seen: np.ndarray
    liked: np.ndarray


@dataclasses.dataclass(frozen=True)
class FoldIn:
    """What training minimises in one user's row u, [b | p] or p alone: a prior and the user's events.

    Without events u = mean with this precision. An event with design row x ([1 | q_i] or q_i), target t (r - mu - b_i,
    or 1 where ratings are not `explicit`) and its item's weight w adds w x x^T + diag(ridge + w spread x^2) [+ w C_i]
    on the left and w t x [- w e_i] on the right. C_i and e_i are an uncertain item's covariance and its part with the
    bias.
    """

    explicit: bool
    precision: np.ndarray
    mean: np.ndarray
    weight_I: np.ndarray
    ridge: np.ndarray
    spread: np.ndarray
    covariance: np.ndarray | None = None
    cross: np.ndarray | None = None

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
        row = x_NxD.T @ (weight_N * target_N)
        known = numbers < len(self.weight_I)
        if self.cross is not None and known.any():
            row -= weight_N[known] @ np.asarray(self.cross, np.float64)[numbers[known]]
        return row


def fold_in_of(bundle: Bundle) -> FoldIn:
    """The rule under which the bundle's user table was trained."""
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
        )
    model, train = bundle.config.model, bundle.config.train
    if not train.predicts_ratings:
        raise UserError(
            f"A model trained with train.objective = {train.objective} answers for the users of its training alone and "
            "learns nothing from ratings. For others train with squared_error, or with schedule.steps = solve."
        )
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
    )


@dataclasses.dataclass
class _State:
    """A user's normal equations A u = c (float64), their solution, and events by item number."""

    matrix: np.ndarray
    right: np.ndarray
    solution: np.ndarray
    trained: Mapping[int, float]
    events: dict[int, float]


class LiveUsers:
    """Users by external id. Writers take turns (the caller sees to that)."""

    def __init__(self, bundle: Bundle, items: LiveItems) -> None:
        self._bundle, self._items = bundle, items
        ids = bundle.users[columns.USER_ID].astype(str)
        self._number_of = {user_id: number for number, user_id in enumerate(ids)}
        self._moved: dict[str, _State] = {}

    @functools.cached_property
    def rule(self) -> FoldIn:
        """How users move and new ones are placed; `UserError` for a model that only knows those of its training."""
        return fold_in_of(self._bundle)

    @property
    def learn(self) -> bool:
        """Whether there is such a rule."""
        return self._bundle.prior is not None or self._bundle.config.train.predicts_ratings

    def __len__(self) -> int:
        return len(self._number_of.keys() | self._moved.keys()) if self._moved else len(self._number_of)

    def some(self, count: int) -> list[str]:
        """The first ids of the bundle's users."""
        return list(itertools.islice(self._number_of, count))

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._number_of or user_id in self._moved

    def profile(self, user_id: str) -> Profile:
        """A user's profile now. `KeyError` for one who is neither in the bundle nor has given feedback."""
        state = self._moved.get(user_id)
        number = self._number_of.get(user_id)
        if state is not None:
            both = {**state.trained, **state.events}
            return self._as_profile(state.solution, np.array(list(both), np.int64), np.array(list(both.values())))
        if number is None:
            raise KeyError(user_id)
        seen, ratings = self._bundle.history.of(number)
        vectors = self._bundle.vectors
        vector, bias = vectors.user_vectors[number], float(vectors.user_biases[number])
        liked = seen[ratings >= self._bundle.positive_rating]
        return Profile(vector, bias, self._items.current(seen), self._items.current(liked))

    def was_trained_on(self, user_id: str, number: int, rating: float) -> bool:
        """Whether the bundle's training events hold this rating already."""
        user = self._number_of.get(user_id)
        if user is None:
            return False
        seen, ratings = self._bundle.history.of(user)
        return bool(np.any((self._items.current(seen) == number) & (ratings == np.float32(rating))))

    def from_ratings(self, numbers: Sequence[int], ratings: Sequence[float]) -> Profile:
        """The profile of somebody new who rated these items (each once)."""
        state = self._fresh(None)
        for number, rating in zip(numbers, ratings, strict=True):
            self._observe(state, int(number), float(rating))
        _solve(state)
        return self._as_profile(state.solution, np.array(numbers, np.int64), np.array(ratings, np.float64))

    def from_vector(self, q_D: np.ndarray, bias: float, events: int) -> Profile:
        """The profile of somebody who gave the best rating to `events` items that all stand where a text stands."""
        state, rule = self._fresh(None), self.rule
        x_NxD = rule.design(np.repeat(np.asarray(q_D)[None, :], events, axis=0))
        numbers = np.full(events, np.iinfo(np.int64).max)
        target_N = np.full(events, self._target(float(self._bundle.about["scale"][1]), bias))
        state.matrix += rule.left(numbers, x_NxD)
        state.right += rule.right(numbers, x_NxD, target_N)
        _solve(state)
        return self._as_profile(state.solution, np.zeros(0, np.int64), np.zeros(0))

    def feedback(self, user_id: str, number: int, rating: float) -> None:
        """A user has rated an item, for the first time or anew. An unknown user is new from here on."""
        state = self._moved.get(user_id)
        if state is None:
            state = self._fresh(self._number_of.get(user_id))
        self._observe(state, number, rating)
        _solve(state)
        self._moved[user_id] = state

    def _observe(self, state: _State, number: int, rating: float) -> None:
        (q,), (b,) = self._items.score.rows(np.array([number]))
        rule, numbers, x_1xD = self.rule, np.array([number]), self.rule.design(q[None, :])
        target, before = self._target(rating, float(b)), state.events.get(number, state.trained.get(number))
        counts, counted = self._is_event(rating), before is not None and self._is_event(before)
        if counts and counted and before is not None:
            state.right += rule.weights(numbers)[0] * (target - self._target(before, float(b))) * x_1xD[0]
        elif counts != counted:
            sign = 1.0 if counts else -1.0
            state.matrix += sign * rule.left(numbers, x_1xD)
            state.right += sign * rule.right(numbers, x_1xD, np.array([target]))
        state.events[number] = rating

    def _is_event(self, rating: float) -> bool:
        """Whether a rating enters the equations: all do, or where ratings are not `explicit` the good ones."""
        return self.rule.explicit or rating >= self._bundle.positive_rating

    def _target(self, rating: float, item_bias: float) -> float:
        return rating - self._bundle.vectors.mu - item_bias if self.rule.explicit else 1.0

    def _fresh(self, user: int | None) -> _State:
        rule = self.rule
        matrix, solution, trained = rule.precision.copy(), rule.mean.copy(), {}
        if user is not None:
            seen, ratings = self._bundle.history.of(user)
            trained = dict(zip(seen.tolist(), ratings.tolist(), strict=True))
            events = seen[[self._is_event(rating) for rating in ratings.tolist()]] if len(seen) else seen
            matrix += rule.left(events, rule.design(self._items.score.rows(events)[0]))
            vectors = self._bundle.vectors
            solution = np.asarray(vectors.user_vectors[user], np.float64)
            if rule.explicit:
                solution = np.insert(solution, 0, vectors.user_biases[user])
        return _State(matrix, matrix @ solution, solution, trained, {})

    def _as_profile(self, solution: np.ndarray, seen: np.ndarray, ratings: np.ndarray) -> Profile:
        bias, vector = (float(solution[0]), solution[1:]) if self.rule.explicit else (0.0, solution)
        liked = seen[ratings >= self._bundle.positive_rating]
        return Profile(vector.astype(np.float32), bias, self._items.current(seen), self._items.current(liked))


def _solve(state: _State) -> None:
    """A u = c; a direction that no event and no penalty speaks of stays at zero."""
    try:
        state.solution = np.linalg.solve(state.matrix, state.right)
    except np.linalg.LinAlgError:
        state.solution = np.linalg.lstsq(state.matrix, state.right, rcond=None)[0]
