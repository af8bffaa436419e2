"""How the training interactions spread over the items: counts, head/mid/tail groups, inequality, propensities.

Everything is counted on TRAINING interactions only. Out of scope: metrics per group (`evaluate`).
"""

import dataclasses

import numpy as np

GROUPS = ("head", "mid", "tail")
_FEW = 5


@dataclasses.dataclass(frozen=True)
class Popularity:
    """Training count of each item, `counts` int64[I], and its group, `group` uint8[I]: 0 head, 1 mid, 2 tail."""

    counts: np.ndarray
    group: np.ndarray

    def masks(self) -> dict[str, np.ndarray]:
        """Boolean masks bool[I], in this order.

        head, mid and tail part the catalogue. Across them: cold = 0 training interactions (always tail), few = 1..5,
        warm = 1 or more.
        """
        named = {name: self.group == code for code, name in enumerate(GROUPS)}
        few = (self.counts > 0) & (self.counts <= _FEW)
        return named | {"cold": self.counts == 0, "few": few, "warm": self.counts > 0}


def popularity(items_N: np.ndarray, num_items: int, mass: tuple[float, float, float] = (0.5, 0.3, 0.2)) -> Popularity:
    """Count the items of the N training interactions and group them by the share of interactions they hold.

    head is the smallest set of most popular items that holds at least `mass[0]` of the interactions, mid the smallest
    next set with which at least `mass[0] + mass[1]` is held, tail the rest. Ties are broken by item id (the lower is
    taken as more popular). Without interactions every item is tail. `mass` must be non-negative with sum 1 and the ids
    in 0..I-1, else `ValueError`.
    """
    if min(mass) < 0 or not np.isclose(sum(mass), 1.0):
        raise ValueError(f"mass must be three non-negative shares with sum 1, not {mass}")
    counts_I = np.bincount(items_N, minlength=num_items).astype(np.int64)
    if len(counts_I) > num_items:
        raise ValueError(f"item id {len(counts_I) - 1} is outside 0..{num_items - 1}")
    group_I = np.full(num_items, 2, np.uint8)
    total = int(counts_I.sum())
    if total:
        order_I = np.argsort(-counts_I, kind="stable")
        held_before_I = (np.cumsum(counts_I[order_I]) - counts_I[order_I]) / total
        # 1e-12: a share such as 0.5 + 0.3 must be reached by 8 of 10 interactions whatever its last bit is.
        for code, share in ((1, mass[0] + mass[1]), (0, mass[0])):
            group_I[order_I[held_before_I < share - 1e-12]] = code
        group_I[counts_I == 0] = 2
    return Popularity(counts=counts_I, group=group_I)


def lorenz_curve(counts_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of items (least popular first) and share of interactions they hold: float64[I + 1] each, from 0 to 1.

    Without interactions (or items) the curve is the diagonal.
    """
    share_of_items = np.linspace(0.0, 1.0, len(counts_I) + 1) if len(counts_I) else np.array([0.0, 1.0])
    total = counts_I.sum()
    if total == 0:
        return share_of_items, share_of_items.copy()
    return share_of_items, np.concatenate([[0.0], np.cumsum(np.sort(counts_I)) / total])


def gini(counts_I: np.ndarray) -> float:
    """Gini index of counts: twice the area between diagonal and Lorenz curve. 0 = even, (I-1)/I = one item has all.

    G = sum_i (2 i - I - 1) c_(i) / (I sum c), with the counts c_(1) <= ... <= c_(I). Without interactions: 0.
    """
    total = float(counts_I.sum())
    if total == 0:
        return 0.0
    size = len(counts_I)
    rank = np.arange(1, size + 1)
    return float(((2 * rank - size - 1) * np.sort(counts_I)).sum() / (size * total))


def power_law_exponent(counts_I: np.ndarray, minimum: int = 6) -> float:
    """Exponent alpha of p(count = x) ~ x^-alpha over the items with at least `minimum` interactions.

    alpha = 1 + n / sum_i ln(x_i / (minimum - 1/2)): the approximate discrete maximum likelihood of Clauset, Shalizi
    and Newman (SIAM Review 2009, eq. 3.7), which they find accurate from minimum = 6 on. Without such items: 0.
    """
    if minimum < 1:
        raise ValueError(f"minimum must be at least 1, not {minimum}")
    x_n = counts_I[counts_I >= minimum]
    if len(x_n) == 0:
        return 0.0
    return float(1.0 + len(x_n) / np.log(x_n / (minimum - 0.5)).sum())


def popularity_propensity(counts_I: np.ndarray, exponent: float | None = None, floor: float = 1e-3) -> np.ndarray:
    """Relative probability that an interaction with item i is observed: float64[I] in [floor, 1].

    p_i = max(floor, (n_i / max n)^e). Without `exponent`, e = (gamma + 1) / 2: Yang et al., "Unbiased offline
    recommender evaluation for missing-not-at-random implicit feedback" (RecSys 2018), where an item is shown with
    probability ~ n_i^gamma and then taken with probability ~ its true popularity. gamma is fitted as the
    `power_law_exponent` of the training counts. Such exponents are large (above 1) and meant for evaluation; training
    weights want gentler ones, given by `exponent`. Without interactions every item has p = 1.
    """
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"floor must lie in (0, 1], not {floor}")
    most = counts_I.max(initial=0)
    if most == 0:
        return np.ones(len(counts_I))
    if exponent is None:
        exponent = (power_law_exponent(counts_I) + 1.0) / 2.0
    scaled: np.ndarray = np.maximum(floor, (counts_I / most) ** exponent)
    return scaled


@dataclasses.dataclass(frozen=True)
class RatingPropensity:
    """Probability that a rating of each value is observed: ascending `values_V` and `propensity_V`, float64[V]."""

    values_V: np.ndarray
    propensity_V: np.ndarray

    def of(self, ratings_N: np.ndarray) -> np.ndarray:
        """The propensity of each rating, float64[N]; a value that was not there when it was fitted is `ValueError`."""
        position = np.minimum(np.searchsorted(self.values_V, ratings_N), len(self.values_V) - 1)
        if not np.array_equal(self.values_V[position], ratings_N):
            raise ValueError("a rating has a value that the propensities were not fitted on")
        return self.propensity_V[position]


def naive_bayes_propensity(
    ratings_N: np.ndarray,
    random_ratings_M: np.ndarray,
    num_users: int,
    num_items: int,
    *,
    random_weights_M: np.ndarray | None = None,
) -> RatingPropensity:
    """Propensity by rating value from a second sample of M ratings that is missing at random.

    P(O=1 | Y=r) = P(Y=r | O=1) P(O=1) / P(Y=r), at most 1, with P(Y=r | O=1) counted on the N training ratings,
    P(O=1) = N / (U I), and P(Y=r) counted on the random sample with one count added to every value: Schnabel et al.,
    "Recommendations as Treatments" (ICML 2016), section 5; the added count is ours, against division by zero. Empty
    ratings or an empty sample are `ValueError`: there is nothing to estimate from. `random_weights_M`: how much each
    rating of the sample counts, where it is missing at random only so weighted (default: 1).
    """
    if len(ratings_N) == 0 or len(random_ratings_M) == 0:
        raise ValueError("naive Bayes propensities need training ratings and a missing-at-random sample")
    values_V = np.union1d(ratings_N, random_ratings_M)
    observed_V = np.bincount(np.searchsorted(values_V, ratings_N), minlength=len(values_V)) / len(ratings_N)
    place_M = np.searchsorted(values_V, random_ratings_M)
    random_V = np.bincount(place_M, weights=random_weights_M, minlength=len(values_V)) + 1
    density = len(ratings_N) / (num_users * num_items)
    return RatingPropensity(values_V, np.minimum(1.0, observed_V * density / (random_V / random_V.sum())))


def balanced_naive_bayes(ratings_N: np.ndarray, item_N: np.ndarray, num_users: int, num_items: int) -> RatingPropensity:
    """`naive_bayes_propensity` without a second sample: P(Y=r) is that of the training ratings, items counting alike.

        P(Y=r) = 1/|I| sum_i P(Y=r | O=1, i)        over the |I| items with ratings

    That takes back that popular items are rated more often, not that the users of an item choose to be its raters: the
    least biased marginal that training data alone have, and not a sample that is missing at random.
    """
    counts_I = np.bincount(item_N, minlength=num_items)
    return naive_bayes_propensity(
        ratings_N, ratings_N, num_users, num_items, random_weights_M=1.0 / counts_I[np.asarray(item_N)]
    )
