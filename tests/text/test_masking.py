"""The laws of masking, on texts whose words are known by construction."""

import dataclasses

import numpy as np
import pytest
import tokenizers

from ltrec_jax.errors import UserError
from ltrec_jax.text.masking import Maskable, corrupt, maskable
from ltrec_jax.text.tokenizer import Tokenizer

VOCABULARY = 100
SPECIAL = 5
MASK = 4


@pytest.fixture(scope="module")
def vocabulary():
    """Ids 0-4 are special, of the others every third goes on with a word."""
    special = np.arange(VOCABULARY) < SPECIAL
    return Maskable(MASK, special, (np.arange(VOCABULARY) % 3 == 0) & ~special)


@pytest.fixture(scope="module")
def texts():
    """2,000 texts [CLS] ... [SEP] of 2 to 30 tokens, as (values, offsets)."""
    rng = np.random.default_rng(0)
    rows = [np.r_[2, rng.integers(SPECIAL, VOCABULARY, rng.integers(0, 29)), 3] for _ in range(2000)]
    return np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum(list(map(len, rows)))])


def masked(texts, vocabulary, seed=0, **how):
    return corrupt(*texts, vocabulary, np.random.default_rng(seed), **how)


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_rates(texts, vocabulary, whole_words, share):
    shown, chosen = masked(texts, vocabulary, share=share, whole_words=whole_words)
    values = texts[0]
    ordinary = values >= SPECIAL
    count = chosen.sum()

    def close(found, expected, n):
        assert abs(found - expected) < 6 * np.sqrt(expected * (1 - expected) / n)  # words of two tokens: wider than 3

    close(count / ordinary.sum(), share, ordinary.sum() / 2)
    close((shown[chosen] == MASK).mean(), 0.8, count)
    drawn = (shown != MASK) & (shown != values) & chosen
    # One in 95 of the random draws is the token itself.
    close(drawn.sum() / count, 0.1 * 94 / 95, count)
    assert len(np.unique(shown[drawn])) > 80


@pytest.mark.parametrize("whole_words", [False, True])
def test_special_tokens_and_what_is_not_chosen_stay(texts, vocabulary, whole_words):
    shown, chosen = masked(texts, vocabulary, share=0.9, whole_words=whole_words)
    values = texts[0]
    assert not chosen[values < SPECIAL].any()
    np.testing.assert_array_equal(shown[~chosen], values[~chosen])
    assert not np.isin(shown[chosen], [0, 1, 2, 3]).any()


def test_the_generator_decides_everything(texts, vocabulary):
    one, same, other = (masked(texts, vocabulary, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[1], other[1])


def test_a_word_is_hidden_whole_or_not_at_all(vocabulary):
    #         CLS  a   ##  ##  b   c  ##  SEP | ## begins a text
    values = [2, 10, 12, 15, 11, 13, 18, 3, 9, 10]
    word = np.array([-1, 0, 0, 0, 1, 2, 2, -1, 3, 4])
    apart = set()
    for seed in range(200):
        _, chosen = corrupt(
            np.array(values, np.int32), np.array([0, 8, 10]), vocabulary, np.random.default_rng(seed), share=0.5
        )
        for each in range(5):
            assert len(set(chosen[word == each])) == 1
        apart.add(tuple(chosen[[1, 4, 5, 8, 9]]))
    assert len(apart) == 32


@pytest.mark.parametrize("whole_words", [False, True])
def test_every_text_has_something_to_guess(texts, vocabulary, whole_words):
    values, offsets = texts
    (plain, before), (shown, chosen) = (
        masked(texts, vocabulary, share=0.1, whole_words=whole_words, every_text=every) for every in (False, True)
    )
    text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    words = np.bincount(text, values >= SPECIAL)
    had, has = np.bincount(text, before), np.bincount(text, chosen)
    np.testing.assert_array_equal(has > 0, words > 0)
    assert ((had == 0) & (words > 0)).sum() > 200
    assert not chosen[values < SPECIAL].any()
    # Texts of which something was hidden are masked as without it, the others in one word.
    kept = (had > 0)[text]
    np.testing.assert_array_equal(shown[kept], plain[kept])
    np.testing.assert_array_equal(chosen[kept], before[kept])
    goes_on = (vocabulary.continues_V[values] & np.r_[False, values[:-1] >= SPECIAL]) & whole_words
    assert set(np.bincount(text, chosen & ~goes_on)[(had == 0) & (words > 0)].tolist()) == {1.0}


def test_the_word_that_must_be_hidden_is_any_of_the_text(vocabulary):
    values, offsets = np.array([2, 10, 12, 11, 13, 18, 3], np.int32), np.array([0, 7])
    counts = np.zeros(7)
    for seed in range(600):
        generator = np.random.default_rng(seed)
        counts += corrupt(values, offsets, vocabulary, generator, share=1e-9, every_text=True)[1]
    #             CLS  a  ##  b  c  ##  SEP
    assert (counts > 0).tolist() == [False, True, True, True, True, True, False]
    assert (np.abs(counts[[1, 3, 4]] - 200) < 60).all()
    np.testing.assert_array_equal(counts[[1, 4]], counts[[2, 5]])


def test_without_whole_words_pieces_part(texts, vocabulary):
    _, chosen = masked(texts, vocabulary, whole_words=False)
    goes_on = vocabulary.continues_V[texts[0]][1:] & (texts[0][:-1] >= SPECIAL)
    assert (chosen[1:] != chosen[:-1])[goes_on].any()


def test_no_texts_and_empty_texts(vocabulary):
    for offsets in ([0], [0, 0, 0]):
        for every in (False, True):
            shown, chosen = corrupt(
                np.zeros(0, np.int32), np.array(offsets), vocabulary, np.random.default_rng(0), every_text=every
            )
            assert len(shown) == len(chosen) == 0


def engine_of(model, special=()):
    engine = tokenizers.Tokenizer(model)
    engine.add_special_tokens(list(special))
    return Tokenizer(engine, engine.get_vocab_size(), "")


def test_word_pieces_by_their_prefix():
    pieces = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "run", "##ning"])}
    found = maskable(engine_of(tokenizers.models.WordPiece(pieces, unk_token="[UNK]")))
    assert found.mask_id == 4
    np.testing.assert_array_equal(found.special_V, [1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.continues_V, [0, 0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("space", ["\u0120", "\u2581"])
def test_a_leading_space_begins_a_word(space):
    names = ["<s>", "</s>", "<mask>", f"{space}run", "ning", "extra"]
    pieces = {name: i for i, name in enumerate(names[:-1])}
    found = maskable(engine_of(tokenizers.models.BPE(vocab=pieces, merges=[]), ["extra"]))
    np.testing.assert_array_equal(found.continues_V, [0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(found.special_V, [1, 1, 1, 0, 0, 1])


def test_rows_without_a_token_are_never_drawn():
    """As in XLM-R's sentence encoders, whose word table has more rows than there are tokens."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "run", "##ning", "bar"]
    tokenizer = engine_of(tokenizers.models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    found = maskable(dataclasses.replace(tokenizer, vocab_size=12))
    assert (found.special_V.shape, found.continues_V.shape) == ((12,), (12,))
    assert found.ordinary.tolist() == [5, 6, 7]
    values = np.full(5000, 5, np.int32)
    shown, _ = corrupt(values, np.array([0, 5000]), found, np.random.default_rng(0), share=1.0, whole_words=False)
    assert set(shown.tolist()) == {MASK, 5, 6, 7}


def test_a_tokenizer_without_mask_is_refused():
    with pytest.raises(UserError, match=r"no \[MASK\] or <mask>"):
        maskable(engine_of(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))


def test_the_real_minilm_vocabulary(minilm_directory):
    from ltrec_jax.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(minilm_directory, 30522)
    found = maskable(tokenizer)
    assert found.mask_id == 103
    assert np.flatnonzero(found.special_V).tolist() == [0, 100, 101, 102, 103]
    assert 5000 < found.continues_V.sum() < 7000
