"""Catalogue figures by hand, Gini against a trapezoid area, and their ends: everything even, everything on one item."""

import math

import numpy as np
import pytest

from ltrec_jax.evaluation import longtail

LISTS = np.array([[0, 1], [0, 2], [0, -1]], np.int32)
COUNTS = np.array([8, 4, 2, 2, 0])


def area_gini(exposure):
    """1 - 2 x the trapezoid area under the Lorenz curve."""
    curve = np.concatenate([[0.0], np.cumsum(np.sort(exposure)) / np.sum(exposure)])
    return 1 - 2 * np.trapezoid(curve, dx=1 / len(exposure))


def mean(sums):
    """The figure that sums per user make."""
    return sums.total_U.sum() / sums.count_U.sum()


def test_coverage():
    assert longtail.coverage(LISTS, 5) == 3 / 5


def test_gini_equals_the_area_and_its_ends():
    assert longtail.gini(LISTS, 5) == pytest.approx(area_gini([3, 1, 1, 0, 0]))
    assert longtail.gini(np.arange(6).reshape(3, 2), 6) == pytest.approx(0.0)
    assert longtail.gini(np.zeros((4, 1), int), 6) == pytest.approx(5 / 6)


def test_popularity_of_what_is_listed():
    assert mean(longtail.arp(LISTS, COUNTS)) == pytest.approx(((8 + 4) / 2 + (8 + 2) / 2 + 8) / 3)


def test_share_of_tail_items():
    assert mean(longtail.aplt(LISTS, np.array([False, True, True, True, True]))) == pytest.approx(
        (1 / 2 + 1 / 2 + 0) / 3
    )


def test_novelty_is_discounted_self_information():
    second = 1 / math.log2(3)
    one = (1 * 1 + second * 2) / (1 + second)
    two = (1 * 1 + second * 3) / (1 + second)
    assert mean(longtail.novelty(LISTS, COUNTS)) == pytest.approx((one + two + 1) / 3)


def test_a_never_seen_item_counts_as_seen_once():
    assert mean(longtail.novelty(np.array([[4]]), COUNTS)) == pytest.approx(math.log2(16))


def test_efd_and_epc_count_hits_only():
    hits = np.array([[True, False], [False, True], [False, False]])
    second = 1 / math.log2(3)
    assert mean(longtail.efd(LISTS, hits, COUNTS)) == pytest.approx((1 / (1 + second) + 3 * second / (1 + second)) / 3)
    expected = ((1 - 8 / 10) / (1 + second) + (1 - 2 / 10) * second / (1 + second)) / 3
    assert mean(longtail.epc(LISTS, hits, COUNTS, 10)) == pytest.approx(expected)


@pytest.mark.parametrize("lists", [np.zeros((0, 3), np.int32), np.full((2, 3), -1, np.int32)])
def test_nothing_listed_counts_nothing(lists):
    hits = np.zeros(lists.shape, bool)
    assert longtail.coverage(lists, 5) is None
    assert longtail.gini(lists, 5) is None
    for found in (
        longtail.arp(lists, COUNTS),
        longtail.aplt(lists, COUNTS > 2),
        longtail.novelty(lists, COUNTS),
        longtail.efd(lists, hits, COUNTS),
        longtail.epc(lists, hits, COUNTS, 3),
    ):
        assert found.total_U.tolist() == found.count_U.tolist() == [0.0] * len(lists)
