"""What only a real NVIDIA GPU can show; skipped anywhere else. There: `JAX_PLATFORMS=cuda,cpu pytest tests/encoder`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder import dense
from ltrec_jax.encoder.attention import attention, segment_mask
from ltrec_jax.encoder.bert import Bert, initialise
from ltrec_jax.encoder.catalogue import encode_catalogue
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.inference import prepare
from ltrec_jax.encoder.weights import Encoder
from ltrec_jax.text.store import TokenStore

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")

CONFIG = EncoderConfig(
    vocab_size=100, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, position_rows=64
)


def relative_error(found, exact):
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def packed():
    """Rows of 64 with three texts of uneven lengths in each, and padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, CONFIG.vocab_size, (8, 64)).astype(np.int32)
    segments = np.zeros_like(ids)
    for row, (first, second, third) in enumerate(rng.integers(4, 20, (8, 3)).tolist()):
        segments[row, : first + second + third] = np.repeat([1, 2, 3], [first, second, third])
    return ids, segments


def softmax_attention(query, key, value, mask):
    """The definition, in float64."""
    scores = np.einsum("rqhd,rkhd->rhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(np.where(mask[:, None], scores, -np.inf))
    return np.einsum("rhqk,rkhd->rqhd", weights / weights.sum(axis=-1, keepdims=True), value)


@pytest.mark.parametrize(
    ("policy", "kernel", "bound"), [("float32", "xla", 1e-5), ("bfloat16", "xla", 1e-2), ("bfloat16", "cudnn", 1e-2)]
)
def test_attention_is_its_definition(packed, policy, kernel, bound):
    rng, mask = np.random.default_rng(1), np.asarray(segment_mask(jnp.asarray(packed[1])))
    query, key, value = rng.normal(size=(3, 8, 64, 2, 32)).astype(np.float32)
    found = jax.jit(lambda *x: attention(*x, policy, kernel))(query, key, value, mask)
    assert relative_error(found, softmax_attention(query, key, value, mask)) < bound


def test_the_gradient_by_cudnn_is_that_of_float32(packed):
    rng, mask = np.random.default_rng(2), segment_mask(jnp.asarray(packed[1]))
    query, key, value, g = rng.normal(size=(4, 8, 64, 2, 32)).astype(np.float32)

    def gradients(policy, kernel):
        def total(*heads):
            return (attention(*heads, mask, policy, kernel) * g).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value)

    for found, exact in zip(gradients("bfloat16", "cudnn"), gradients("float32", "xla"), strict=True):
        assert relative_error(found, np.asarray(exact, np.float64)) < 2e-2


def test_float32_products_are_not_rounded_to_tf32():
    """TF32 keeps 10 bits: errors near 3e-4. In all three products, forwards and backwards."""
    rng = np.random.default_rng(3)
    x, kernel, g = rng.normal(size=(256, 384)), rng.normal(size=(384, 128)), rng.normal(size=(256, 128))

    def total(x, kernel):
        return (dense.affine(x, kernel, jnp.zeros(128), "float32") * g.astype(np.float32)).sum()

    given = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    forwards = dense.affine(*given, jnp.zeros(128), "float32")
    to_x, to_kernel = jax.jit(jax.grad(total, argnums=(0, 1)))(*given)
    for found, exact in ((forwards, x @ kernel), (to_x, g @ kernel.T), (to_kernel, x.T @ g)):
        assert relative_error(found, exact) < 1e-5


@pytest.mark.parametrize(
    ("policy", "kernel", "bound"),
    [
        ("float32", "xla", 1e-4),
        ("bfloat16", "xla", 2e-2),
        ("bfloat16", "cudnn", 2e-2),
        ("int8", "xla", 5e-2),
        ("int8", "cudnn", 5e-2),
    ],
)
def test_hidden_states_are_those_of_the_cpu(packed, policy, kernel, bound):
    """The CPU's are held against PyTorch's by the other tests."""
    params, (ids, segments) = initialise(CONFIG, jax.random.key(0)), packed
    with jax.default_device(jax.devices("cpu")[0]):
        exact = Bert(CONFIG).apply({"params": jax.device_put(params, jax.devices("cpu")[0])}, ids, segments)
    config = dataclasses.replace(CONFIG, attention=kernel)
    found = jax.jit(Bert(config, policy).apply)({"params": prepare(params, policy)}, ids, segments)
    real = segments > 0
    assert relative_error(np.asarray(found)[real], np.asarray(exact, np.float64)[real]) < bound


@pytest.mark.parametrize("kernel", ["xla", "cudnn"])
def test_a_catalogue_is_encoded_whole(tmp_path, kernel):
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 60, 500)
    tokens = TokenStore(
        rng.integers(1, CONFIG.vocab_size, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)])
    )
    params = jax.tree.map(np.asarray, initialise(CONFIG, jax.random.key(0)))
    encoder = Encoder("random", CONFIG, params, tmp_path, "mean", True, 64, "").with_attention(kernel)
    exact = encode_catalogue(encoder.with_attention("xla"), tokens, progress=False)
    found = encode_catalogue(encoder, tokens, policy="bfloat16", progress=False)
    assert (exact * found).sum(axis=1).min() > 0.999
