"""A vocabulary learnt from texts is a tokenizer directory like any other."""

import pytest

from ltrec_jax import storage
from ltrec_jax.errors import UserError
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.text.vocabulary import SPECIAL, train_wordpiece

TEXTS = ["The running runner runs", "a runner ran to the barn", "Orchards and barns"] * 5


@pytest.fixture
def learnt(tmp_path):
    return tmp_path, train_wordpiece(lambda: TEXTS, tmp_path, size=100, max_length=16)


def test_it_loads_and_knows_the_texts(learnt):
    directory, count = learnt
    tokenizer = load_tokenizer(directory, count)
    assert [tokenizer.token_id(name) for name in SPECIAL] == [0, 1, 2, 3, 4]
    values, offsets, _ = tokenizer.encode(["The RUNNER ran"], 16)
    assert (values[0], values[-1]) == (2, 3)
    assert 1 not in values
    assert offsets.tolist() == [0, len(values)]
    assert len((directory / "vocab.txt").read_text().splitlines()) == count


def test_transformers_reads_it_with_equal_ids(learnt):
    from transformers import AutoTokenizer

    directory, count = learnt
    storage.write_json(directory / "config.json", {"model_type": "bert"})
    theirs = AutoTokenizer.from_pretrained(directory)
    assert theirs.mask_token_id == 4
    text = "The runner runs, to Orchards"
    assert theirs(text)["input_ids"] == load_tokenizer(directory, count).encode([text], 64)[0].tolist()


def test_the_same_texts_give_the_same_vocabulary(learnt, tmp_path_factory):
    directory, _ = learnt
    other = tmp_path_factory.mktemp("other")
    train_wordpiece(lambda: iter(TEXTS), other, size=100, max_length=16)
    assert (other / "tokenizer.json").read_text() == (directory / "tokenizer.json").read_text()


def test_empty_texts_are_refused(tmp_path):
    with pytest.raises(UserError, match="no vocabulary to learn"):
        train_wordpiece(lambda: ["", " "], tmp_path, size=100, max_length=16)
