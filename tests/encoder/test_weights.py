"""Weights in and out: every format and layout gives the same tree, every fault is named, nothing is tolerated."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from flax.traverse_util import flatten_dict

from ltrec_jax import storage
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.weights import Encoder, export_weights, load_encoder
from ltrec_jax.errors import UserError


@pytest.fixture
def copy(tiny_bert: Any, tmp_path: Path) -> Path:
    """A writable copy of the tiny PyTorch checkpoint."""
    directory = tmp_path / "encoder"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_bert.directory / name, directory / name)
    return directory


def rewrite(directory: Path, change: Any) -> None:
    """Replace the safetensors file by what `change` makes of its dict."""
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in change(tensors).items()}, file)


def edit_config(directory: Path, **changes: Any) -> None:
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw | changes))


def assert_same_tree(one: Encoder, two: Encoder) -> None:
    first, second = flatten_dict(one.params, sep="/"), flatten_dict(two.params, sep="/")
    assert first.keys() == second.keys()
    for path in first:
        assert first[path].dtype == np.float32
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)


def message(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_encoder(directory)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("formats", [("safetensors",), ("flax",)])
def test_export_reads_back_bit_for_bit(torch_stored: Any, flax_stored: Any, tmp_path: Path, formats: Any) -> None:
    for stored in (torch_stored, flax_stored):
        export_weights(stored.encoder, tmp_path / stored.directory.name, formats=formats)
        again = load_encoder(tmp_path / stored.directory.name)
        assert_same_tree(again, stored.encoder)
        assert again.fingerprint == stored.encoder.fingerprint
        assert (again.config, again.pooling, again.max_length) == (
            stored.encoder.config,
            stored.encoder.pooling,
            stored.encoder.max_length,
        )


def test_safetensors_bytes_make_the_round_trip(tiny_bert: Any, tmp_path: Path) -> None:
    export_weights(tiny_bert.encoder, tmp_path / "out", formats=("safetensors",))
    before = safetensors.numpy.load_file(tiny_bert.directory / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes(), name


def test_equal_encoders_export_equal_bytes(tiny_bert: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_weights(tiny_bert.encoder, tmp_path / name)
    for file in (tmp_path / "one").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_old_names_prefix_heads_and_buffers(copy: Path, tiny_bert: Any) -> None:
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        old = {}
        for name, array in tensors.items():
            if "LayerNorm" in name:
                name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            old[f"bert.{name}"] = array
        old["bert.embeddings.position_ids"] = np.arange(24)[None]
        old["cls.predictions.bias"] = np.zeros(60, np.float32)
        old["cls.seq_relationship.weight"] = np.zeros((2, 16), np.float32)
        return old

    rewrite(copy, change)
    assert_same_tree(load_encoder(copy), tiny_bert.encoder)


def test_bfloat16_file(copy: Path, tiny_bert: Any) -> None:
    tensors = safetensors.flax.load_file(tiny_bert.directory / "model.safetensors")
    rounded = jax.tree.map(lambda x: x.astype("bfloat16"), tensors)
    safetensors.flax.save_file(rounded, copy / "model.safetensors")
    kernel = load_encoder(copy).params["pooler"]["dense"]["kernel"]
    expected = rounded["pooler.dense.weight"].astype("float32").T
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, expected)


def test_bfloat16_flax_file(encoder_fixtures: Path, tmp_path: Path) -> None:
    directory = tmp_path / "flax"
    shutil.copytree(encoder_fixtures / "flax_bert", directory)
    file = directory / "flax_model.msgpack"
    whole = flax.serialization.msgpack_restore(file.read_bytes())
    rounded = jax.tree.map(lambda x: x.astype("bfloat16"), whole)
    file.write_bytes(flax.serialization.msgpack_serialize(rounded))
    kernel = load_encoder(directory).params["pooler"]["dense"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, rounded["pooler"]["dense"]["kernel"].astype("float32"))


def test_shards(copy: Path, tiny_bert: Any) -> None:
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for file, members in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in members}, copy / file)
    index = {"metadata": {}, "weight_map": {name: file for file, members in shards.items() for name in members}}
    storage.write_json(copy / "model.safetensors.index.json", index)
    assert_same_tree(load_encoder(copy), tiny_bert.encoder)
    (copy / "model-00002-of-00002.safetensors").unlink()
    assert message(copy) == f"{copy} lacks model-00002-of-00002.safetensors, named in its index. Download it again."


def shard(directory: Path, tensors: dict[str, np.ndarray], parts: list[list[str]]) -> None:
    """Write arrays as shards named shard-0.safetensors, ... with their index, in place of the single file."""
    (directory / "model.safetensors").unlink()
    for number, names in enumerate(parts):
        safetensors.numpy.save_file({name: tensors[name] for name in names}, directory / f"shard-{number}.safetensors")
    weight_map = {name: f"shard-{number}.safetensors" for number, names in enumerate(parts) for name in names}
    storage.write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})


def test_damage_of_every_kind_is_named_in_one_message(copy: Path, tiny_encoder: Path) -> None:
    """A truncated shard, an absent one, a missing, an extra and a wrongly shaped array, and a foreign vocabulary."""
    tensors = {f"bert.{name}": array for name, array in safetensors.numpy.load_file(copy / "model.safetensors").items()}
    del tensors["bert.embeddings.LayerNorm.weight"]
    tensors["bert.extra.weight"] = np.zeros(3, np.float32)
    tensors["bert.encoder.layer.0.output.dense.bias"] = np.zeros(17, np.float32)
    lost, absent = "bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.1.output.dense.bias"
    shard(copy, tensors, [sorted(tensors.keys() - {lost, absent}), [lost], [absent]])
    truncated = copy / "shard-1.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    (copy / "shard-2.safetensors").unlink()
    shutil.copyfile(tiny_encoder / "tokenizer.json", copy / "tokenizer.json")
    text = message(copy)
    for part in (
        f"{truncated} is truncated or damaged",
        f"{copy} lacks shard-2.safetensors",
        "missing: embeddings.LayerNorm.weight;",
        "unused: extra.weight;",
        "encoder.layer.0.output.dense.bias gives encoder/layer/0/output/dense/bias the shape (17,) instead of (16,)",
        f"The tokenizer in {copy} knows 22 tokens (the last is 21), the encoder's vocab_size is 60",
    ):
        assert part in text
    # What lies in the unreadable files is not missing besides.
    assert "layer.1.output" not in text


def test_all_unreadable_shards_are_named(copy: Path) -> None:
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    shard(copy, tensors, [sorted(tensors)[:10], sorted(tensors)[10:]])
    for number in (0, 1):
        (copy / f"shard-{number}.safetensors").write_bytes(b"")
    text = message(copy)
    assert all(f"{copy / f'shard-{number}.safetensors'} is truncated" in text for number in (0, 1))


def test_a_truncated_flax_shard_is_named_without_its_arrays(encoder_fixtures: Path, tmp_path: Path) -> None:
    directory = tmp_path / "flax"
    shutil.copytree(encoder_fixtures / "flax_bert_heads", directory)
    second = directory / "flax_model-00002-of-00003.msgpack"
    second.write_bytes(second.read_bytes()[:-5])
    text = message(directory)
    assert text.startswith(f"{second} is truncated or damaged")
    assert "missing" not in text


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{"])
def test_a_damaged_index_is_named(copy: Path, index: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(index)
    assert f"{copy / 'model.safetensors.index.json'} is damaged" in message(copy)


# transformers' class for each `model_type`. XLM-R and CamemBERT are RoBERTa's modules under other names.
CLASSES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "distilbert": "DistilBertModel",
}


def checkpoint(fixtures: Path, model_type: str, target: Path) -> Path:
    """A tiny checkpoint of a family: one of PyTorch's, or RoBERTa's with another `model_type`."""
    stored = model_type if (fixtures / model_type).is_dir() else "roberta"
    shutil.copytree(fixtures / stored, target)
    edit_config(target, model_type=model_type, architectures=[CLASSES[model_type]])
    return target


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_families_that_are_roberta_under_another_name(encoder_fixtures: Path, tmp_path: Path, model_type: str) -> None:
    roberta = load_encoder(encoder_fixtures / "roberta")
    encoder = load_encoder(checkpoint(encoder_fixtures, model_type, tmp_path / "in"))
    assert_same_tree(encoder, roberta)
    assert (encoder.config.model_type, encoder.config.position_offset, encoder.max_length) == (model_type, 2, 22)
    export_weights(encoder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [CLASSES[model_type]]
    assert load_encoder(tmp_path / "out").fingerprint == encoder.fingerprint != roberta.fingerprint


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
def test_transformers_reads_every_bare_encoder_that_we_write(encoder_fixtures: Path, tmp_path: Path) -> None:
    """In a process of its own: the family's class loads our directory, lacks no array and gives our hidden states."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 60, (2, 9)).astype(np.int32)
    np.save(tmp_path / "ids.npy", ids)
    encoders = {}
    for model_type in CLASSES:
        encoder = load_encoder(checkpoint(encoder_fixtures, model_type, tmp_path / "in" / model_type))
        moved = jax.tree.map(lambda a: a + rng.normal(0, 0.1, a.shape).astype(np.float32), encoder.params)
        encoders[model_type] = encoder.with_params(moved)
        export_weights(encoders[model_type], tmp_path / "out" / model_type, formats=("safetensors",))
    program = (
        "import sys, numpy as np, torch\n"
        "from transformers import AutoModel\n"
        "at = sys.argv[1]\n"
        "ids = torch.tensor(np.load(at + '/ids.npy')).long()\n"
        "for name in sys.argv[2:]:\n"
        "    model, info = AutoModel.from_pretrained(f'{at}/out/{name}', output_loading_info=True)\n"
        "    assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "    with torch.no_grad():\n"
        "        hidden = model.eval()(input_ids=ids).last_hidden_state\n"
        "    np.save(f'{at}/{type(model).__name__}.npy', hidden.numpy())\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path), *CLASSES], check=True, capture_output=True)
    for model_type, name in CLASSES.items():
        encoder = encoders[model_type]
        ours = Bert(encoder.config).apply({"params": encoder.params}, jnp.asarray(ids), jnp.ones_like(ids))
        np.testing.assert_allclose(ours, np.load(tmp_path / f"{name}.npy"), rtol=1e-4, atol=1e-4, err_msg=name)


def test_without_pooler(copy: Path) -> None:
    rewrite(copy, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("pooler")})
    encoder = load_encoder(copy)
    assert not encoder.config.has_pooler
    assert "pooler" not in encoder.params


def test_half_a_pooler_is_missing_the_other_half(copy: Path) -> None:
    rewrite(copy, lambda tensors: {k: v for k, v in tensors.items() if k != "pooler.dense.bias"})
    assert "missing: pooler.dense.bias" in message(copy)


def test_every_fault_is_named_at_once(copy: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        del tensors["embeddings.LayerNorm.weight"], tensors["encoder.layer.1.output.dense.bias"]
        tensors["encoder.layer.2.output.dense.bias"] = np.zeros(16, np.float32)
        tensors["adapter.weight"] = np.zeros(3, np.float32)
        tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((41, 16), np.float32)
        tensors["encoder.layer.0.intermediate.dense.bias"] = np.zeros(40, np.int32)
        return tensors

    rewrite(copy, change)
    text = message(copy)
    for part in (
        str(copy / "model.safetensors"),
        "missing: embeddings.LayerNorm.weight, encoder.layer.1.output.dense.bias",
        "unused: adapter.weight, encoder.layer.2.output.dense.bias",
        "encoder.layer.0.intermediate.dense.weight gives encoder/layer/0/intermediate/dense/kernel the shape (16, 41) "
        "instead of (16, 40)",
        "encoder.layer.0.intermediate.dense.bias holds int32",
    ):
        assert part in text


def test_a_vocabulary_that_does_not_match(copy: Path) -> None:
    edit_config(copy, vocab_size=61)
    assert "the shape (60, 16) instead of (61, 16)" in message(copy)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_safetensors(copy: Path, length: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert f"{file} is truncated or damaged" in message(copy)


@pytest.mark.parametrize("length", [0, 1, 100, 20_000, -1])
def test_truncated_msgpack(encoder_fixtures: Path, copy: Path, length: int) -> None:
    (copy / "model.safetensors").unlink()
    whole = (encoder_fixtures / "flax_bert" / "flax_model.msgpack").read_bytes()
    (copy / "flax_model.msgpack").write_bytes(whole[:length])
    assert str(copy / "flax_model.msgpack") in message(copy)


@pytest.mark.parametrize("seed", range(30))
def test_garbled_msgpack_never_escapes_as_another_exception(encoder_fixtures: Path, copy: Path, seed: int) -> None:
    """Bytes overwritten at random: a `UserError`, or (where only numbers were hit) an encoder."""
    (copy / "model.safetensors").unlink()
    garbled = bytearray((encoder_fixtures / "flax_bert" / "flax_model.msgpack").read_bytes())
    generator = np.random.default_rng(seed)
    for position in generator.integers(0, len(garbled), 40):
        garbled[position] = generator.integers(0, 256)
    (copy / "flax_model.msgpack").write_bytes(garbled)
    try:
        assert isinstance(load_encoder(copy), Encoder)
    except UserError as error:
        assert str(copy) in str(error)  # noqa: PT017 - either outcome is right


def test_pickle_is_refused_with_the_way_to_convert(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    text = message(copy)
    assert "pickle" in text
    assert f"save_pretrained('{copy}')" in text


def test_no_weights_and_no_config(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "holds no weights" in message(copy)
    (copy / "config.json").unlink()
    assert "has no config.json" in message(copy)
    (copy / "config.json").write_text("{")
    assert "is damaged" in message(copy)


def test_sentence_transformers_layout(copy: Path, tiny_bert: Any) -> None:
    plain = load_encoder(copy)
    assert (plain.pooling, plain.normalize, plain.max_length, dict(plain.prompts)) == ("mean", False, 24, {})
    described = dataclasses.replace(
        tiny_bert.encoder, pooling="cls", normalize=True, max_length=12, prompts={"query": "query: "}
    )
    export_weights(described, copy, replace=True)
    again = load_encoder(copy)
    assert (again.pooling, again.normalize, again.max_length, dict(again.prompts)) == (
        "cls",
        True,
        12,
        {"query": "query: "},
    )
    assert again.fingerprint != plain.fingerprint


def test_transformer_in_its_own_folder(copy: Path, tiny_bert: Any) -> None:
    inner = copy / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).rename(inner / name)
    modules = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    storage.write_json(copy / "modules.json", modules)
    encoder = load_encoder(copy)
    assert_same_tree(encoder, tiny_bert.encoder)
    assert encoder.directory == inner


def test_modules_and_pooling_that_are_not_computed(copy: Path) -> None:
    storage.write_json(copy / "modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
    assert "has a Dense module" in message(copy)
    storage.write_json(copy / "modules.json", [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    storage.write_json(copy / "1_Pooling" / "config.json", both)
    assert "pooling_mode_cls_token + pooling_mode_mean_tokens" in message(copy)


def test_other_parameters_have_another_fingerprint(tiny_bert: Any) -> None:
    doubled = tiny_bert.encoder.with_params(jax.tree.map(lambda x: 2 * x, tiny_bert.encoder.params))
    assert doubled.fingerprint != tiny_bert.encoder.fingerprint
    assert doubled.with_params(tiny_bert.encoder.params).fingerprint == tiny_bert.encoder.fingerprint


def test_export_does_not_overwrite_unasked(tiny_bert: Any, copy: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export_weights(tiny_bert.encoder, copy)
