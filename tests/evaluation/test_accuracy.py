"""Ranking metrics against formulas written by hand and against a loop over plain lists; laws on all of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltrec_jax.evaluation import accuracy

HITS = np.array([[False, True, False, True, False]])


@pytest.mark.parametrize(
    ("name", "k", "relevant", "expected"),
    [
        ("ndcg", 5, 3, (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / math.log2(4))),
        ("ndcg", 3, 3, (1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / math.log2(4))),
        ("ndcg", 2, 3, (1 / math.log2(3)) / (1 + 1 / math.log2(3))),
        ("recall", 5, 3, 2 / 3),
        ("recall", 1, 3, 0.0),
        ("precision", 5, 3, 2 / 5),
        ("precision", 2, 1, 1 / 2),
        ("hitrate", 1, 3, 0.0),
        ("hitrate", 2, 3, 1.0),
        ("mrr", 5, 3, 1 / 2),
        ("mrr", 1, 3, 0.0),
        ("map", 5, 3, (1 / 2 + 2 / 4) / 3),
        ("map", 2, 3, (1 / 2) / 2),
    ],
)
def test_by_hand(name, k, relevant, expected):
    assert accuracy.METRICS[name](HITS, np.array([relevant]), k).tolist() == pytest.approx([expected], abs=1e-12)


def by_loop(name, listed, wanted, k):
    """The same metrics over Python lists, written from their definitions."""
    hits = [item in wanted for item in listed[:k]]
    if not wanted:
        return 0.0
    if name == "ndcg":
        ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(wanted)) + 1))
        return sum(1 / math.log2(r + 1) for r, hit in enumerate(hits, 1) if hit) / ideal
    if name == "recall":
        return sum(hits) / len(wanted)
    if name == "precision":
        return sum(hits) / k
    if name == "hitrate":
        return float(any(hits))
    if name == "mrr":
        return next((1 / r for r, hit in enumerate(hits, 1) if hit), 0.0)
    found = [sum(hits[:r]) / r for r, hit in enumerate(hits, 1) if hit]
    return sum(found) / min(k, len(wanted))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
@pytest.mark.parametrize("name", list(accuracy.METRICS))
def test_against_a_loop(name, seed, k):
    generator = np.random.default_rng(seed)
    listed = [generator.permutation(9)[:6].tolist() for _ in range(5)]
    wanted = [set(generator.permutation(9)[: generator.integers(0, 9)].tolist()) for _ in range(5)]
    hits = np.array([[item in want for item in row] for row, want in zip(listed, wanted, strict=True)])
    found = accuracy.METRICS[name](hits, np.array([len(want) for want in wanted]), k)
    assert found.tolist() == pytest.approx([by_loop(name, *pair, k) for pair in zip(listed, wanted, strict=True)])


@pytest.mark.parametrize("name", list(accuracy.METRICS))
def test_a_perfect_list_scores_one_and_an_empty_one_zero(name):
    perfect, nothing, relevant = np.ones((2, 4), bool), np.zeros((2, 4), bool), np.array([4, 4])
    assert accuracy.METRICS[name](perfect, relevant, 4).tolist() == pytest.approx([1.0, 1.0])
    assert accuracy.METRICS[name](nothing, relevant, 4).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", list(accuracy.METRICS))
def test_moving_a_hit_up_never_lowers_the_score(name):
    low = np.array([[True, False, False, True]])
    high = np.array([[True, False, True, False]])
    relevant = np.array([3])
    for k in range(1, 5):
        assert accuracy.METRICS[name](high, relevant, k)[0] >= accuracy.METRICS[name](low, relevant, k)[0]


@pytest.mark.parametrize("name", list(accuracy.METRICS))
def test_a_user_without_a_target_scores_zero_without_warning(name):
    assert accuracy.METRICS[name](np.zeros((1, 3), bool), np.array([0]), 3).tolist() == [0.0]


def test_against_ir_measures():
    measures = pytest.importorskip("ir_measures", reason="the development extra is not installed")
    generator = np.random.default_rng(4)
    k, users, items = 5, 40, 30
    lists = np.array([generator.permutation(items)[:k] for _ in range(users)])
    wanted = [set(generator.permutation(items)[: generator.integers(1, 12)].tolist()) for _ in range(users)]
    hits = np.array([[int(i) in w for i in listed] for listed, w in zip(lists, wanted, strict=True)])
    relevant = np.array([len(w) for w in wanted])
    asked = {
        "ndcg": measures.nDCG @ k,
        "recall": measures.R @ k,
        "precision": measures.P @ k,
        "hitrate": measures.Success @ k,
        "mrr": measures.RR @ k,
    }
    truth = [measures.Qrel(str(u), str(i), 1) for u, w in enumerate(wanted) for i in w]
    run = [measures.ScoredDoc(str(u), str(i), float(k - rank)) for u in range(users) for rank, i in enumerate(lists[u])]
    expected = {
        (str(one.measure), int(one.query_id)): one.value for one in measures.iter_calc(asked.values(), truth, run)
    }
    for name, measure in asked.items():
        found = accuracy.METRICS[name](hits, relevant, k)
        assert found == pytest.approx([expected[str(measure), u] for u in range(users)]), name
