"""What lies beside the weights of a sentence-transformers directory: read in every form, refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.layout import Layout, read_layout, write_layout
from ltrec_jax.encoder.shards import encode_to_disk
from ltrec_jax.encoder.weights import export_weights, load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.text.tokenizer import load_tokenizer


def write(directory: Path, name: str, value: Any) -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def with_pooling(directory: Path, pooling: Any) -> Path:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.Pooling"},
    ]
    write(directory, "modules.json", modules)
    write(directory, "1_Pooling/config.json", pooling)
    return directory


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"embedding_dimension": 16, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": ["max"]}, "max"),
        ({"word_embedding_dimension": 16, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": False}, "max"),
    ],
)
def test_pooling_in_both_forms(tmp_path: Path, pooling: Any, kind: str) -> None:
    assert read_layout(with_pooling(tmp_path, pooling)) == Layout(tmp_path, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        ({"pooling_mode": "lasttoken"}, "asks for lasttoken; exactly one of mean, cls, max"),
        ({"pooling_mode": ["mean", "max"]}, "asks for mean + max"),
        ({"pooling_mode": []}, "no pooling at all"),
        ({"pooling_mode": 3}, "asks for 3"),
        ({"pooling_mode": [["mean"]]}, "asks for ['mean']"),
        ({"pooling_mode_weightedmean_tokens": True}, "exactly one of pooling_mode_mean_tokens"),
        ({"pooling_mode": "mean", "include_prompt": 1}, "include_prompt = 1 is neither true nor false"),
        ([], "holds no JSON object"),
    ],
)
def test_pooling_that_is_not_computed_or_not_understood(tmp_path: Path, pooling: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_layout(with_pooling(tmp_path, pooling))
    assert str(tmp_path / "1_Pooling" / "config.json") in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("modules.json", {}, "is no list of modules"),
        ("modules.json", ["Transformer"], "is no list of modules"),
        ("modules.json", [{}], "has a nameless module"),
        ("sentence_bert_config.json", [], "holds no JSON object"),
        ("config_sentence_transformers.json", [], "holds no JSON object"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "its prompts are not texts by name"),
        ("config_sentence_transformers.json", {"prompts": {"query": None}}, "its prompts are not texts by name"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "Unknown default_prompt_name"),
        ("config.json", [], "holds no JSON object"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, tiny_encoder: Path, name: str, value: Any, said: str) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((tiny_encoder / file).read_bytes())
    path = write(tmp_path, name, value)
    with pytest.raises(UserError) as caught:
        load_encoder(tmp_path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("noted", "read"), [(12, 12), (512, 32), (10**30, 32)])
def test_the_length_of_the_tokenizer_holds_within_the_encoders_positions(
    tmp_path: Path, tiny_encoder: Path, noted: int, read: int
) -> None:
    export_weights(load_encoder(tiny_encoder), tmp_path / "e", formats=("safetensors",))
    write(tmp_path / "e", "sentence_bert_config.json", {"transformer_task": "feature-extraction"})
    write(tmp_path / "e", "tokenizer_config.json", {"model_max_length": noted})
    assert load_encoder(tmp_path / "e").max_length == read


def test_everything_that_is_written_is_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "max", True, 17, {"query": "query: ", "passage": ""}, "query", prompt_pooled=False)
    write_layout(tmp_path, layout, width=16, lower_case=True)
    assert read_layout(tmp_path) == layout
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["do_lower_case"] is True


def test_what_an_encoder_says_of_its_texts_survives_its_export(tmp_path: Path, tiny_encoder: Path) -> None:
    export_weights(load_encoder(tiny_encoder), tmp_path / "one")
    write(tmp_path / "one", "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True})
    write(tmp_path / "one", "config_sentence_transformers.json", {"prompts": {"q": "the "}, "default_prompt_name": "q"})
    with_pooling(tmp_path / "one", {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": False})
    before = load_encoder(tmp_path / "one")
    export_weights(before, tmp_path / "two")
    after = load_encoder(tmp_path / "two")
    assert after.layout == dataclasses.replace(before.layout, transformer=tmp_path / "two")
    assert (after.max_length, after.default_prompt, after.prompt_pooled) == (9, "q", False)
    assert after.fingerprint == before.fingerprint != load_encoder(tiny_encoder).fingerprint
    one, two = (load_tokenizer(encoder.directory, 22) for encoder in (before, after))
    assert one.fingerprint == two.fingerprint
    assert two.encode(["Rocket"], 9)[0].tolist() == one.encode(["rocket"], 9)[0].tolist()


@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_a_prompt_that_is_not_pooled_is_still_read(tmp_path: Path, tiny_encoder: Path, kind: Any) -> None:
    """By hand: the hidden states of the whole text, pooled from the first token after the prompt on."""
    encoder = dataclasses.replace(load_encoder(tiny_encoder), pooling=kind, prompt_pooled=False)
    made = encode_to_disk(
        encoder,
        ["rocket barn cattle"],
        tmp_path / "v",
        prompt="the planet ",
        policy="float32",
        spread=parallel.choose("jit"),
    )
    ids = load_tokenizer(tiny_encoder, 22).encode(["the planet rocket barn cattle"], 32)[0][None]
    hidden = np.asarray(Bert(encoder.config).apply({"params": encoder.params}, ids, np.ones_like(ids)))[0]
    # [CLS] the planet | rocket barn cattle [SEP]
    expected = {"mean": hidden[3:].mean(0), "cls": hidden[0]}[kind]
    np.testing.assert_allclose(made.vectors[0], expected, rtol=1e-5, atol=1e-5)
