"""The test that every model sits, and what a model answers: top lists and scores of test pairs, asked for once.

Out of scope: what the answers are worth (`measure`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax import topk
from ltrec_jax.data.dataset import Interactions, Split
from ltrec_jax.data.history import History, history
from ltrec_jax.data.popularity import GROUPS, popularity_propensity
from ltrec_jax.errors import UserError
from ltrec_jax.evaluation import counterfactual, ranking, rating
from ltrec_jax.evaluation.profiles import Profiles, profiles
from ltrec_jax.evaluation.ranking import Lists, Targets
from ltrec_jax.types import Array, Recommender

ALL = "all"
CANDIDATES = ("warm", "cold")


@dataclasses.dataclass(frozen=True)
class Exam:
    """One test: U users (int32, ascending) with events `test`, of whom V have targets.

    row_P: the user row of an event; row_V: that of a user with targets; positive_P: does an event reach the positive
    rating. seen: what no list may show. train_count_I: training events per item. candidates: names of item sets that
    lists are made from, each bool [I]; "all" (every item) comes first, "warm" and "cold" only where the test has
    targets on both. obvious_Vxk: the most popular unseen items. group_I: the part (head, mid or tail) of an item, None
    without these groups. profiles: of the U users, by training events. propensity_I: probability that a pair with the
    item is among the test events, 0 for an item without training events, whose probability nothing tells.
    """

    test: Interactions
    positive_rating: float
    positive_P: np.ndarray
    users: np.ndarray
    row_P: np.ndarray
    wanted: Targets
    row_V: np.ndarray
    seen: History
    cutoffs: tuple[int, ...]
    train_count_I: np.ndarray
    candidates: Mapping[str, np.ndarray]
    obvious_Vxk: np.ndarray
    group_I: np.ndarray | None
    profiles: Profiles
    propensity_I: np.ndarray

    @property
    def num_items(self) -> int:
        return len(self.train_count_I)

    @property
    def is_clicks(self) -> bool:
        """Whether the test ratings are labels: both 0 and 1, and nothing else."""
        return np.array_equal(np.unique(self.test.rating), [0.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one model said: a list per candidate set, scores of the test pairs, seconds per stage.

    scored: float32 [P], None if nothing asks for them. rates: whether they are predicted ratings. gap_U: the sum over
    all items with a propensity of the squared difference to imputed ratings, None without those.
    """

    lists: Mapping[str, Lists]
    scored: np.ndarray | None
    rates: bool
    gap_U: np.ndarray | None
    seconds: Mapping[str, float]


def exam(
    split: Split,
    positive_rating: float,
    cutoffs: tuple[int, ...],
    groups: Mapping[str, np.ndarray],
    train_count_I: np.ndarray,
) -> Exam:
    """The test part of a split. Training and validation items count as seen. An empty test part is a `UserError`."""
    dataset, test = split.dataset, split.test
    if len(test) == 0:
        raise UserError(f"The test part of split {split.name!r} of {dataset.name!r} is empty: nothing to score.")
    seen = history(split.with_validation_in_train().train, dataset.num_users)
    wanted = ranking.targets(test, seen, dataset.num_items, positive_rating)
    users, row_P = np.unique(test.user, return_inverse=True)
    training = history(split.train, dataset.num_users) if len(split.validation_rows) else seen
    group_I = np.select([groups[name] for name in GROUPS], range(len(GROUPS))) if set(GROUPS) <= set(groups) else None
    part_I = np.zeros(dataset.num_items, int) if group_I is None else group_I
    return Exam(
        test=test,
        positive_rating=positive_rating,
        positive_P=test.rating >= positive_rating,
        users=users,
        row_P=row_P,
        wanted=wanted,
        row_V=np.searchsorted(users, wanted.users),
        seen=seen,
        cutoffs=cutoffs,
        train_count_I=train_count_I,
        candidates=_candidates(wanted, groups, dataset.num_items),
        obvious_Vxk=_obvious(wanted, seen, train_count_I, cutoffs[0]),
        group_I=group_I,
        profiles=profiles(training, users, train_count_I, part_I, len(GROUPS)),
        propensity_I=_propensities(test, train_count_I, len(users)),
    )


def answer(
    model: Recommender, asked: Exam, *, block_users: int, rate: bool, name: str, imputed: Recommender | None = None
) -> Answers:
    """Let a model rank and score the test pairs.

    Scores are ratings if `rate` and unless the model has `predicts_ratings = False`; `imputed` gives the ratings that
    the doubly robust estimate starts from.
    """
    seconds: dict[str, float] = {}
    rates = rate and getattr(model, "predicts_ratings", True)
    with _timed(seconds, "ranking"):
        lists = top_lists(model, asked, block_users=block_users, name=name)
    scored = gap_U = None
    if rates or len(np.unique(asked.positive_P)) == 2:
        with _timed(seconds, "rating"):
            scored = rating.predictions(model.score_pairs, asked.test.user, asked.test.item, name=name)
    if rates and imputed is not None:
        with _timed(seconds, "doubly robust"):
            gap_U = _gap(model, imputed, asked.users, asked.propensity_I > 0, block_users)
    return Answers(lists, scored, rates, gap_U, seconds)


def top_lists(model: Recommender, asked: Exam, *, block_users: int, name: str) -> dict[str, Lists]:
    """The model's lists from each set of candidates, as long as the largest cutoff."""
    allowed = {each: None if each == ALL else mask_I for each, mask_I in asked.candidates.items()}
    return ranking.rank(
        model,
        asked.wanted,
        asked.seen,
        asked.num_items,
        max(asked.cutoffs),
        candidates=allowed,
        block_users=block_users,
        name=name,
    )


def _candidates(wanted: Targets, groups: Mapping[str, np.ndarray], num_items: int) -> dict[str, np.ndarray]:
    found = {ALL: np.ones(num_items, bool)}
    sets = {name: np.asarray(groups[name], bool) for name in CANDIDATES if name in groups}
    if len(sets) == len(CANDIDATES) and all(mask_I[wanted.item_N].any() for mask_I in sets.values()):
        found |= sets
    return found


def _obvious(wanted: Targets, seen: History, train_count_I: np.ndarray, k: int) -> np.ndarray:
    """The k most popular unseen items of each target user, int32 [V, k]."""
    score_I = train_count_I.astype(np.float32)
    blocks = topk.ranked(
        lambda users: np.broadcast_to(score_I, (len(users), len(score_I))),
        wanted.users,
        num_items=len(score_I),
        k=k,
        seen=seen,
    )
    return np.concatenate([np.zeros((0, k), np.int32), *(items for items, _ in blocks)])


def _propensities(test: Interactions, train_count_I: np.ndarray, num_users: int) -> np.ndarray:
    known_I = train_count_I > 0
    relative_I = np.where(known_I, popularity_propensity(train_count_I), 0.0)
    return counterfactual.calibrated(relative_I, int(known_I[test.item].sum()), num_users)


def _gap(
    model: Recommender, imputed: Recommender, users_U: np.ndarray, items_I: np.ndarray, block_users: int
) -> np.ndarray:
    """sum_i (score(u, i) - imputed(u, i))^2 over these items (bool [I]) of every user, float64 [U], in blocks."""
    found = []
    for start in range(0, len(users_U), block_users):
        rows = np.minimum(np.arange(start, start + block_users), len(users_U) - 1)
        # Read at once: blocks that wait for their turn would all hold their scores.
        found.append(
            np.asarray(_squared_distance(model.score(users_U[rows]), imputed.score(users_U[rows]), items_I), np.float64)
        )
    return np.concatenate(found)[: len(users_U)]


@jax.jit
def _squared_distance(first_BxI: Array, second_BxI: Array, items_I: Array) -> jax.Array:
    away_BxI = jnp.asarray(first_BxI, jnp.float32) - jnp.asarray(second_BxI, jnp.float32)
    return jnp.sum(jnp.where(jnp.asarray(items_I)[None, :], away_BxI, 0.0) ** 2, axis=1)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
