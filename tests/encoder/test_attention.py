import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder.attention import attention, segment_mask
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.errors import UserError


def test_cudnn_without_a_gpu_names_the_setting(tiny_bert):
    encoder = tiny_bert.encoder.with_attention("cudnn")
    ids = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(UserError, match=r"NVIDIA GPU.*computes on cpu.*encoder\.attention.*xla"):
        Bert(encoder.config, "bfloat16").apply({"params": encoder.params}, ids, ids)


def test_the_kernel_is_no_part_of_what_an_encoder_is(tiny_bert):
    encoder = tiny_bert.encoder
    other = encoder.with_attention("cudnn")
    assert other.with_params(other.params).fingerprint == encoder.with_params(encoder.params).fingerprint
    assert other.config.to_dict() == encoder.config.to_dict()


def test_cudnn_refuses_float32(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    heads, mask = jnp.ones((1, 4, 2, 8)), jnp.ones((1, 4, 4), bool)
    with pytest.raises(UserError, match=r"needs bfloat16: set encoder\.precision"):
        attention(heads, heads, heads, mask, "float32", "cudnn")


def test_every_policy_gives_the_weighted_mean_of_a_segments_values():
    """Against the definition in float64, with and without a gradient asked for."""
    rows, length, heads, size = 2, 70, 3, 8
    query, key, value = np.random.default_rng(0).normal(size=(3, rows, length, heads, size)).astype(np.float32)
    segments = np.array([[1] * 30 + [2] * 35 + [0] * 5, [4] * 70])
    scores = np.einsum("rqhd,rkhd->rhqk", query.astype(np.float64), key) / np.sqrt(size)
    weights = np.where((segments[:, :, None] == segments[:, None, :])[:, None], np.exp(scores), 0.0)
    wanted = np.einsum("rhqk,rkhd->rqhd", weights / weights.sum(-1, keepdims=True), value)
    for policy, tolerance in (("float32", 2e-6), ("bfloat16", 2e-2), ("int8", 2e-2)):

        def context(value, policy=policy):
            return attention(query, key, value, segment_mask(segments), policy)

        found = jax.jit(context)(value)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=tolerance)
        in_training, gradient_of = jax.jit(lambda value: jax.vjp(context, value))(value)
        assert in_training.dtype == jnp.float32
        np.testing.assert_allclose(in_training, wanted, atol=tolerance)
        # A weighted mean: what one adds to all values of a segment, one adds to its result.
        np.testing.assert_allclose(gradient_of(jnp.ones_like(value))[0].sum(), value.size, rtol=1e-5)
