import numpy as np
import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.text.lexical import Lexical, fit_lexical
from ltrec_jax.text.store import TokenStore


def store(*rows):
    return TokenStore(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]).astype(np.int64))


TEXTS = store([1, 3, 4], [1, 3, 4, 4], [1, 5, 6], [1, 6, 7], [1])


def test_texts_that_share_words_are_near_and_a_full_rank_keeps_every_cosine():
    lexical = fit_lexical(TEXTS, 10, rank=4, special=(1,))
    vectors = lexical.vectors(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > 0.9
    assert abs(vectors[0] @ vectors[2]) < 1e-5
    weight = {token: np.log(6 / (1 + count)) + 1 for token, count in {5: 1, 6: 2, 7: 1}.items()}
    by_hand = weight[6] ** 2 / np.hypot(weight[5], weight[6]) / np.hypot(weight[6], weight[7])
    assert vectors[2] @ vectors[3] == pytest.approx(by_hand, rel=1e-5)


def test_special_tokens_alone_are_zero_and_a_fit_repeats():
    first, second = (fit_lexical(TEXTS, 10, rank=3, special=(1,)) for _ in range(2))
    np.testing.assert_array_equal(first.components, second.components)
    np.testing.assert_array_equal(first.vectors(TEXTS)[4], 0)


def test_one_text_is_refused():
    with pytest.raises(UserError, match="two texts"):
        fit_lexical(store([1, 2]), 5)


def test_a_channel_comes_back_from_its_tensors_with_the_same_vectors():
    """Tokens that no text had are left out, and weigh nothing before and after."""
    lexical = fit_lexical(TEXTS, 10, rank=3, special=(1,))
    tensors = lexical.tensors()
    assert tensors["token"].tolist() == [3, 4, 5, 6, 7]
    again = Lexical.of_tensors(tensors, 10)
    later = store([1, 3, 9], [9, 2], [4, 6, 6])
    np.testing.assert_array_equal(again.vectors(later), lexical.vectors(later))
    np.testing.assert_array_equal(again.vectors(later)[1], 0)
