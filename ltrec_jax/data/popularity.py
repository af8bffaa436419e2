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
