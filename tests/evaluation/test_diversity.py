"""Diversity against a loop over pairs, serendipity by hand."""

import itertools

import numpy as np
import pytest

from ltrec_jax.evaluation import diversity


def test_diversity_equals_a_loop_over_pairs(monkeypatch):
    monkeypatch.setattr(diversity, "_BLOCK_ELEMENTS", 40)  # several blocks
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(9, 4)).astype(np.float16)
    vectors[8] = 0.0
    lists = np.array([[0, 1, 2, 8], [3, 4, -1, -1], [5, -1, -1, -1], [6, 7, 0, 3], [-1] * 4], np.int32)
    found = diversity.intra_list_diversity(lists, vectors)
    assert found.count_U.tolist() == [1, 1, 0, 1, 0]
    wide = vectors.astype(float)
    for row in (0, 1, 3):
        pairs = itertools.combinations([i for i in lists[row] if i >= 0], 2)
        distances = [
            1 - wide[i] @ wide[j] / max(np.linalg.norm(wide[i]) * np.linalg.norm(wide[j]), 1e-9) for i, j in pairs
        ]
        assert found.total_U[row] == pytest.approx(np.mean(distances), abs=2e-3)


def test_copies_have_no_diversity_and_opposites_have_two():
    vectors = np.array([[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])
    found = diversity.intra_list_diversity(np.array([[0, 1], [0, 2]]), vectors)
    assert found.total_U.tolist() == pytest.approx([0.0, 2.0])


def test_serendipity_counts_hits_that_are_not_obvious():
    lists = np.array([[1, 2, 3], [4, 1, -1], [-1, -1, -1]])
    hits = np.array([[True, True, False], [True, False, False], [False] * 3])
    obvious = np.array([[1, 8, 9], [8, 9, 1], [1, 2, -1]])
    found = diversity.serendipity(lists, hits, obvious)
    assert found.total_U.tolist() == pytest.approx([1 / 3, 1 / 2, 0.0])
    assert found.count_U.tolist() == [1.0, 1.0, 0.0]


def test_the_obvious_list_itself_is_not_serendipitous():
    lists = np.array([[1, 2, 3]])
    assert diversity.serendipity(lists, np.ones((1, 3), bool), lists).total_U.tolist() == [0.0]
