"""User vectors as they are now: the bundle's, moved by feedback since, and new users from a few ratings. No retraining.

How a vector follows from events is the rule of the bundle's way of training (`user_rules`); here is who rated what.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ltrec_jax.bundle import Bundle
from ltrec_jax.data import columns
from ltrec_jax.serve import ranking_users, squared_users
from ltrec_jax.serve.live_items import LiveItems
from ltrec_jax.serve.user_rules import NO_NUMBER, Events, UserRow, UserRule


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is known of a user now: vector p [D], bias, and the numbers of items seen and liked (changed ones too)."""

    vector: np.ndarray
    bias: float
    seen: np.ndarray
    liked: np.ndarray


def rule_of(bundle: Bundle) -> UserRule:
    """The rule under which the bundle's user table was trained."""
    ranks = bundle.prior is None and bundle.config.train.objective in ("softmax", "bpr")
    rule: UserRule = ranking_users.of_bundle(bundle) if ranks else squared_users.of_bundle(bundle)
    if bundle.user_text_rows is None:
        return rule
    # Whose text is not known stands where the texts of known users do on average.
    known = bundle.user_text_rows[np.flatnonzero(bundle.history.counts)]
    mean = known.mean(axis=0, dtype=np.float64) if len(known) else np.zeros(known.shape[1])
    return rule.around(mean[:-1], float(mean[-1]))


@dataclasses.dataclass
class _State:
    """A user who moved: the row, what it comes to, and events by item number."""

    row: UserRow
    solution: tuple[np.ndarray, float]
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
    def rule(self) -> UserRule:
        """How users move and new ones are placed."""
        return rule_of(self._bundle)

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
        row, events = self.rule.fresh(), self._events(numbers, ratings)
        row.take(events)
        return self._as_profile(row.solve(), events.numbers, events.ratings)

    def from_vector(self, q_D: np.ndarray, bias: float, events: int) -> Profile:
        """The profile of somebody who gave the best rating to `events` items that all stand where a text stands."""
        row, best = self.rule.fresh(), float(self._bundle.about["scale"][1])
        alike_NxD = np.repeat(np.asarray(q_D)[None, :], events, axis=0)
        row.take(Events(np.full(events, NO_NUMBER), alike_NxD, np.full(events, bias), np.full(events, best)))
        return self._as_profile(row.solve(), np.zeros(0, np.int64), np.zeros(0))

    def feedback(self, user_id: str, number: int, rating: float) -> None:
        """A user has rated an item, for the first time or anew. An unknown user is new from here on."""
        state = self._moved.get(user_id)
        if state is None:
            state = self._first_state(self._number_of.get(user_id))
        event, before = self._events([number], [rating]), state.events.get(number, state.trained.get(number))
        if before is None:
            state.row.take(event)
        else:
            state.row.change(event, before)
        state.solution = state.row.solve()
        state.events[number] = rating
        self._moved[user_id] = state

    def _events(self, numbers: Sequence[int] | np.ndarray, ratings: Sequence[float] | np.ndarray) -> Events:
        numbers = np.asarray(numbers, np.int64)
        q_NxD, bias_N = self._items.score.rows(numbers)
        return Events(numbers, q_NxD, np.asarray(bias_N, np.float64), np.asarray(ratings, np.float64))

    def _first_state(self, user: int | None) -> _State:
        if user is None:
            return _State(self.rule.fresh(), (np.zeros(0), 0.0), {}, {})
        seen, ratings = self._bundle.history.of(user)
        vectors = self._bundle.vectors
        vector, bias = np.asarray(vectors.user_vectors[user], np.float64), float(vectors.user_biases[user])
        rule = self.rule
        if (of_texts := self._bundle.user_text_rows) is not None:
            rule = rule.around(of_texts[user, :-1], float(of_texts[user, -1]))
        row = rule.known(user, self._events(seen, ratings), vector, bias)
        return _State(row, (vector, bias), dict(zip(seen.tolist(), ratings.tolist(), strict=True)), {})

    def _as_profile(self, solution: tuple[np.ndarray, float], seen: np.ndarray, ratings: np.ndarray) -> Profile:
        vector, bias = solution
        liked = seen[ratings >= self._bundle.positive_rating]
        return Profile(vector.astype(np.float32), bias, self._items.current(seen), self._items.current(liked))
