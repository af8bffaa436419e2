import numpy as np
import pytest

from ltrec_jax.serve import rerank


def test_the_dial_goes_from_the_best_scores_to_the_rarest_candidates():
    rng = np.random.default_rng(0)
    scores, counts = rng.normal(size=50), rng.integers(0, 500, 50)
    np.testing.assert_array_equal(np.argsort(-rerank.tail_dial(scores, counts, 0.0)), np.argsort(-scores))
    rarest = np.sort(counts)[:10]
    by_dial = np.argsort(-rerank.tail_dial(scores, counts, 1.0), kind="stable")[:10]
    np.testing.assert_array_equal(np.sort(counts[by_dial]), rarest)


def test_popularity_of_the_list_never_rises_with_the_dial():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores, counts = rng.normal(size=80), rng.zipf(1.5, 80)
        lists = [np.argsort(-rerank.tail_dial(scores, counts, t), kind="stable")[:10] for t in np.linspace(0, 1, 11)]
        popularity = [np.log1p(counts[one]).mean() for one in lists]
        assert np.all(np.diff(popularity) <= 1e-12)


def test_equal_candidates_keep_their_order():
    np.testing.assert_array_equal(rerank.tail_dial(np.ones(3), np.ones(3), 0.5), np.zeros(3))
    assert rerank.tail_dial(np.zeros(0), np.zeros(0), 0.5).shape == (0,)


def test_diversity_by_hand():
    unit = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    values = np.array([3.0, 2.9, 1.0])
    np.testing.assert_array_equal(rerank.diverse(values, unit, 2, 0.0), [0, 1])
    np.testing.assert_array_equal(rerank.diverse(values, unit, 2, 0.5), [0, 2])
    np.testing.assert_array_equal(np.sort(rerank.diverse(values, unit, 9, 0.5)), [0, 1, 2])


def test_likeness_within_the_list_falls_with_diversity():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(60, 4))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = rows[:, 0]

    def likeness(diversity):
        chosen = rerank.diverse(values, unit, 8, diversity)
        cosines = unit[chosen] @ unit[chosen].T
        return (cosines.sum() - 8) / 56

    assert likeness(0.0) > 0.3
    assert likeness(0.9) < likeness(0.5) < likeness(0.0)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_dials_outside_their_range_are_refused(bad):
    with pytest.raises(ValueError, match="must lie in"):
        rerank.tail_dial(np.zeros(2), np.zeros(2), bad)
    with pytest.raises(ValueError, match="must lie in"):
        rerank.diverse(np.zeros(2), np.eye(2), 1, bad)
