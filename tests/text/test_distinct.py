"""Equal texts found by their tokens."""

import numpy as np

from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.text.store import TokenStore


def store(texts):
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    return TokenStore(np.array([token for text in texts for token in text], np.int32), offsets)


def test_by_hand():
    first, inverse = distinct_texts(store([[1, 2], [3], [1, 2], [], [3], [1], []]))
    assert first.tolist() == [0, 1, 3, 5]
    assert inverse.tolist() == [0, 1, 0, 2, 1, 3, 2]


def test_equals_a_dictionary():
    generator = np.random.default_rng(0)
    texts = [tuple(generator.integers(0, 3, length).tolist()) for length in generator.integers(0, 5, 500)]
    first, inverse = distinct_texts(store(texts))
    seen = {}
    for text in texts:
        seen.setdefault(text, len(seen))
    assert [texts[i] for i in first] == list(seen)
    assert inverse.tolist() == [seen[text] for text in texts]


def test_no_texts():
    first, inverse = distinct_texts(store([]))
    assert (first.tolist(), inverse.tolist()) == ([], [])
