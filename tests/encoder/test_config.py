"""Hugging Face configurations: what is read, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.errors import UserError


def raw_config(encoder_fixtures: Path, name: str) -> dict[str, Any]:
    return json.loads((encoder_fixtures / name / "config.json").read_text())


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "flax_bert", "flax_roberta", "flax_distilbert"])
def test_written_configuration_reads_back(encoder_fixtures: Path, name: str) -> None:
    config = EncoderConfig.from_dict(raw_config(encoder_fixtures, name))
    assert (config.num_layers, config.hidden_size, config.intermediate_size, config.num_heads) == (2, 16, 40, 4)
    assert EncoderConfig.from_dict(config.to_dict()) == config


def test_roberta_positions_begin_after_the_padding_row(encoder_fixtures: Path) -> None:
    config = EncoderConfig.from_dict(raw_config(encoder_fixtures, "roberta"))
    assert (config.position_offset, config.max_positions, config.layer_norm_eps) == (2, 22, 1e-5)


def test_distilbert_has_no_token_types(encoder_fixtures: Path) -> None:
    assert EncoderConfig.from_dict(raw_config(encoder_fixtures, "distilbert")).type_vocab_size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "robberta"}, "Did you mean 'roberta'"),
        ({"model_type": "gpt2"}, "Available: bert"),
        ({"hidden_act": "gelo"}, "Did you mean 'gelu'"),
        ({"hidden_size": 18}, "not a multiple of 4 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 is out of range"),
        ({"vocab_size": "many"}, "vocab_size = 'many' is out of range"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder = True is not supported"),
    ],
)
def test_what_cannot_be_computed_is_named(encoder_fixtures: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^(?!.*\n).*") as caught:
        EncoderConfig.from_dict(raw_config(encoder_fixtures, "bert") | change, source="dir/config.json")
    assert message in str(caught.value)
    assert "dir/config.json" in str(caught.value)


def test_all_missing_sizes_are_named(encoder_fixtures: Path) -> None:
    raw = raw_config(encoder_fixtures, "bert")
    del raw["hidden_size"], raw["vocab_size"]
    with pytest.raises(UserError, match="lacks vocab_size, hidden_size"):
        EncoderConfig.from_dict(raw)
