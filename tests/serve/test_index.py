import numpy as np
import pytest

from ltrec_jax import topk
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.serve.faiss_index import faiss_index
from ltrec_jax.serve.index import Among, agreement, exact_index

GROUPS = ("head", "mid", "tail")


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Vectors(3.0, f(40, 16), f(40), f(500, 16), f(500))


def by_hand(vectors, users, k, excluded=None, allowed=None):
    scores = np.array(vectors.score(users))
    for row, items in enumerate(excluded or []):
        scores[row, items] = -np.inf
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k], scores


def test_exact_lists_are_the_evaluators(vectors):
    users = np.arange(40)
    items, scores = exact_index(vectors).search(vectors.user_vectors, vectors.user_biases, 10)
    expected, all_scores = by_hand(vectors, users, 10)
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(all_scores, expected, axis=1))


@pytest.mark.parametrize("make", [exact_index, lambda v: faiss_index(v, "hnsw")], ids=["exact", "hnsw"])
def test_excluded_and_forbidden_items_are_never_listed(vectors, make):
    rng = np.random.default_rng(1)
    excluded = [rng.choice(500, 30, replace=False) for _ in range(5)]
    allowed = rng.random(500) < 0.5
    items, scores = make(vectors).search(
        vectors.user_vectors[:5], vectors.user_biases[:5], 20, Among(excluded, allowed)
    )
    expected, _ = by_hand(vectors, np.arange(5), 20, excluded, allowed)
    np.testing.assert_array_equal(items, expected)
    assert np.all(np.diff(scores, axis=1) <= 0)


@pytest.mark.parametrize("make", [exact_index, lambda v: faiss_index(v, "hnsw")], ids=["exact", "hnsw"])
def test_scores_are_multiplied_before_they_are_ranked(vectors, make):
    factor = np.random.default_rng(2).uniform(0.2, 2.0, 500).astype(np.float32)
    allowed = factor > 0.3
    scores = np.array(vectors.score(np.arange(5))) * factor
    scores[:, ~allowed] = -np.inf
    items, found = make(vectors).search(
        vectors.user_vectors[:5], vectors.user_biases[:5], 20, Among(None, allowed, factor)
    )
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_allclose(found, np.take_along_axis(scores, expected, axis=1), rtol=1e-5)


def test_lists_end_where_the_catalogue_ends(vectors):
    allowed = np.zeros(500, bool)
    allowed[[7, 3]] = True
    items, scores = exact_index(vectors).search(
        vectors.user_vectors[:1], vectors.user_biases[:1], 4, Among(allowed_I=allowed)
    )
    assert set(items[0, :2]) == {3, 7}
    assert (items[0, 2:] == topk.NO_ITEM).all()
    assert (scores[0, 2:] == -np.inf).all()
    none, _ = exact_index(vectors).search(vectors.user_vectors[:0], vectors.user_biases[:0], 4)
    assert none.shape == (0, 4)


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.95), ("int8", 0.9)])
def test_rounded_vectors_keep_most_of_the_lists_and_say_how_much(vectors, precision, least):
    exact, rounded = exact_index(vectors), exact_index(vectors, precision)
    np.testing.assert_allclose(
        np.asarray(rounded.scores(vectors.user_vectors, vectors.user_biases)),
        np.asarray(exact.scores(vectors.user_vectors, vectors.user_biases)),
        atol=0.3,
    )
    group = np.repeat([0, 1, 2], [50, 150, 300])
    kept = agreement(rounded, exact, vectors, group, GROUPS)
    assert set(kept) == {"all", *GROUPS}
    assert least <= kept["all"] <= 1.0
    assert agreement(exact, exact, vectors, group, GROUPS) == dict.fromkeys(kept, 1.0)


def test_inverted_lists_find_most_and_report_it(vectors):
    kept = agreement(faiss_index(vectors, "ivf"), exact_index(vectors), vectors, np.repeat([0, 2], 250), GROUPS)
    assert set(kept) == {"all", "head", "tail"}
    assert 0.2 < kept["all"] <= 1.0
