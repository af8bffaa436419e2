"""One step of guessing masked words on a tiny encoder: gradients of the tied table, devices, the control."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ltrec_jax import parallel
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.mlm import MlmHead, fresh_head
from ltrec_jax.encoder.weights import load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.text import masking
from ltrec_jax.text.store import build_store
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.train import masked_phase
from ltrec_jax.train.masked_batches import MaskedSource
from ltrec_jax.train.pretrain_config import PretrainConfig
from ltrec_jax.train.state import WORDS, full_params

# Dropout on, so that its masks too must not depend on the number of devices.
SETTINGS = PretrainConfig(precision="float32", learning_rate=1e-3, mask_share=0.3, dropout=True)


@pytest.fixture(scope="module")
def encoder(shallow_encoder):
    return load_encoder(shallow_encoder)


@pytest.fixture(scope="module")
def params(encoder):
    return {"encoder": encoder.params, "head": fresh_head(encoder.config, jax.random.key(1))}


@pytest.fixture(scope="module")
def make_source(encoder, small_dataset):
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    tokens = build_store([f"the {title}" for title in small_dataset.items["title"]], tokenizer, 16)
    vocabulary = masking.maskable(tokenizer)

    def make(devices=1):
        return MaskedSource(
            tokens, vocabulary, batch_tokens=200, row_length=32, pad_id=0, mask_share=0.3, devices=devices, seed=5
        )

    return make


def run_steps(params, encoder, make_source, spread, trainable="all", steps=3, settings=SETTINGS):
    source = make_source(spread.count)
    state, step = masked_phase.state_and_step(params, encoder.config, settings, trainable, 10, spread)
    key, metrics = spread.replicate(jax.random.key(0)), []
    for number in range(steps):
        state, row = step(state, spread.shard(source.batch(0, number)), key)
        metrics.append(jax.device_get(row))
    return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def on_one(params, encoder, make_source):
    return run_steps(params, encoder, make_source, parallel.choose("jit"))


def first(batch):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch)


def test_loss_and_gradient_equal_those_over_all_positions(params, encoder, make_source):
    """The oracle scores every position of every row and picks afterwards, with a plain transposed table."""
    batch = first(make_source().batch(0, 0))
    loss = masked_phase.make_masked_loss(encoder.config, "float32")

    def ours(params):
        return loss(params, {}, batch, jax.random.key(0))[0]

    def oracle(params):
        hidden = Bert(encoder.config).apply(
            {"params": params["encoder"]}, batch.token_ids, batch.segment_ids, batch.token_position
        )
        words = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        head = params["head"]
        x = hidden.reshape(-1, hidden.shape[-1])
        x = jax.nn.gelu(x @ head["transform"]["kernel"] + head["transform"]["bias"][None], approximate=False)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-12)
        x = x * head["LayerNorm"]["scale"][None] + head["LayerNorm"]["bias"][None]
        scores = jax.nn.log_softmax(x @ words.T + head["bias"][None], axis=-1)
        return -jnp.sum(batch.weight * scores[batch.masked_place, batch.target])

    (a, ga), (b, gb) = (jax.jit(jax.value_and_grad(f))(jax.tree.map(jnp.asarray, params)) for f in (ours, oracle))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for (path, x), y in zip(jax.tree.leaves_with_path(ga), jax.tree.leaves(gb), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))
        assert np.abs(x).max() > 0 or "pooler" in jax.tree_util.keystr(path)


@pytest.mark.slow
def test_the_gradient_reaches_the_words_through_input_and_output(params, encoder, make_source):
    batch = first(make_source().batch(0, 0))
    loss = masked_phase.make_masked_loss(encoder.config, "float32")
    gradient = jax.jit(jax.grad(lambda p: loss(p, {}, batch, jax.random.key(0))[0]))(params)
    words = gradient["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    assert (np.abs(words).max(axis=1) > 0).all()  # every row is a candidate of the output

    def with_output_fixed(table):
        encoder_params = {**params["encoder"]}
        encoder_params["embeddings"] = {**encoder_params["embeddings"], "word_embeddings": {"embedding": table}}
        hidden = Bert(encoder.config).apply(
            {"params": encoder_params}, batch.token_ids, batch.segment_ids, batch.token_position
        )
        fixed = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        scores = MlmHead(encoder.config).apply(
            {"params": params["head"]}, hidden.reshape(-1, hidden.shape[-1])[batch.masked_place], fixed
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), batch.target[:, None], axis=1)[:, 0]
        return -jnp.sum(batch.weight * chosen)

    through_input = jax.jit(jax.grad(with_output_fixed))(
        jnp.asarray(params["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    )
    masked_and_first = through_input[np.array([4, 2])]
    assert (np.abs(masked_and_first).max(axis=1) > 0).all()
    unread = np.setdiff1d(np.arange(len(words)), batch.token_ids)
    assert len(unread)
    assert not through_input[unread].any()
    assert not np.allclose(words, through_input)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "shard_map", "vmap"])
def test_eight_devices_give_the_parameters_of_one(params, encoder, make_source, mode, on_one):
    one, rows_of_one = on_one
    many, rows_of_many = run_steps(params, encoder, make_source, parallel.choose(mode, count=8))
    for a, b in zip(rows_of_one, rows_of_many, strict=True):
        np.testing.assert_allclose(a["cross_entropy"], b["cross_entropy"], rtol=1e-4)
        assert (a["weight"], a["hits"]) == (b["weight"], b["hits"])
    # On the scale of Adam's steps: see the same test of the phases.
    for (path, a), b in zip(jax.tree.leaves_with_path(one.trainable), jax.tree.leaves(many.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=5e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("what", ["all", "top:1", "bias", masked_phase.NOTHING_BUT_THE_HEAD])
def test_only_what_is_named_learns(tiny_encoder, what):
    encoder = load_encoder(tiny_encoder)
    params = {"encoder": encoder.params, "head": fresh_head(encoder.config, jax.random.key(1))}
    state, _ = masked_phase.state_and_step(params, encoder.config, SETTINGS, what, 10, parallel.choose("jit"))
    learning = set(traverse_util.flatten_dict(state.trainable))
    of_encoder = {path for path in learning if path[0] == "encoder"}
    assert {path for path in traverse_util.flatten_dict(params) if path[0] == "head"} <= learning
    assert (WORDS in of_encoder) == (what == "all")
    assert all("pooler" not in path for path in of_encoder)
    if what == "top:1":
        assert of_encoder
        assert all(path[1:4] == ("encoder", "layer", "1") for path in of_encoder)
    elif what == "bias":
        assert of_encoder
        assert all(path[-1] == "bias" for path in of_encoder)
    elif what == masked_phase.NOTHING_BUT_THE_HEAD:
        assert not of_encoder


@pytest.mark.slow
def test_everything_that_learns_moves(params, on_one):
    before, after = (traverse_util.flatten_dict(tree) for tree in (params, full_params(on_one[0])))
    assert before.keys() == after.keys()
    assert not [path for path in before if np.array_equal(before[path], after[path])]


def test_held_out_figures_are_those_of_the_batches_and_the_same_again(params, encoder, make_source):
    source = make_source()
    measure = masked_phase.make_held_out(source, 2, encoder.config, "float32", parallel.choose("jit"))
    found = measure(params)
    assert found == measure(params)
    loss = jax.jit(masked_phase.make_masked_loss(encoder.config, "float32"))
    sums = [
        (loss(params, {}, first(batch), jax.random.key(0))[0], batch.weight.sum())
        for batch in (source.batch(epoch, step) for epoch in (0, 1) for step in range(source.steps_per_epoch))
    ]
    total, weight = (float(sum(each)) for each in zip(*sums, strict=True))
    np.testing.assert_allclose(found.loss, total / weight, rtol=1e-5)
    assert found.masked_tokens == weight
    np.testing.assert_allclose(found.pseudo_perplexity, np.exp(total / weight), rtol=1e-5)


def test_a_source_that_hides_nothing_has_no_figures(params, encoder, make_source, monkeypatch):
    source = make_source()
    monkeypatch.setattr(source, "_mask_share", 0.0)
    measure = masked_phase.make_held_out(source, 1, encoder.config, "float32", parallel.choose("jit"))
    with pytest.raises(ValueError, match="no token of the held-out texts is masked"):
        measure(params)


@pytest.mark.slow
def test_memory_and_compile_time_are_saved_without_another_step(tiny_encoder, make_source):
    encoder = load_encoder(tiny_encoder)
    params = {"encoder": encoder.params, "head": fresh_head(encoder.config, jax.random.key(1))}
    plain, _ = run_steps(params, encoder, make_source, parallel.choose("jit"))
    saving = dataclasses.replace(SETTINGS, remat=True, scan_layers=True)
    other, _ = run_steps(params, encoder, make_source, parallel.choose("jit"), settings=saving)
    for (path, a), b in zip(jax.tree.leaves_with_path(plain.trainable), jax.tree.leaves(other.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=5e-4, err_msg=jax.tree_util.keystr(path))


def test_cudnn_is_refused_where_there_is_none(params, encoder, make_source):
    asked = encoder.with_attention("cudnn").config
    measure = masked_phase.make_held_out(make_source(), 1, asked, "bfloat16", parallel.choose("jit"))
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU.*--attention\) to xla"):
        measure(params)


@pytest.mark.slow
def test_dropout_is_used_when_asked(params, encoder, make_source):
    batch = first(make_source().batch(0, 0))
    config = dataclasses.replace(encoder.config, hidden_dropout=0.5)
    loss = jax.jit(masked_phase.make_masked_loss(config, "float32", dropout=True))
    one, two = (loss(params, {}, batch, jax.random.key(seed))[0] for seed in (0, 1))
    assert one != two
