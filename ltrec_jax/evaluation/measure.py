"""From scores to sums per user: every model answers the same test, every part of the test is cut out by masks.

Out of scope: intervals (`significance`) and how figures are arranged (`report`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Hashable, Iterator, Mapping

import numpy as np
import tqdm

from ltrec_jax.data.dataset import Interactions, Split
from ltrec_jax.data.history import History, history
from ltrec_jax.errors import UserError
from ltrec_jax.evaluation import accuracy, longtail, ranking, rating
from ltrec_jax.evaluation.ranking import Lists, Targets
from ltrec_jax.evaluation.results import GROUP, OVERALL
from ltrec_jax.evaluation.significance import UserSums
from ltrec_jax.evaluation.slices import Slice
from ltrec_jax.types import Recommender


@dataclasses.dataclass(frozen=True)
class Exam:
    """One test: events `test`, its users (int32 [U], ascending), the user row of each event, targets, what is seen."""

    test: Interactions
    users: np.ndarray
    row_P: np.ndarray
    wanted: Targets
    seen: History
    num_items: int
    cutoffs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one model said: top lists, predicted ratings float32 [P] (None: it predicts none), seconds per stage."""

    lists: Lists
    predicted: np.ndarray | None
    seconds: Mapping[str, float]


def exam(split: Split, positive_rating: float, cutoffs: tuple[int, ...]) -> Exam:
    """The test part of a split. Training and validation items count as seen. An empty test part is a `UserError`."""
    dataset, test = split.dataset, split.test
    if len(test) == 0:
        raise UserError(f"The test part of split {split.name!r} of {dataset.name!r} is empty: nothing to score.")
    seen = history(split.with_validation_in_train().train, dataset.num_users)
    wanted = ranking.targets(test, seen, dataset.num_items, positive_rating)
    users, row_P = np.unique(test.user, return_inverse=True)
    return Exam(test, users, row_P, wanted, seen, dataset.num_items, cutoffs)


def answer(model: Recommender, asked: Exam, *, block_users: int, rate: bool, name: str) -> Answers:
    """Let a model rank and, if `rate` and unless it has `predicts_ratings = False`, predict ratings."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "ranking"):
        lists = ranking.rank(
            model, asked.wanted, asked.seen, asked.num_items, max(asked.cutoffs), block_users=block_users, name=name
        )
    predicted = None
    if rate and getattr(model, "predicts_ratings", True):
        with _timed(seconds, "rating"):
            predicted = rating.predictions(model.score_pairs, asked.test.user, asked.test.item, name=name)
    return Answers(lists, predicted, seconds)


def sums(asked: Exam, answers: Mapping[str, Answers], parts: list[Slice]) -> Iterator[tuple[Hashable, UserSums]]:
    """Yield ((model, slice kind, slice name, metric), sums per test user), one at a time.

    Overall and item groups get every metric at every cutoff, the other slices RMSE and nDCG at the first cutoff.
    """
    for part in tqdm.tqdm(parts, "figures", unit="group", delay=1.0, leave=False):
        full = part.kind in (OVERALL, GROUP)
        for name, given in answers.items():
            metrics = _rating_sums(asked, given, part, tuple(rating.METRICS) if full else ("rmse",))
            metrics |= _ranking_sums(
                asked,
                given,
                part,
                tuple(accuracy.METRICS) if full else ("ndcg",),
                asked.cutoffs if full else asked.cutoffs[:1],
            )
            for metric, found in metrics.items():
                yield (name, part.kind, part.name, metric), found


def catalogue(asked: Exam, given: Answers, train_count_I: np.ndarray, tail_I: np.ndarray) -> dict[str, float | None]:
    """The figures about the lists themselves, at the first cutoff, over users with a target."""
    k = asked.cutoffs[0]
    items, hits = given.lists.items[:, :k], given.lists.hits[:, :k]
    return {
        "coverage": longtail.coverage(items, asked.num_items),
        "gini": longtail.gini(items, asked.num_items),
        "arp": longtail.arp(items, train_count_I),
        "aplt": longtail.aplt(items, tail_I),
        "novelty": longtail.novelty(items, train_count_I),
        "efd": longtail.efd(items, hits, train_count_I),
        "epc": longtail.epc(items, hits, train_count_I, int((asked.seen.counts > 0).sum())),
    }


def _rating_sums(asked: Exam, given: Answers, part: Slice, metrics: tuple[str, ...]) -> dict[str, UserSums]:
    if given.predicted is None:
        return {}
    inside_P = part.items_I[asked.test.item] & part.users_U[asked.row_P]
    predicted, truth, rows = given.predicted[inside_P], asked.test.rating[inside_P], asked.row_P[inside_P]
    return {name: rating.METRICS[name](predicted, truth, rows, len(asked.users)) for name in metrics}


def _ranking_sums(
    asked: Exam, given: Answers, part: Slice, metrics: tuple[str, ...], cutoffs: tuple[int, ...]
) -> dict[str, UserSums]:
    row_V = np.searchsorted(asked.users, asked.wanted.users)
    relevant_V = np.where(part.users_U[row_V], asked.wanted.relevant(part.items_I), 0)
    # Item -1 reads the last mask entry, but is never a hit.
    hits_VxK = given.lists.hits & part.items_I[given.lists.items]
    counted_U = _placed(relevant_V > 0, row_V, len(asked.users))
    # Every metric of a list without a hit is 0, and in a small group most lists are.
    some = hits_VxK.any(1) & (relevant_V > 0)
    hits_VxK, relevant_V, row_V = hits_VxK[some], relevant_V[some], row_V[some]
    return {
        f"{name}@{k}": UserSums(
            _placed(accuracy.METRICS[name](hits_VxK, relevant_V, k), row_V, len(asked.users)), counted_U
        )
        for name in metrics
        for k in cutoffs
    }


def _placed(value_V: np.ndarray, row_V: np.ndarray, num_rows: int) -> np.ndarray:
    placed = np.zeros(num_rows)
    placed[row_V] = value_V
    return placed


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
