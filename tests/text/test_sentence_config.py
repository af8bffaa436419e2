"""What sentence-transformers notes beside a tokenizer, in the forms of its old and new versions."""

import json

import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.text.sentence_config import SentenceConfig, read_sentence_config
from ltrec_jax.text.tokenizer import load_tokenizer


def write(directory, name, value):
    (directory / name).write_text(json.dumps(value))


def test_without_notes_nothing_is_noted(tmp_path):
    assert read_sentence_config(tmp_path) == SentenceConfig(None, False)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
def test_the_old_form(tmp_path, name):
    write(tmp_path, name, {"max_seq_length": 128, "do_lower_case": True})
    write(tmp_path, "tokenizer_config.json", {"model_max_length": 512})
    assert read_sentence_config(tmp_path) == SentenceConfig(128, True)


@pytest.mark.parametrize("length", [512, 512.0, int(1e30), 1e30])
def test_without_a_length_the_tokenizers_own_holds(tmp_path, length):
    new = {"transformer_task": "feature-extraction", "modality_config": {}, "module_output_name": "token_embeddings"}
    write(tmp_path, "sentence_bert_config.json", new)
    write(tmp_path, "tokenizer_config.json", {"model_max_length": length})
    assert read_sentence_config(tmp_path) == SentenceConfig(int(length), False)
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": False})
    assert read_sentence_config(tmp_path) == SentenceConfig(int(length), False)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sentence_bert_config.json", [], "holds no JSON object"),
        ("sentence_bert_config.json", {"max_seq_length": "128"}, "max_seq_length = '128' is no number of tokens"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length = 0 is no number of tokens"),
        ("sentence_bert_config.json", {"do_lower_case": "no"}, "do_lower_case = 'no' is neither true nor false"),
        ("sentence_bert_config.json", {"transformer_task": ["fill-mask"]}, "transformer_task"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "only 'feature-extraction'"),
        ("tokenizer_config.json", None, "holds no JSON object"),
        ("tokenizer_config.json", {"model_max_length": True}, "model_max_length = True is no number of tokens"),
    ],
)
def test_what_is_malformed_is_named(tmp_path, name, value, said):
    write(tmp_path, name, value)
    with pytest.raises(UserError) as caught:
        read_sentence_config(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)


def test_texts_are_lowered_where_the_notes_say_so(tiny_encoder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((tiny_encoder / "tokenizer.json").read_bytes())
    plain = load_tokenizer(tmp_path, 22)
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 8, "do_lower_case": True})
    lowering = load_tokenizer(tmp_path, 22)
    rocket = plain.token_id("rocket")
    assert plain.encode(["ROCKET"], 8)[0].tolist() == [2, plain.token_id("[UNK]"), 3]
    assert lowering.encode(["ROCKET"], 8)[0].tolist() == [2, rocket, 3]
    assert lowering.fingerprint != plain.fingerprint
