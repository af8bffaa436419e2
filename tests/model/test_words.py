import numpy as np

from ltrec_jax.model.words import Words
from ltrec_jax.text.lexical import Lexical
from ltrec_jax.text.store import TokenStore

RNG = np.random.default_rng(0)
CHANNEL = Lexical(np.array([0.0, 1.0, 2.0, 1.5], np.float32), RNG.normal(size=(4, 2)).astype(np.float32))
TOKENS = TokenStore(np.array([1, 2, 3, 3], np.int32), np.array([0, 2, 4], np.int64))


def words():
    vectors = CHANNEL.vectors(TOKENS)
    projection, text_bias = RNG.normal(size=(2, 3)).astype(np.float32), RNG.normal(size=2).astype(np.float32)
    return Words(CHANNEL, projection, text_bias, vectors)


def test_words_add_to_anchor_and_bias_and_a_new_text_stands_where_an_items_does():
    found = words()
    anchor, bias = found.anchors(TOKENS)
    np.testing.assert_allclose(anchor, found.vectors @ found.projection, rtol=1e-6)
    np.testing.assert_allclose(bias, found.vectors @ found.text_bias, rtol=1e-6)
    assert np.abs(bias).min() > 1e-3
    for same, row in zip(found.of_items(np.array([1, 0])), (anchor[::-1], bias[::-1]), strict=True):
        np.testing.assert_allclose(same, row, rtol=1e-6)


def test_what_was_kept_comes_back_and_older_bundles_have_no_biases_of_words():
    found = words()
    tensors = found.tensors()
    again = Words.of_tensors(tensors, found.vectors, 4)
    np.testing.assert_array_equal(again.anchors(TOKENS)[1], found.anchors(TOKENS)[1])
    del tensors["text_bias"]
    older = Words.of_tensors(tensors, found.vectors, 4)
    np.testing.assert_array_equal(older.anchors(TOKENS)[0], found.anchors(TOKENS)[0])
    assert not older.anchors(TOKENS)[1].any()
