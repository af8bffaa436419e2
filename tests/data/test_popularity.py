import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltrec_jax.data import popularity as pop


def counts_to_items(counts: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def test_groups_by_hand() -> None:
    found = pop.popularity(counts_to_items([1, 5, 0, 2, 2]), 5)
    # 10 interactions: item 1 alone holds 5; with item 3 it is 7, with item 4 it is 9, past the 8 that end mid.
    assert found.counts.tolist() == [1, 5, 0, 2, 2]
    assert found.group.tolist() == [2, 0, 2, 1, 1]
    masks = found.masks()
    assert list(masks) == ["head", "mid", "tail", "cold", "few", "warm"]
    assert masks["cold"].tolist() == [False, False, True, False, False]
    assert masks["few"].tolist() == [True, True, False, True, True]
    assert masks["warm"].tolist() == [True, True, False, True, True]


def test_ties_are_broken_by_item_id() -> None:
    assert pop.popularity(counts_to_items([2, 2, 2, 2]), 4, (0.5, 0.25, 0.25)).group.tolist() == [0, 0, 1, 2]


def test_a_share_reached_exactly_needs_no_further_item() -> None:
    assert pop.popularity(counts_to_items([1] * 10), 10).group.tolist() == [0] * 5 + [1] * 3 + [2] * 2


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_groups_are_the_smallest_sets_that_hold_their_mass(counts: list[int], cuts: tuple[float, float]) -> None:
    first, second = sorted(cuts)
    found = pop.popularity(counts_to_items(counts), len(counts), (first, second - first, 1 - second))
    total, held = sum(counts), np.array(counts)
    for code, share in ((0, first), (1, second)):
        inside = found.group <= code
        if total and inside.any():
            assert held[inside].sum() >= share * total - 1e-9
            assert held[inside].sum() - held[inside].min() < share * total
            assert held[inside].min() >= held[~inside].max(initial=0)
        elif total:
            assert share <= 1e-9


def test_without_interactions_every_item_is_tail_and_nothing_is_nan() -> None:
    found = pop.popularity(np.zeros(0, np.int32), 3)
    assert found.group.tolist() == [2, 2, 2]
    assert found.masks()["cold"].all()
    assert pop.gini(found.counts) == 0.0
    assert pop.power_law_exponent(found.counts) == 0.0
    assert pop.popularity_propensity(found.counts).tolist() == [1.0, 1.0, 1.0]
    items, held = pop.lorenz_curve(found.counts)
    assert np.array_equal(items, held)
    assert pop.popularity(np.zeros(0, np.int32), 0).counts.shape == (0,)
    assert pop.gini(np.zeros(0, np.int64)) == 0.0
    assert pop.popularity_propensity(np.zeros(0, np.int64)).shape == (0,)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="mass"):
        pop.popularity(np.zeros(1, np.int32), 1, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="outside"):
        pop.popularity(np.array([4]), 3)
    with pytest.raises(ValueError, match="floor"):
        pop.popularity_propensity(np.ones(2), floor=0.0)
    with pytest.raises(ValueError, match="minimum"):
        pop.power_law_exponent(np.ones(2), minimum=0)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=50))
def test_gini_is_twice_the_area_under_the_diagonal(counts: list[int]) -> None:
    array = np.array(counts)
    items, held = pop.lorenz_curve(array)
    assert pop.gini(array) == pytest.approx(1 - 2 * np.trapezoid(held, items), abs=1e-9)


def test_gini_extremes() -> None:
    assert pop.gini(np.full(7, 3)) == 0.0
    assert pop.gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4)


def test_lorenz_curve_by_hand() -> None:
    items, held = pop.lorenz_curve(np.array([3, 1, 0]))
    assert items.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert held.tolist() == pytest.approx([0, 0, 1 / 4, 1])


def test_power_law_exponent_by_hand_and_on_drawn_data() -> None:
    assert pop.power_law_exponent(np.array([6, 11, 3])) == pytest.approx(1 + 2 / (math.log(6 / 5.5) + math.log(2)))
    drawn = np.random.default_rng(0).zipf(2.3, 200_000)
    assert pop.power_law_exponent(drawn) == pytest.approx(2.3, abs=0.05)


def test_popularity_propensity() -> None:
    counts = np.array([0, 1, 10, 100])
    given_exponent = pop.popularity_propensity(counts, exponent=0.5, floor=0.01)
    assert given_exponent.tolist() == pytest.approx([0.01, 0.1, math.sqrt(0.1), 1.0])
    gamma = pop.power_law_exponent(counts)
    assert pop.popularity_propensity(counts)[2] == pytest.approx(max(1e-3, 0.1 ** ((gamma + 1) / 2)))


def test_naive_bayes_recovers_the_propensities_it_was_drawn_with() -> None:
    generator = np.random.default_rng(1)
    users, items = 500, 400
    ratings = generator.choice([1.0, 2.0, 3.0], p=[0.5, 0.3, 0.2], size=users * items)
    truth = {1.0: 0.02, 2.0: 0.1, 3.0: 0.4}
    observed = ratings[generator.random(len(ratings)) < np.vectorize(truth.get)(ratings)]
    sample = generator.choice(ratings, 20_000, replace=False)
    found = pop.naive_bayes_propensity(observed, sample, users, items)
    assert found.of(np.array([1.0, 2.0, 3.0])) == pytest.approx(list(truth.values()), rel=0.05)


def test_naive_bayes_edges() -> None:
    found = pop.naive_bayes_propensity(np.array([1.0, 5.0]), np.array([1.0]), 1, 2)
    assert np.all((found.propensity_V > 0) & (found.propensity_V <= 1))
    with pytest.raises(ValueError, match="not fitted"):
        found.of(np.array([3.0]))
    with pytest.raises(ValueError, match="missing-at-random"):
        pop.naive_bayes_propensity(np.array([1.0]), np.zeros(0), 1, 1)


def test_the_balanced_marginal_counts_every_item_alike() -> None:
    """Item 0 has 98 ratings of 5, item 1 two of 1: each value has half of the marginal, whatever was rated most."""
    ratings = np.array([5.0] * 98 + [1.0] * 2)
    items = np.array([0] * 98 + [1] * 2)
    found = pop.balanced_naive_bayes(ratings, items, 100, 3)
    # One count for each item, and the one that is added for each value.
    assert found.of(np.array([1.0, 5.0])) == pytest.approx([0.02 * (100 / 300) / (2 / 4), 0.98 * (100 / 300) / (2 / 4)])
