import jax.numpy as jnp
import pytest

from ltrec_jax.encoder.attention import attention
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
