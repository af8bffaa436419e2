"""Popularity lift and miscalibration by hand and against SciPy's Jensen-Shannon distance."""

import numpy as np
import pytest
from scipy.spatial import distance

from ltrec_jax.data.history import History
from ltrec_jax.evaluation import profiles

COUNTS = np.array([10, 4, 2, 0])
GROUP = np.array([0, 1, 2, 2])
# user 0 had items 0 and 2, user 1 nothing, user 2 item 1
SEEN = History(np.array([0, 2, 2, 3]), np.array([0, 2, 1], np.int32), np.ones(3, np.float32))


@pytest.fixture
def known():
    return profiles.profiles(SEEN, np.array([0, 1, 2]), COUNTS, GROUP, 3)


def test_profiles(known):
    assert known.events_V.tolist() == [2, 0, 1]
    assert known.popularity_V.tolist() == [6.0, 0.0, 4.0]
    assert known.share_VxG.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert known.take(np.array([2])).popularity_V.tolist() == [4.0]


def test_lift_is_that_of_the_group_averages(known):
    found = profiles.popularity_lift(np.array([[0, 1], [0, 0], [0, -1]]), known, COUNTS)
    gap_profiles, gap_lists = (6 + 4) / 2, (7 + 10) / 2  # user 1 has no profile
    assert found.total_U.sum() / found.count_U.sum() == pytest.approx((gap_lists - gap_profiles) / gap_profiles)
    assert found.by_users
    assert (found.count_U > 0).tolist() == [True, False, True]


def test_a_list_like_the_profile_has_no_lift_and_is_calibrated(known):
    lists = np.array([[2, 0], [1, 1], [1, 1]])
    assert profiles.popularity_lift(lists, known, COUNTS).total_U.tolist() == [0.0, 0.0, 0.0]
    assert profiles.miscalibration(lists, known, GROUP).total_U.tolist() == pytest.approx([0.0, 0.0, 0.0])


def test_miscalibration_is_the_jensen_shannon_divergence(known):
    found = profiles.miscalibration(np.array([[0, 1], [0, 1], [3, -1]]), known, GROUP)
    assert found.total_U[0] == pytest.approx(distance.jensenshannon([0.5, 0, 0.5], [0.5, 0.5, 0], base=2) ** 2)
    assert found.total_U[2] == pytest.approx(1.0)  # nothing in common
    assert found.count_U.tolist() == [1.0, 0.0, 1.0]


def test_without_a_list_nothing_counts(known):
    empty = np.full((3, 2), -1)
    for found in (profiles.popularity_lift(empty, known, COUNTS), profiles.miscalibration(empty, known, GROUP)):
        assert found.total_U.tolist() == found.count_U.tolist() == [0.0] * 3
