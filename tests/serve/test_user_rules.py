"""Rules of users around what their texts say: each minimises what it says it does."""

import numpy as np
import pytest

from ltrec_jax.serve.ranking_users import Pairwise, RankingRule, Softmax
from ltrec_jax.serve.squared_users import FoldIn
from ltrec_jax.serve.user_rules import Events

WIDTH, ITEMS, RIDGE, BIAS_RIDGE, DELTA = 3, 12, 0.7, 0.2, 0.5


def events(seed, count, ratings):
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(ITEMS)[:count]
    q, b = items()
    return Events(numbers, q[numbers], b[numbers], rng.choice(ratings, count).astype(float))


def items():
    rng = np.random.default_rng(7)
    return rng.normal(size=(ITEMS, WIDTH)), rng.normal(size=ITEMS)


@pytest.fixture
def text():
    """What a text alone says: vector and bias."""
    return np.array([0.5, -1.0, 2.0]), 0.3


@pytest.fixture
def squared(text):
    ridge, spread = np.r_[BIAS_RIDGE, np.full(WIDTH, RIDGE)], np.r_[0.0, np.full(WIDTH, DELTA)]
    none = np.zeros(WIDTH + 1)
    rule = FoldIn(True, np.outer(none, none), none, np.linspace(1, 2, ITEMS), ridge, spread, mu=3.0)
    return rule.around(*text)


def slope(rated, u, text, weight_I):
    """The gradient of the formula at u = [bias | vector], by hand."""
    (vector, bias), b, p = text, u[0], u[1:]
    weight = weight_I[rated.numbers]
    error = rated.ratings - 3.0 - rated.biases - rated.vectors @ p - b
    of_p = -2 * (weight * error) @ rated.vectors + 2 * DELTA * (weight @ rated.vectors**2) * p
    of_p += 2 * len(error) * RIDGE * (p - vector)
    return np.r_[-2 * weight @ error + 2 * len(error) * BIAS_RIDGE * (b - bias), of_p]


def test_the_squared_rule_minimises_errors_and_the_distance_to_the_text(squared, text):
    rated = events(0, 5, [1.0, 3.0, 5.0])
    row = squared.fresh()
    np.testing.assert_allclose(np.r_[row.solve()], np.r_[text], atol=1e-12)
    row.take(rated)
    vector, bias = row.solve()
    np.testing.assert_allclose(slope(rated, np.r_[bias, vector], text, squared.weight_I), 0, atol=1e-9)
    # A known user is the same, however many of the ratings came later.
    first, rest = rated.where(np.arange(5) < 2), rated.where(np.arange(5) >= 2)
    early = squared.fresh()
    early.take(first)
    known = squared.known(0, first, *early.solve())
    known.take(rest)
    np.testing.assert_allclose(np.r_[known.solve()], np.r_[vector, bias], rtol=1e-9)


@pytest.mark.parametrize("kind", [Softmax, Pairwise])
def test_the_ranking_rule_minimises_around_the_text(kind, text):
    q, b = items()
    share = np.full(ITEMS, 1.0 if kind is Softmax else 1.0 / ITEMS)
    rule = RankingRule(kind(q, b, share), np.zeros(ITEMS), share, np.ones(ITEMS), RIDGE, DELTA, WIDTH, 4.0)
    rule = rule.around(*text)
    np.testing.assert_array_equal(rule.fresh().solve()[0], text[0])
    liked = events(1, 4, [5.0])
    row = rule.fresh()
    row.take(liked)
    p, bias = row.solve()
    gradient, hessian = rule.comparison.slopes(p, rule.likes(liked))
    gradient = gradient + 2 * 4 * RIDGE * (p - text[0]) + DELTA * np.diag(hessian) * p
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert bias == 0
