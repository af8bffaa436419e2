"""How sure a figure is: 95% intervals and paired differences by bootstrap over users.

All figures of a report are re-computed on the same resamples of users, so that the difference of two models is paired:
a user who is hard for both cancels out. Out of scope: what is being measured; everything arrives as sums per user.
"""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

RESAMPLES = 2000
_MOST_UNITS = 8_192
_CHUNK_ELEMENTS = 4_000_000


@dataclasses.dataclass(frozen=True)
class UserSums:
    """A metric as sums of each user: value = sum_U total / sum_U count, or the square root of that (`root`).

    total_U, count_U: float64 [U]. For a rating metric a count is a number of test pairs, for a ranking metric 0 or 1.
    `by_users`: counts are weights, so that n is the number of users whose count is above 0, not the sum of counts.
    """

    total_U: np.ndarray
    count_U: np.ndarray
    root: bool = False
    by_users: bool = False


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value, its 95% interval and the n it rests on (pairs for rating metrics, users for ranking metrics).

    Without data the value is None and n is 0; where fewer than two users contribute the interval is None.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int


NOTHING = Estimate(None, None, 0)
"""The estimate of a metric that has no data, or that a model does not have."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """value = first minus second model, its 95% interval, and the two-sided p value of "no difference"."""

    value: float
    ci95: tuple[float, float]
    p: float


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Point estimates, and the value of each metric on each resample: float64 [resamples], NaN where it has no data."""

    estimates: Mapping[Hashable, Estimate]
    replicates: Mapping[Hashable, np.ndarray]

    def with_sum(self, key: Hashable, parts: Sequence[Hashable]) -> "Bootstrap":
        """This and, under `key`, the sum of some metrics on each resample; unchanged unless all have an interval."""
        found = [self.estimates.get(part, NOTHING) for part in parts]
        if not all(one.value is not None and one.ci95 is not None for one in found):
            return self
        replicates = np.sum([self.replicates[part] for part in parts], axis=0)
        value = sum(one.value or 0.0 for one in found)
        total = Estimate(value, _interval(replicates), min(one.n for one in found))
        return Bootstrap({**self.estimates, key: total}, {**self.replicates, key: replicates})

    def difference(self, first: Hashable, second: Hashable) -> Difference | None:
        """The paired difference of two metrics; None unless both exist and have an interval.

        p = 2 (1 - Phi(|value| / s)) with s the standard deviation of the difference over the resamples (a normal
        approximation, so that p is not bounded below by the number of resamples). Equal on all resamples: p is 1 for
        a difference of 0 and else 0.
        """
        one, two = self.estimates.get(first, NOTHING), self.estimates.get(second, NOTHING)
        if one.value is None or two.value is None or one.ci95 is None or two.ci95 is None:
            return None
        value = one.value - two.value
        spread = self.replicates[first] - self.replicates[second]
        deviation = float(np.nanstd(spread, ddof=1))
        if deviation < 1e-12:
            p = float(abs(value) < 1e-12)
        else:
            p = math.erfc(abs(value) / deviation / math.sqrt(2.0))
        return Difference(value, _interval(spread), p)


def bootstrap(
    metrics: Iterable[tuple[Hashable, UserSums]], num_users: int, *, seed: int, resamples: int = RESAMPLES
) -> Bootstrap:
    """Estimate every metric, with percentile intervals over resamples of the U users with replacement.

    The metrics are consumed one by one. Beyond 8,192 users, users are put at random into that many bins and bins are
    resampled: the same variance, in bounded memory. A resample in which a metric has no data does not count for it.
    Same seed, same result. Source: Efron (1979); for paired evaluation of rankings Sakai (2006).
    """
    generator = np.random.default_rng(seed)
    units = min(num_users, _MOST_UNITS)
    unit_U = generator.permutation(num_users) % units if num_users > units else np.arange(num_users)
    keys, roots, totals, counts, users, sizes = [], [], [], [], [], []
    for key, metric in metrics:
        keys.append(key)
        roots.append(metric.root)
        totals.append(np.bincount(unit_U, weights=metric.total_U, minlength=units))
        counts.append(np.bincount(unit_U, weights=metric.count_U, minlength=units))
        users.append(int((metric.count_U > 0).sum()))
        sizes.append(users[-1] if metric.by_users else round(float(metric.count_U.sum())))
    values, replicates = _resample(np.array(totals), np.array(counts), np.array(roots, bool), generator, resamples)
    estimates = {}
    for column, key in enumerate(keys):
        if users[column] == 0:
            estimates[key] = NOTHING
        else:
            interval = _interval(replicates[:, column]) if users[column] > 1 else None
            estimates[key] = Estimate(float(values[column]), interval, sizes[column])
    return Bootstrap(estimates, {key: replicates[:, column] for column, key in enumerate(keys)})


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p_(j) becomes the largest of (m - l + 1) p_(l) over l <= j, at most 1.

    Controls the chance of one or more false claims among the m. Source: Holm (1979).
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return corrected.tolist()


def _resample(
    totals_CxU: np.ndarray, counts_CxU: np.ndarray, root_C: np.ndarray, generator: np.random.Generator, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values [C] and replicates [resamples, C]."""
    if len(totals_CxU) == 0:
        return np.zeros(0), np.zeros((resamples, 0))
    units = totals_CxU.shape[1]
    chunk = max(1, _CHUNK_ELEMENTS // units)
    replicates = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = generator.integers(0, units, size=(rows, units)) + units * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
        replicates.append(_ratio(times @ totals_CxU.T, times @ counts_CxU.T, root_C))
    return _ratio(totals_CxU.sum(1), counts_CxU.sum(1), root_C), np.concatenate(replicates)


def _ratio(totals: np.ndarray, counts: np.ndarray, root_C: np.ndarray) -> np.ndarray:
    ratio = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return np.where(root_C, np.sqrt(np.maximum(ratio, 0.0)), ratio)


def _interval(replicates: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return float(low), float(high)
