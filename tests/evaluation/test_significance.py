"""Intervals against theory and against a loop over resamples; Holm by hand; what happens without data."""

import math

import numpy as np
import pytest

from ltrec_jax.evaluation import significance
from ltrec_jax.evaluation.significance import UserSums


def mean_of(values):
    return UserSums(np.asarray(values, float), np.ones(len(values)))


def test_interval_of_a_mean_is_that_of_the_normal_theory():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    found = significance.bootstrap([("m", mean_of(values))], 4000, seed=1).estimates["m"]
    assert found.value == pytest.approx(values.mean())
    assert found.n == 4000
    half = 1.96 * values.std(ddof=1) / math.sqrt(4000)
    assert found.ci95 == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_replicates_equal_a_loop_over_the_same_draws():
    generator = np.random.default_rng(3)
    totals, counts = generator.random(6), generator.integers(0, 3, 6).astype(float)
    sample = significance.bootstrap([("r", UserSums(totals, counts, root=True))], 6, seed=5, resamples=20)
    drawn = np.random.default_rng(5).integers(0, 6, size=(20, 6))
    expected = [math.sqrt(totals[row].sum() / counts[row].sum()) for row in drawn]
    np.testing.assert_allclose(sample.replicates["r"], expected)


def test_same_seed_same_bits_and_the_order_of_users_does_not_matter_to_the_value():
    values = np.random.default_rng(0).random(50)
    first, again = (significance.bootstrap([("m", mean_of(values))], 50, seed=7).estimates["m"] for _ in range(2))
    assert first == again
    shuffled = significance.bootstrap([("m", mean_of(values[::-1]))], 50, seed=7).estimates["m"]
    assert shuffled.value == pytest.approx(first.value)


def test_many_users_are_put_into_bins_with_the_same_width(monkeypatch):
    values = np.random.default_rng(0).normal(size=6000)
    plain = significance.bootstrap([("m", mean_of(values))], 6000, seed=0).estimates["m"]
    monkeypatch.setattr(significance, "_MOST_UNITS", 600)
    binned = significance.bootstrap([("m", mean_of(values))], 6000, seed=0).estimates["m"]
    assert binned.value == pytest.approx(plain.value)
    assert np.diff(binned.ci95) == pytest.approx(np.diff(plain.ci95), rel=0.15)


def test_a_paired_difference_is_narrower_than_the_two_intervals():
    generator = np.random.default_rng(0)
    hard = generator.normal(size=500)
    one, two = hard + 0.05 + 0.01 * generator.normal(size=500), hard
    sample = significance.bootstrap([("one", mean_of(one)), ("two", mean_of(two))], 500, seed=0)
    found = sample.difference("one", "two")
    assert found.value == pytest.approx(0.05, abs=0.01)
    assert np.diff(found.ci95) < 0.1 * np.diff(sample.estimates["one"].ci95)
    assert found.p < 1e-6
    opposite = sample.difference("two", "one")
    assert opposite.value == -found.value
    assert opposite.p == found.p


def test_p_under_no_difference_is_uniform_enough():
    p = []
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=80)
        sample = significance.bootstrap(
            [("one", mean_of(noise)), ("two", mean_of(np.zeros(80)))], 80, seed=seed, resamples=200
        )
        p.append(sample.difference("one", "two").p)
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.10


def test_equal_models_differ_by_nothing():
    sample = significance.bootstrap([("one", mean_of(np.ones(9))), ("two", mean_of(np.ones(9)))], 9, seed=0)
    assert sample.difference("one", "two") == significance.Difference(0.0, (0.0, 0.0), 1.0)


def test_no_data_is_none_and_one_user_has_no_interval():
    nothing = UserSums(np.zeros(5), np.zeros(5))
    single = UserSums(np.array([0.0, 4.0, 0, 0, 0]), np.array([0.0, 2.0, 0, 0, 0]), root=True)
    sample = significance.bootstrap([("no", nothing), ("one", single), ("all", mean_of(np.arange(5)))], 5, seed=0)
    assert sample.estimates["no"] == significance.NOTHING
    assert sample.estimates["one"] == significance.Estimate(math.sqrt(2.0), None, 2)
    assert sample.estimates["all"].ci95 is not None
    assert sample.difference("one", "all") is None
    assert sample.difference("all", "missing") is None


def test_no_metric_at_all():
    assert significance.bootstrap([], 5, seed=0).estimates == {}


def test_holm_by_hand():
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert significance.holm([]) == []


def test_a_sum_is_resampled_with_its_parts():
    generator = np.random.default_rng(0)
    parts = {name: mean_of(generator.random(60)) for name in ("a", "b")}
    sample = significance.bootstrap(parts.items(), 60, seed=0).with_sum("both", ["a", "b"])
    assert sample.estimates["both"].value == pytest.approx(sum(sample.estimates[name].value for name in "ab"))
    np.testing.assert_allclose(sample.replicates["both"], sample.replicates["a"] + sample.replicates["b"])
    assert "more" not in sample.with_sum("more", ["a", "missing"]).estimates


def test_counts_that_are_weights_give_n_in_users():
    weighted = UserSums(np.array([1.0, 2.0, 0.0]), np.array([0.5, 7.0, 0.0]), by_users=True)
    found = significance.bootstrap([("w", weighted)], 3, seed=0).estimates["w"]
    assert (found.value, found.n) == (0.4, 2)
