"""The rule of users of a model that only ranks: a small convex problem for each, solved by damped Newton steps.

A user's vector p minimises what training minimised in it, given vectors q and biases b of the items. Over the user's
likes i with their propensity weights w_i (1 without), s_k = b_k + <p, q_k>, k going over the items with likes in
training, n the number of likes:

    softmax    sum_i w_i [ log sum_k exp(s_k) - s_i ]                                            + penalty
    bpr        sum_i w_i sum_k a_k softplus((s_k - log a_k) - (s_i - log a_i)) / (1 - a_i)       + penalty
    penalty    n user_l2 |p - c|^2 + (delta / 2) sum_d h_d p_d^2

c is 0, or where users have texts what the text alone says; somebody new has the mean of the known ones.

That is what the batches of training come to in the mean (`train.ranking_loss`): the corrections by log q make a
softmax's negatives the whole catalogue, whatever batches are made of, and leave BPR's at their shares a_k of the slots.
h is the diagonal of the first sum's Hessian, delta = dropout / (1 - dropout) the variance of a dropped product's
factor: dropout's part in the mean, to second order around p itself. So h moves with p and is held fixed for a step.
Scores that 60 training users of MovieLens-100K have so, beside the trained ones, in rank correlation: 0.990 (softmax)
and 0.992 (BPR); with h at p = 0 0.988 and 0.973; without it 0.957 and 0.992, and vectors 1.9 and 1.25 times as long.

A known user is solved for anew from all likes, those of the training and those since. A step costs I D^2, and BPR I n
beside; of a catalogue with more than `COMPARED` trained items a fixed sample, drawn by their likes and weighted back,
stands for all. Out of scope: users who minimise squared errors (`squared_users`).
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from ltrec_jax.bundle import Bundle
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.serve.user_rules import Events

COMPARED = 100_000
"""Items that likes are compared with at most."""
_STEPS, _HALVINGS = 60, 30
_EXACT = 1e-6
"""Of the gradient, for each like: beyond that a step changes no list."""
_LEAST_L2 = 1e-6
"""A model trained without a penalty has likes that no finite vector is best for."""
_BLOCK = 4_000_000


class Likes(NamedTuple):
    """n likes: q [n, D], the constant part of their scores [n], weights [n], and the shares [n] that they have among
    the compared items themselves (0: not among them)."""

    q_NxD: np.ndarray
    base_N: np.ndarray
    weight_N: np.ndarray
    share_N: np.ndarray


class Comparison(Protocol):
    """The sum over likes of an objective, without its penalty."""

    def value(self, p_D: np.ndarray, likes: Likes) -> float:
        """The sum."""
        ...

    def slopes(self, p_D: np.ndarray, likes: Likes) -> tuple[np.ndarray, np.ndarray]:
        """Its gradient [D] and Hessian [D, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Likes against all compared items, each as often as its `share` [K] says; an own item outside counts once."""

    q_KxD: np.ndarray
    base_K: np.ndarray
    share_K: np.ndarray

    def value(self, p_D: np.ndarray, likes: Likes) -> float:
        """sum_i w_i [ log Z_i - s_i ], Z_i = sum_k share_k exp(s_k) + (1 - share_i) exp(s_i)."""
        _, total, own_N, rest_N, top = self._parts(p_D, likes)
        return float(likes.weight_N @ (np.log(total + rest_N) + top - own_N))

    def slopes(self, p_D: np.ndarray, likes: Likes) -> tuple[np.ndarray, np.ndarray]:
        """Means and covariances of q under each like's softmax: one over all items, moved by the like's own share."""
        e_K, total, _, rest_N, _ = self._parts(p_D, likes)
        mean_D = e_K @ self.q_KxD / total
        second_DxD = (self.q_KxD * (e_K / total)[:, None]).T @ self.q_KxD
        all_N, rest_N = total / (total + rest_N), rest_N / (total + rest_N)
        mean_NxD = all_N[:, None] * mean_D[None, :] + rest_N[:, None] * likes.q_NxD
        weighted_NxD = mean_NxD * likes.weight_N[:, None]
        own_NxD = likes.q_NxD * (likes.weight_N * rest_N)[:, None]
        hessian = (likes.weight_N @ all_N) * second_DxD + own_NxD.T @ likes.q_NxD - weighted_NxD.T @ mean_NxD
        return likes.weight_N @ (mean_NxD - likes.q_NxD), hessian

    def _parts(self, p_D: np.ndarray, likes: Likes) -> tuple[np.ndarray, float, np.ndarray, np.ndarray, float]:
        s_K, own_N = self.base_K + self.q_KxD @ p_D, likes.base_N + likes.q_NxD @ p_D
        top = float(max(s_K.max(initial=-np.inf), own_N.max(initial=-np.inf)))
        e_K = self.share_K * np.exp(s_K - top)
        return e_K, float(e_K.sum()), own_N, (1.0 - likes.share_N) * np.exp(own_N - top), top


@dataclasses.dataclass(frozen=True)
class Pairwise:
    """Each like against every compared item, whose losses are averaged by their `share` [K], of sum 1."""

    q_KxD: np.ndarray
    base_K: np.ndarray
    share_K: np.ndarray

    def value(self, p_D: np.ndarray, likes: Likes) -> float:
        """sum_i w_i / (1 - share_i) [ sum_k share_k softplus(s_k - s_i) - share_i log 2 ]."""
        weight_N = _of_others(likes)
        found = -float(weight_N @ likes.share_N) * np.log(2.0)
        for rows, ratio_NxK in self._ratios(p_D, likes):
            found += float(weight_N[rows] @ (np.log1p(ratio_NxK, out=ratio_NxK) @ self.share_K))
        return found

    def slopes(self, p_D: np.ndarray, likes: Likes) -> tuple[np.ndarray, np.ndarray]:
        """A like beside itself has no slope: it need not be left out."""
        weight_N = _of_others(likes)
        gradient, bend_K = np.zeros(len(p_D)), np.zeros(len(self.base_K))
        hessian, cross = (np.zeros((len(p_D), len(p_D))) for _ in range(2))
        for rows, ratio_NxK in self._ratios(p_D, likes):
            q_NxD, by_row_N = likes.q_NxD[rows], weight_N[rows]
            ratio_NxK += 1.0
            rest_NxK = np.divide(1.0, ratio_NxK, out=ratio_NxK)  # 1 - sigmoid(s_k - s_i)
            slope_NxK = 1.0 - rest_NxK
            bend_NxK = np.multiply(slope_NxK, rest_NxK, out=rest_NxK)
            gradient += (self.share_K * (by_row_N @ slope_NxK)) @ self.q_KxD
            gradient -= (by_row_N * (slope_NxK @ self.share_K)) @ q_NxD
            bend_K += self.share_K * (by_row_N @ bend_NxK)
            hessian += (q_NxD * (by_row_N * (bend_NxK @ self.share_K))[:, None]).T @ q_NxD
            cross += (bend_NxK @ (self.q_KxD * self.share_K[:, None])).T @ (q_NxD * by_row_N[:, None])
        return gradient, hessian + (self.q_KxD * bend_K[:, None]).T @ self.q_KxD - cross - cross.T

    def _ratios(self, p_D: np.ndarray, likes: Likes) -> Iterator[tuple[slice, np.ndarray]]:
        """exp(s_k - s_i) of some likes at a time, [rows, K]: products of exponentials cost a tenth of their own."""
        s_K, own_N = self.base_K + self.q_KxD @ p_D, likes.base_N + likes.q_NxD @ p_D
        top = s_K.max(initial=-np.inf)
        own_N, all_K = np.exp(top - own_N), np.exp(s_K - top)
        size = max(1, _BLOCK // max(len(s_K), 1))
        for start in range(0, len(own_N), size):
            rows = slice(start, start + size)
            yield rows, own_N[rows, None] * all_K[None, :]


def _of_others(likes: Likes) -> np.ndarray:
    return likes.weight_N / np.maximum(1.0 - likes.share_N, 1e-12)


@dataclasses.dataclass(frozen=True)
class RankingRule:
    """A comparison, and what a bundle's items weigh in it by number: `log_q_I`, `share_I`, `weight_I`, float64 [I].

    An item that came later is compared as the rarest of the trained ones would be: log q = 0, share 0.
    """

    comparison: Comparison
    log_q_I: np.ndarray
    share_I: np.ndarray
    weight_I: np.ndarray
    l2: float
    delta: float
    width: int
    positive_rating: float
    center: np.ndarray | None = None

    def fresh(self) -> "Row":
        """Somebody without events, who has no taste: the lists are by the items' biases (and the center)."""
        return Row(self, {}, self._center.copy())

    def around(self, vector_D: np.ndarray, bias: float) -> "RankingRule":
        """The rule of a user whose text alone says this; there are no biases."""
        return dataclasses.replace(self, center=np.asarray(vector_D, np.float64))

    @property
    def _center(self) -> np.ndarray:
        return np.zeros(self.width) if self.center is None else self.center

    def known(self, user: int, trained: Events, vector_D: np.ndarray, bias: float) -> "Row":
        """A user of the training, who stands where training left it until a like comes or goes."""
        row = self.fresh()
        row.take(trained)
        row.vector, row.solved = np.asarray(vector_D, np.float64), True
        return row

    def likes(self, events: Events) -> Likes:
        """Events as the comparison reads them."""
        return Likes(
            np.asarray(events.vectors, np.float64),
            events.biases - self._of(self.log_q_I, events.numbers, 0.0),
            self._of(self.weight_I, events.numbers, float(self.weight_I.max(initial=1.0))),
            self._of(self.share_I, events.numbers, 0.0),
        )

    def solve(self, events: Events, start_D: np.ndarray) -> np.ndarray:
        """p [D] for these likes, from a start; without any, the center."""
        likes, p_D, count = self.likes(events), start_D, len(events.numbers)
        if count == 0:
            return self._center.copy()
        value = self.comparison.value(p_D, likes)
        for _ in range(_STEPS):
            slope_D, bend_DxD = self.comparison.slopes(p_D, likes)
            penalty_D = 2.0 * count * self.l2 + self.delta * np.diag(bend_DxD)
            # Both penalties are one parabola, whose lowest point lies between the center and 0.
            lowest_D = 2.0 * count * self.l2 * self._center / penalty_D
            slope_D = slope_D + penalty_D * (p_D - lowest_D)
            if np.abs(slope_D).max() <= _EXACT * count:
                break
            step_D = -np.linalg.solve(bend_DxD + np.diag(penalty_D), slope_D)
            promised = float(slope_D @ step_D)
            p_D, value = self._downhill(p_D, value, step_D, promised, (penalty_D, lowest_D), likes)
        return p_D

    def _downhill(
        self,
        p_D: np.ndarray,
        value: float,
        step_D: np.ndarray,
        promised: float,
        parabola: tuple[np.ndarray, np.ndarray],
        likes: Likes,
    ) -> tuple[np.ndarray, float]:
        """As far along a step as the objective falls as it promises to (Armijo): all of it, a half, a quarter ...

        Also the comparison's value there. What rounding hides is no rise.
        """
        penalty_D, lowest_D = parabola
        here = value + 0.5 * float(penalty_D @ (p_D - lowest_D) ** 2)
        for halvings in range(_HALVINGS):
            share = 0.5**halvings
            there_D = p_D + share * step_D
            found = self.comparison.value(there_D, likes)
            if found + 0.5 * float(
                penalty_D @ (there_D - lowest_D) ** 2
            ) <= here + 1e-4 * share * promised + 1e-12 * abs(here):
                return there_D, found
        return p_D, value

    def _of(self, value_I: np.ndarray, numbers: np.ndarray, later: float) -> np.ndarray:
        known = numbers < len(value_I)
        found_N = np.full(len(numbers), later)
        found_N[known] = value_I[numbers[known]]
        return found_N


@dataclasses.dataclass
class Row:
    """A user's likes by item number, as events (several where a place counts as several)."""

    rule: RankingRule
    liked: dict[int, Events]
    vector: np.ndarray
    solved: bool = False

    def take(self, events: Events) -> None:
        """Items are rated for the first time."""
        good_N = events.ratings >= self.rule.positive_rating
        for number in np.unique(events.numbers[good_N]).tolist():
            self.liked[number] = events.where(good_N & (events.numbers == number))
            self.solved = False

    def change(self, event: Events, before: float) -> None:
        """One item that was rated `before` is rated anew: a like comes, goes, or neither."""
        (number,), (rating,) = event.numbers.tolist(), event.ratings.tolist()
        if rating >= self.rule.positive_rating > before:
            self.take(event)
        elif before >= self.rule.positive_rating > rating:
            del self.liked[number]
            self.solved = False

    def solve(self) -> tuple[np.ndarray, float]:
        """(vector, 0): such a model has no biases of users."""
        if not self.solved:
            parts = [tuple(vars(events).values()) for events in self.liked.values()]
            empty = (np.zeros(0, np.int64), np.zeros((0, self.rule.width)), np.zeros(0), np.zeros(0))
            events = Events(*(np.concatenate(columns) for columns in zip(empty, *parts, strict=True)))
            self.vector, self.solved = self.rule.solve(events, self.vector), True
        return self.vector, 0.0


def of_bundle(bundle: Bundle) -> RankingRule:
    """The rule of a bundle trained by gradient with `train.objective` softmax or bpr."""
    model, train, vectors = bundle.config.model, bundle.config.train, bundle.vectors
    liked = bundle.history.items[bundle.history.ratings >= bundle.positive_rating]
    counts_I = np.bincount(liked, minlength=bundle.num_items)
    # Slots of an item in a batch go with its chunks of pairs: as `train.batches` deals them in the last phase.
    by_head = train.trainable == "none" or train.epochs == 0
    chunks_I = -(-counts_I // (train.head_pairs_per_item if by_head else train.pairs_per_item))
    log_q_I = np.log(np.maximum(chunks_I, 1)) if train.objective == "bpr" else np.zeros(bundle.num_items)
    compared_K, times_K = _compared(counts_I)
    if train.objective == "bpr":
        times_K = times_K * chunks_I[compared_K]
        times_K = times_K / max(times_K.sum(), 1e-12)
    share_I = np.zeros(bundle.num_items)
    share_I[compared_K] = times_K
    weight_I = popularity_weights(counts_I, train.propensity_power, clip=train.propensity_clip)
    q_KxD = np.asarray(vectors.item_vectors[compared_K], np.float64)
    base_K = np.asarray(vectors.item_biases[compared_K], np.float64) - log_q_I[compared_K]
    comparison: Comparison = (Pairwise if train.objective == "bpr" else Softmax)(q_KxD, base_K, times_K)
    return RankingRule(
        comparison=comparison,
        log_q_I=log_q_I,
        share_I=share_I,
        weight_I=np.where(counts_I > 0, weight_I, weight_I.max(initial=1.0)),
        l2=max(model.user_l2, _LEAST_L2),
        delta=model.embedding_dropout / (1.0 - model.embedding_dropout),
        width=vectors.item_vectors.shape[1],
        positive_rating=bundle.positive_rating,
    )


def _compared(counts_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items with likes, each once; or of more than `COMPARED` a sample by likes, and what each stands for."""
    trained = np.flatnonzero(counts_I)
    if len(trained) <= COMPARED:
        return trained, np.ones(len(trained))
    chance_T = counts_I[trained] / counts_I[trained].sum()
    drawn, times = np.unique(np.random.default_rng(0).choice(len(trained), COMPARED, p=chance_T), return_counts=True)
    return trained[drawn], times / (COMPARED * chance_T[drawn])
