import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltrec_jax.text import packing
from ltrec_jax.text.store import TokenStore


def store(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenStore(np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets)


lengths_and_row = st.integers(1, 64).flatmap(
    lambda row: st.tuples(st.lists(st.integers(0, row), max_size=60), st.just(row))
)


@given(lengths_and_row)
@settings(max_examples=80, deadline=None)
def test_texts_fit_without_overlap_and_come_back(case):
    lengths, row_length = case
    row, start = packing.pack(np.array(lengths, np.int64), row_length)
    rows = int(row.max(initial=-1)) + 1
    tokens = store(lengths)
    items = np.arange(len(lengths))
    ids, slot, position = packing.fill(tokens, items, row, start, rows, row_length, 0)
    assert (slot < len(lengths)).sum() == sum(lengths)  # nothing overlaps, nothing is lost
    for text in items:
        here = slot == text
        np.testing.assert_array_equal(ids[here], tokens.row(text))
        np.testing.assert_array_equal(position[here], np.arange(lengths[text]))
        assert len(np.unique(np.nonzero(here)[0])) <= 1
    padding = slot == len(lengths)
    assert (ids[padding] == 0).all()
    assert (position[padding] == 0).all()


@given(st.lists(st.integers(1, 32), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_no_two_rows_could_be_one(lengths):
    row, _ = packing.pack(np.array(lengths), 32)
    used = np.bincount(row, lengths)
    assert used.max() <= 32
    if len(used) > 1:
        emptiest, next_emptiest = np.sort(used)[:2]
        assert emptiest + next_emptiest > 32


def one_after_the_other(lengths, row_length):
    """The spaces that best-fit decreasing leaves, each text looked at alone."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [n for n, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=spaces.__getitem__)] -= length
        else:
            spaces.append(row_length - length)
    return sorted(spaces)


@given(st.lists(st.integers(1, 24), max_size=80))
@settings(max_examples=80, deadline=None)
def test_texts_of_one_length_are_placed_together_as_they_would_be_one_by_one(lengths):
    row, _ = packing.pack(np.array(lengths, np.int64), 24)
    assert sorted((24 - np.bincount(row, lengths)).tolist() if lengths else []) == one_after_the_other(lengths, 24)


def test_short_texts_fill_rows_almost_entirely():
    lengths = np.random.default_rng(0).integers(6, 30, 4000)
    row, _ = packing.pack(lengths, 64)
    assert lengths.sum() / ((row.max() + 1) * 64) > 0.99


def test_packing_is_deterministic_and_takes_texts_in_any_order():
    lengths = np.array([5, 3, 5, 3])
    for a, b in zip(packing.pack(lengths, 8), packing.pack(lengths, 8), strict=True):
        np.testing.assert_array_equal(a, b)
    assert packing.pack(lengths, 8)[0].max() == 1


def test_items_may_be_any_texts_of_the_store():
    tokens = store([2, 3, 4])
    row, start = packing.pack(np.array([4, 2]), 6)
    ids, slot, _ = packing.fill(tokens, np.array([2, 0]), row, start, 2, 6, 99)
    np.testing.assert_array_equal(ids[slot == 0], tokens.row(2))
    np.testing.assert_array_equal(ids[slot == 1], tokens.row(0))
    assert (ids[1] == 99).all()


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="9 tokens does not fit a row of 8"):
        packing.pack(np.array([3, 9]), 8)
