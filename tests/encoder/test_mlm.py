"""The head for masked words: PyTorch's scores and loss, found under every name, whole or refused, and back again."""

import dataclasses
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.mlm import MlmHead, fresh_head
from ltrec_jax.encoder.mlm_files import load_head
from ltrec_jax.encoder.weights import export_weights, load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.objectives.mlm import masked_cross_entropy

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoder"
FAMILIES = ("bert", "roberta", "distilbert")


def words(encoder):
    return encoder.params["embeddings"]["word_embeddings"]["embedding"]


def head_of(encoder):
    return load_head(encoder.directory, encoder.config, words(encoder))


def logits(encoder, head, ids, mask):
    hidden = Bert(encoder.config).apply({"params": encoder.params}, jnp.asarray(ids), jnp.asarray(mask))
    scores = MlmHead(encoder.config).apply(
        {"params": head}, hidden.reshape(-1, encoder.config.hidden_size), words(encoder)
    )
    return scores.reshape(*ids.shape, -1)


@pytest.fixture(params=FAMILIES)
def stored(request):
    directory = FIXTURES / "mlm" / request.param
    return load_encoder(directory), safetensors.numpy.load_file(directory / "expected.safetensors")


def copied(tmp_path, change, family="bert"):
    """A copy of a fixture with its arrays changed."""
    target = tmp_path / "copy"
    shutil.copytree(FIXTURES / "mlm" / family, target)
    file = target / "model.safetensors"
    arrays = change(safetensors.numpy.load_file(file))
    safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, file)
    return load_encoder(target)


def test_scores_and_loss_equal_pytorch(stored):
    encoder, expected = stored
    ids, mask = expected["ids"].astype(np.int32), expected["mask"].astype(np.int32)
    found = logits(encoder, head_of(encoder), ids, mask)
    np.testing.assert_allclose(found[mask == 1], expected["logits"][mask == 1], rtol=1e-4, atol=1e-4)
    asked = expected["targets"] >= 0
    weights = np.ones(int(asked.sum()), np.float32)
    total, count = masked_cross_entropy(found[asked], expected["targets"][asked].astype(np.int32), weights=weights)
    np.testing.assert_allclose(total / count, expected["loss"], rtol=1e-5)


def test_old_names_and_a_decoder_of_its_own_name_are_the_same_head(tmp_path):
    def old(arrays):
        arrays = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
            for name, a in arrays.items()
        }
        arrays["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]
        arrays["cls.predictions.decoder.bias"] = arrays.pop("cls.predictions.bias")
        return arrays

    plain = flatten_dict(head_of(load_encoder(FIXTURES / "mlm" / "bert")))
    found = flatten_dict(head_of(copied(tmp_path, old)))
    assert plain.keys() == found.keys()
    for path in plain:
        np.testing.assert_array_equal(plain[path], found[path])


def test_an_encoder_without_head_has_none():
    for family in (*FAMILIES, "flax_bert"):
        assert head_of(load_encoder(FIXTURES / family)) is None


def test_a_flax_checkpoint_with_its_head():
    encoder = load_encoder(FIXTURES / "flax_bert_heads")
    head = head_of(encoder)
    shapes = jax.tree.map(jnp.shape, fresh_head(encoder.config, jax.random.key(0)))
    assert jax.tree.map(np.shape, head) == shapes


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "cls.predictions.bias"}, "cls.predictions.bias is missing"),
        (lambda a: {k: v for k, v in a.items() if "transform.dense" not in k}, "transform.dense.weight is missing"),
        (
            lambda a: a | {"cls.predictions.decoder.weight": 2 * a["bert.embeddings.word_embeddings.weight"]},
            "cls.predictions.decoder.weight is not the word table",
        ),
    ],
)
def test_a_head_that_is_not_whole_or_not_tied_is_left_with_a_notice(tmp_path, change, named):
    encoder = copied(tmp_path, change)
    with pytest.warns(UserWarning, match="is not taken, a new one on the word table is") as noticed:
        assert head_of(encoder) is None
    assert named in str(noticed[0].message)
    assert str(encoder.directory) in str(noticed[0].message)


def test_a_head_of_a_wrong_shape_is_damage(tmp_path):
    wrong = {"cls.predictions.bias": np.zeros(7, np.float32), "cls.predictions.transform.dense.bias": np.zeros(1)}
    encoder = copied(tmp_path, lambda a: a | wrong)
    with pytest.raises(UserError) as caught:
        head_of(encoder)
    assert "cls.predictions.bias has the shape (7,)" in str(caught.value)
    assert "cls.predictions.transform.dense.bias has the shape (1,)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "flax"])
def test_encoder_and_head_come_back_bit_for_bit(stored, tmp_path, kind):
    encoder, _ = stored
    head = head_of(encoder)
    export_weights(encoder, tmp_path / "out", formats=(kind,), head=head)
    again = load_encoder(tmp_path / "out")
    assert again.fingerprint == encoder.fingerprint
    for one, two in zip(jax.tree.leaves(head), jax.tree.leaves(head_of(again)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_new_head_is_tied_to_the_words(tiny_encoder):
    encoder = load_encoder(tiny_encoder)
    head = fresh_head(encoder.config, jax.random.key(0))
    hidden = np.ones((3, encoder.config.hidden_size), np.float32)
    scores = MlmHead(encoder.config).apply({"params": head}, hidden, words(encoder))
    doubled = MlmHead(encoder.config).apply({"params": head}, hidden, 2 * words(encoder))
    np.testing.assert_allclose(doubled, 2 * scores, rtol=1e-5)


@pytest.mark.parametrize(("family", "of_the_encoder"), [("bert", True), ("roberta", False), ("distilbert", True)])
def test_whose_activation_the_head_has(family, of_the_encoder):
    """As in transformers' source: BERT's and DistilBERT's head read it off the configuration, RoBERTa's is gelu(x)."""
    config = load_encoder(FIXTURES / "mlm" / family).config
    head = fresh_head(config, jax.random.key(0))
    inputs = np.random.default_rng(0).normal(size=(4, config.hidden_size)).astype(np.float32)
    table = np.eye(config.vocab_size, config.hidden_size, dtype=np.float32)
    gelu, relu = (
        MlmHead(dataclasses.replace(config, hidden_act=name)).apply({"params": head}, inputs, table)
        for name in ("gelu", "relu")
    )
    assert np.allclose(gelu, relu, atol=1e-3) != of_the_encoder


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
@pytest.mark.parametrize(
    ("family", "activation"), [("bert", "gelu"), ("bert", "relu"), ("roberta", "relu"), ("distilbert", "relu")]
)
def test_transformers_reads_what_we_write(family, activation, tmp_path):
    """In a process of its own: transformers' class for masked words loads our directory and has our scores.

    RoBERTa's head has GELU whatever the encoder's activation is, BERT's and DistilBERT's have that of the encoder.
    """
    encoder = load_encoder(FIXTURES / "mlm" / family)
    encoder = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, hidden_act=activation))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda a: a + rng.normal(0, 0.1, a.shape).astype(np.float32), encoder.params)
    encoder = dataclasses.replace(encoder.with_params(moved), directory=encoder.directory)
    head = fresh_head(encoder.config, jax.random.key(3))
    export_weights(encoder, tmp_path / "out", head=head)
    ids = np.array([[7, 9, 11, 30, 6]], np.int32)
    np.save(tmp_path / "ids.npy", ids)
    program = (
        "import sys, numpy as np, torch\n"
        "from transformers import AutoModelForMaskedLM\n"
        "at = sys.argv[1]\n"
        "model, info = AutoModelForMaskedLM.from_pretrained(at + '/out', output_loading_info=True)\n"
        "assert not info['missing_keys'], info\n"
        "with torch.no_grad():\n"
        "    out = model.eval()(input_ids=torch.tensor(np.load(at + '/ids.npy')).long())\n"
        "np.save(at + '/logits.npy', out.logits.numpy())\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    np.testing.assert_allclose(
        logits(encoder, head, ids, np.ones_like(ids)), np.load(tmp_path / "logits.npy"), rtol=1e-4, atol=1e-4
    )
