import tracemalloc

import numpy as np
import pytest

from ltrec_jax.text.store import build_store
from ltrec_jax.text.tokenizer import load_tokenizer

TEXTS = ["the rocket", "barn", "", "the comet and the planet"]


@pytest.fixture
def tokenizer(tiny_encoder):
    return load_tokenizer(tiny_encoder, 22)


def test_rows_are_what_the_tokenizer_says(tokenizer):
    store = build_store(TEXTS, tokenizer, 5)
    assert len(store) == 4
    assert store.truncated == 1
    for text, row in zip(TEXTS, map(store.row, range(4)), strict=True):
        np.testing.assert_array_equal(row, tokenizer.encode([text], 5)[0])
    assert store.lengths.tolist() == [4, 3, 2, 5]


def test_taking_texts_keeps_their_tokens(tokenizer):
    store = build_store(TEXTS, tokenizer, 16)
    taken = store.take(np.array([3, 0, 3]))
    for place, text in enumerate([3, 0, 3]):
        np.testing.assert_array_equal(taken.row(place), store.row(text))


def test_it_is_built_once_per_content(tokenizer, tmp_path, monkeypatch):
    first = build_store(TEXTS, tokenizer, 16, tmp_path)
    assert isinstance(first.values, np.memmap)
    monkeypatch.setattr(type(tokenizer), "encode", lambda *a: pytest.fail("tokenised again"))
    again = build_store(TEXTS, tokenizer, 16, tmp_path)
    np.testing.assert_array_equal(again.values, first.values)


def test_other_texts_or_lengths_are_other_stores(tokenizer, tmp_path):
    for texts, length in [(TEXTS, 16), (TEXTS, 5), (TEXTS[:3], 16), (["", *TEXTS[:3]], 16)]:
        build_store(texts, tokenizer, length, tmp_path)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 4


@pytest.mark.parametrize("name", ["values.npy", "offsets.npy", "store.json"])
def test_a_damaged_store_is_built_again_with_a_warning(tokenizer, tmp_path, name):
    first = build_store(TEXTS, tokenizer, 16, tmp_path)
    expected = np.array(first.values)
    place = next(p for p in tmp_path.iterdir() if p.is_dir())
    (place / name).write_bytes((place / name).read_bytes()[:-3])
    with pytest.warns(UserWarning, match="tokenised again"):
        again = build_store(TEXTS, tokenizer, 16, tmp_path)
    np.testing.assert_array_equal(again.values, expected)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_chunks_are_joined_in_order(tokenizer, tmp_path, monkeypatch, chunk, cached):
    whole = build_store(TEXTS * 3, tokenizer, 4)
    monkeypatch.setattr("ltrec_jax.text.store._CHUNK", chunk)
    parts = build_store(TEXTS * 3, tokenizer, 4, tmp_path if cached else None)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.offsets, whole.offsets)
    assert (parts.values.dtype, parts.offsets.dtype) == (np.int32, np.int64)
    assert parts.truncated == whole.truncated == 3


def test_memory_does_not_grow_with_the_tokens_of_a_cached_store(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("ltrec_jax.text.store._CHUNK", 500)
    monkeypatch.setattr("ltrec_jax.storage._CHUNK", 4096)

    def peak(count, cache):
        texts = ["the comet and the planet " * 6] * count
        tracemalloc.start()
        build_store(texts, tokenizer, 32, cache)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    tokens = (8000 - 2000) * 32 * 4
    assert peak(8000, tmp_path) - peak(2000, tmp_path) < tokens / 2
    assert peak(8000, None) - peak(2000, None) > tokens


@pytest.mark.parametrize("cached", [False, True])
def test_no_texts_give_an_empty_store(tokenizer, tmp_path, cached):
    store = build_store([], tokenizer, 16, tmp_path if cached else None)
    assert len(store) == 0
    assert store.lengths.tolist() == []
