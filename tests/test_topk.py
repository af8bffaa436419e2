"""Top-k against a stable argsort, and the laws of blocks: same lists whatever the block, seen items never listed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltrec_jax import topk


@dataclasses.dataclass(frozen=True)
class Lists:
    offsets: np.ndarray
    items: np.ndarray


def by_argsort(scores, k, allowed):
    """The oracle: sort every row by (-score, item id), drop what is not allowed, fill up."""
    items, best = [], []
    for row, mask in zip(scores, allowed, strict=True):
        order = [i for i in sorted(range(len(row)), key=lambda i: (-row[i], i)) if mask[i] and row[i] > -np.inf][:k]
        items.append(order + [topk.NO_ITEM] * (k - len(order)))
        best.append([row[i] for i in order] + [-np.inf] * (k - len(order)))
    return np.array(items), np.array(best, np.float32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 3, 7, 12]), levels=st.integers(1, 9))
def test_top_k_equals_a_stable_argsort_with_many_ties(seed, k, levels):
    generator = np.random.default_rng(seed)
    scores = generator.integers(-levels, levels, (4, 7)).astype(np.float32)
    allowed = generator.random((4, 7)) < 0.7
    items, best = topk.top_k(scores, k, allowed)
    expected_items, expected_best = by_argsort(scores, k, allowed)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_array_equal(best, expected_best)
    assert items.dtype == jnp.int32
    assert best.dtype == jnp.float32


def test_ties_between_plus_and_minus_zero_go_by_item_id():
    items, _ = topk.top_k(np.array([[-0.0, 0.0, -0.0, 0.0]], np.float32), 4)
    assert items.tolist() == [[0, 1, 2, 3]]


def test_k_beyond_the_catalogue_fills_up():
    items, best = topk.top_k(np.array([[1.0, 2.0]], np.float32), 4)
    assert items.tolist() == [[1, 0, -1, -1]]
    assert best.tolist() == [[2.0, 1.0, -np.inf, -np.inf]]


def test_minus_infinity_is_never_listed():
    items, _ = topk.top_k(np.array([[-np.inf, 0.5, -np.inf]], np.float32), 3)
    assert items.tolist() == [[1, -1, -1]]


def collect(scores, users, **options):
    blocks = list(topk.ranked(lambda block: scores[block], users, num_items=scores.shape[1], **options))
    return np.concatenate([items for items, _ in blocks]), np.concatenate([best for _, best in blocks])


@pytest.mark.parametrize("block_users", [1, 3, 4, 64])
def test_blocks_equal_the_whole_without_seen_items(block_users):
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, (11, 20)).astype(np.float32)
    seen = generator.random((11, 20)) < 0.3
    seen[4], seen[5] = True, False
    lists = Lists(np.concatenate([[0], np.cumsum(seen.sum(1))]), np.nonzero(seen)[1].astype(np.int32))
    users = np.array([9, 4, 5, 0, 10, 2, 3], np.int32)
    items, best = collect(scores, users, k=6, seen=lists, block_users=block_users)
    expected_items, expected_best = by_argsort(scores[users], 6, ~seen[users])
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_array_equal(best, expected_best)


def test_only_allowed_items_are_listed():
    scores = np.arange(12, dtype=np.float32).reshape(2, 6)
    allowed = np.array([True, False, True, False, True, False])
    items, _ = collect(scores, np.array([0, 1]), k=4, allowed_I=allowed)
    assert items.tolist() == [[4, 2, 0, -1], [4, 2, 0, -1]]


def test_the_model_always_sees_full_blocks():
    shapes = []

    def score(users):
        shapes.append(users.shape)
        return np.zeros((len(users), 3), np.float32)

    list(topk.ranked(score, np.arange(5), num_items=3, k=1, block_users=4))
    assert shapes == [(4,), (4,)]


def test_no_users_no_blocks():
    assert list(topk.ranked(lambda users: np.zeros((len(users), 3)), np.zeros(0, np.int32), num_items=3, k=1)) == []


def test_a_nan_is_an_error_even_where_the_item_is_seen():
    scores = np.array([[0.0, np.nan, 1.0]], np.float32)
    with pytest.raises(ValueError, match=r"NaN.*users 0\.\.0"):
        collect(scores, np.array([0]), k=1, seen=Lists(np.array([0, 1]), np.array([1], np.int32)))


def test_scores_of_the_wrong_shape_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(256, 2\)"):
        list(topk.ranked(lambda users: np.zeros((len(users), 2)), np.array([0]), num_items=3, k=1))


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        list(topk.ranked(lambda users: np.zeros((len(users), 2)), np.array([0]), num_items=2, k=0))


def test_several_candidate_sets_share_their_scores():
    scores = np.random.default_rng(0).integers(0, 5, (7, 9)).astype(np.float32)
    calls = []

    def score(users):
        calls.append(len(users))
        return scores[users]

    even = np.arange(9) % 2 == 0
    blocks = list(topk.ranked_among(score, np.arange(7), [None, even], num_items=9, k=4, block_users=4))
    assert calls == [4, 4]
    for place, allowed in enumerate((None, even)):
        alone = list(topk.ranked(score, np.arange(7), num_items=9, k=4, allowed_I=allowed, block_users=4))
        for block, expected in zip(blocks, alone, strict=True):
            np.testing.assert_array_equal(block[place][0], expected[0])
            np.testing.assert_array_equal(block[place][1], expected[1])


@pytest.mark.parametrize(
    ("items", "users"), [(0, 256), (3_706, 256), (32_768, 256), (50_000, 128), (1 << 20, 8), (1 << 24, 8)]
)
def test_a_block_of_scores_stays_small(items, users):
    assert topk.users_per_block(items) == users
