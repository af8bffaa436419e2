"""Parameters prepared for inference: the same results in less time, int8 within its tolerance."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder import dense, inference, int8
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.inference import prepare

GENERATOR = np.random.default_rng(4)


def run(stored: Any, params: Any, policy: dense.Policy) -> np.ndarray:
    hidden = jax.jit(Bert(stored.encoder.config, policy).apply)({"params": params}, stored.ids, stored.mask)
    return np.asarray(hidden)[stored.real]


@pytest.mark.parametrize("policy", dense.TRAINING_POLICIES)
def test_prepared_parameters_give_the_same(tiny_bert: Any, policy: dense.Policy) -> None:
    params = jax.tree.map(jnp.asarray, tiny_bert.encoder.params)
    prepared = prepare(params, policy)
    np.testing.assert_array_equal(run(tiny_bert, prepared, policy), run(tiny_bert, params, policy))
    stored_as = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[policy]
    assert prepared["encoder"]["layer"]["0"]["output"]["dense"]["kernel"].dtype == stored_as
    assert prepared["embeddings"]["word_embeddings"]["embedding"].dtype == jnp.float32


@pytest.fixture(params=[False, True], ids=["signed", "unsigned"])
def unsigned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of CPU, whichever this one is."""
    monkeypatch.setattr(int8, "unsigned", lambda: request.param)
    return bool(request.param)


def test_int8_stays_near_float32(torch_stored: Any, unsigned: bool) -> None:
    exact = run(torch_stored, torch_stored.encoder.params, "float32")
    rounded = run(torch_stored, prepare(torch_stored.encoder.params, "int8"), "int8")
    cosine = (exact * rounded).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rounded, axis=-1)
    assert cosine.min() > 0.998


def test_int8_tree_is_the_one_the_module_declares(torch_stored: Any, unsigned: bool) -> None:
    bert = Bert(torch_stored.encoder.config, "int8")
    declared = jax.eval_shape(lambda: bert.init(jax.random.key(0), torch_stored.ids, torch_stored.mask)["params"])
    prepared = prepare(torch_stored.encoder.params, "int8")
    assert jax.tree.structure(declared) == jax.tree.structure(prepared)
    for ours, theirs in zip(jax.tree.leaves(prepared), jax.tree.leaves(declared), strict=True):
        assert ours.shape == theirs.shape
        # What stays outside int8 is rounded beforehand.
        assert ours.dtype in (theirs.dtype, jnp.bfloat16 if theirs.dtype == jnp.float32 else None)


def test_int8_is_for_what_follows_a_layer_norm_and_for_all_where_it_is_unsigned(tiny_bert: Any, unsigned: bool) -> None:
    layer = prepare(jax.tree.map(jnp.asarray, tiny_bert.encoder.params), "int8")["encoder"]["layer"]["1"]
    projections = layer["attention"]["self"]
    assert {p["kernel"].dtype for p in (*projections.values(), layer["intermediate"]["dense"])} == {jnp.dtype("int8")}
    for other in (layer["output"]["dense"], layer["attention"]["output"]["dense"]):
        assert other["kernel"].dtype == (jnp.int8 if unsigned else jnp.bfloat16)
    for part in ("key", "value"):
        np.testing.assert_array_equal(projections[part]["input_scale"], projections["query"]["input_scale"])


def test_smoothing_takes_up_a_channel_that_dwarfs_the_others(tiny_bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel of a LayerNorm 1,000 times the others: without smoothing the others round to nothing."""
    params = jax.tree.map(jnp.asarray, tiny_bert.encoder.params)
    norm = params["encoder"]["layer"]["0"]["attention"]["output"]["LayerNorm"]
    norm["scale"], norm["bias"] = norm["scale"].at[3].multiply(1000.0), norm["bias"].at[3].set(1000.0)
    # The channel's weights are as small as it is large, as in checkpoints that grew such channels.
    following = params["encoder"]["layer"]["0"]["intermediate"]["dense"]
    following["kernel"] = following["kernel"].at[3].divide(1000.0)

    def error() -> float:
        entering = GENERATOR.normal(size=(64, 16)).astype(np.float32) * norm["scale"][None] + norm["bias"][None]
        layer = prepare(params, "int8")["encoder"]["layer"]["0"]["intermediate"]["dense"]
        kernel = int8.Kernel(layer["kernel"], layer["kernel_scale"], layer["kernel_sums"])
        scaled = int8.round_rows(entering * layer["input_scale"][None])
        rounded = dense.affine_int8(scaled, kernel, layer["bias"])
        exact = dense.affine(entering, following["kernel"], following["bias"], "float32")
        return float(jnp.abs(rounded - exact).mean() / jnp.abs(exact).mean())

    smoothed = error()
    monkeypatch.setattr(inference, "_factor", lambda layers, entering: jnp.ones_like(entering["scale"]))
    assert smoothed < 0.05 < error()
