import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder import dense
from ltrec_jax.encoder.attention import _blocks, attention, attention_with_dropout, segment_mask
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


@pytest.fixture
def gpu(monkeypatch):
    """A process that takes itself for one on an NVIDIA GPU of this compute capability; its "cuDNN" is XLA."""
    dot_product_attention = jax.nn.dot_product_attention

    def pretend(capability):
        device = types.SimpleNamespace(device_kind="a GPU", compute_capability=capability)
        monkeypatch.setattr("jax.default_backend", lambda: "gpu")
        monkeypatch.setattr("jax.devices", lambda: [device])
        monkeypatch.setattr(
            "jax.nn.dot_product_attention", lambda *a, implementation, **more: dot_product_attention(*a, **more)
        )

    return pretend


def by_cudnn(size=8, length=4, policy="bfloat16"):
    heads, mask = jnp.ones((1, length, 2, size)), jnp.ones((1, length, length), bool)
    return attention(heads, heads, heads, mask, policy, "cudnn")


@pytest.mark.parametrize(
    ("capability", "asked", "message"),
    [
        ("9.0", {"policy": "float32"}, r"needs bfloat16: set encoder\.precision"),
        ("gfx942", {}, r"needs an NVIDIA GPU, and this process computes on a GPU: .*xla"),
        ("7.5", {}, r"capability 8\.0 .* has 7\.5: .*xla"),
        ("9.0", {"size": 12}, r"multiple of 8 up to 256 .* heads of 12: .*xla"),
        ("8.0", {"size": 136}, r"multiple of 8 up to 128 .* heads of 136: .*xla"),
        ("10.0", {"size": 264}, r"multiple of 8 up to 256 .* heads of 264: .*xla"),
    ],
)
def test_what_cudnn_cannot_do_is_told_with_the_setting(gpu, capability, asked, message):
    gpu(capability)
    with pytest.raises(UserError, match=message):
        by_cudnn(**asked)


@pytest.mark.parametrize(("capability", "asked"), [("8.0", {"size": 128}), ("9.0", {"size": 256}), ("8.6", {})])
def test_what_cudnn_can_do_is_passed_on(gpu, capability, asked):
    gpu(capability)
    assert jax.eval_shape(lambda: by_cudnn(**asked, policy="int8")).dtype == jnp.float32


def test_only_the_gradient_by_cudnn_needs_an_even_length(gpu):
    gpu("9.0")

    def total(heads):
        return attention(
            heads, heads, heads, jnp.ones((1, heads.shape[1], heads.shape[1]), bool), "bfloat16", "cudnn"
        ).sum()

    even, odd = jnp.ones((1, 4, 2, 8)), jnp.ones((1, 5, 2, 8))
    assert jax.eval_shape(jax.grad(total), even).shape == even.shape
    assert jax.eval_shape(total, odd).shape == ()
    with pytest.raises(UserError, match=r"even length, and these have 5 tokens: set train\.row_length"):
        jax.eval_shape(jax.grad(jax.checkpoint(total)), odd)


def test_dropout_by_cudnn_is_refused_not_passed_over(gpu, tiny_bert):
    config = dataclasses.replace(tiny_bert.encoder.with_attention("cudnn").config, attention_dropout=0.1)
    ids, rngs = jnp.ones((1, 4), jnp.int32), {"dropout": jax.random.key(0)}
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        Bert(config, "bfloat16").apply({"params": tiny_bert.encoder.params}, ids, ids, deterministic=False, rngs=rngs)
    gpu("9.0")
    heads = jnp.ones((1, 4, 2, 8))
    with pytest.raises(UserError, match=r"no dropout by token: set train\.encoder_dropout .* to false, or .* to xla"):
        attention_with_dropout(heads, heads, heads, jnp.ones((1, 4, 4), bool), lambda w: w, "bfloat16", "cudnn")


def products_of(jaxpr):
    """The products in a traced program, in whatever it calls too."""
    inner = [value.jaxpr for each in jaxpr.eqns for value in each.params.values() if hasattr(value, "jaxpr")]
    here = [each for each in jaxpr.eqns if each.primitive.name == "dot_general"]
    return here + [product for each in inner for product in products_of(each)]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("policy", dense.TRAINING_POLICIES)
def test_attention_with_dropout_has_the_operands_of_the_policy(monkeypatch, platform, policy):
    """In both directions: as `attention` without it, and float32 for good where the policy says so."""
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    heads, mask = jnp.ones((1, 4, 2, 8)), jnp.ones((1, 4, 4), bool)

    def total(query, key, value):
        return attention_with_dropout(query, key, value, mask, lambda weights: 0.5 * weights, policy).sum()

    traced = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(heads, heads, heads)
    products = products_of(traced.jaxpr)
    assert len(products) == 6
    rounded = policy == "bfloat16" and platform != "cpu"
    for product in products:
        assert {each.aval.dtype for each in product.invars} == {jnp.dtype(jnp.bfloat16 if rounded else jnp.float32)}
        assert product.outvars[0].aval.dtype == jnp.float32
        highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
        assert (product.params["precision"] == highest) == (policy == "float32")


def test_the_gradient_with_dropout_is_that_of_the_definition():
    rng = np.random.default_rng(1)
    query, key, value, weights = (jnp.asarray(rng.normal(size=(2, 5, 3, 8)), jnp.float32) for _ in range(4))
    kept = jnp.asarray(rng.random((2, 3, 5, 5)) < 0.7, jnp.float32)
    mask = segment_mask(jnp.array([[1, 1, 2, 2, 0], [3, 3, 3, 3, 3]]))

    def definition(query, key, value):
        scores = jnp.where(mask[:, None], jnp.einsum("rqhd,rkhd->rhqk", query, key) / 8**0.5, -jnp.inf)
        return jnp.sum(weights * jnp.einsum("rhqk,rkhd->rqhd", kept * jax.nn.softmax(scores), value))

    def ours(query, key, value):
        return jnp.sum(weights * attention_with_dropout(query, key, value, mask, lambda w: kept * w, "float32"))

    (one, of_ours), (two, wanted) = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(query, key, value) for f in (ours, definition)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    for a, b in zip(of_ours, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("length", [256, 257, 351])
def test_long_rows_attend_in_blocks_of_queries(length: int) -> None:
    """The blocks have each query once; the result is that of the whole row."""
    blocks = _blocks(length)
    assert [query for block in blocks for query in range(length)[block]] == list(range(length))
    assert len(blocks) == 1 or max(len(range(length)[block]) for block in blocks) <= 160
    assert (len(blocks) == 1) == (length <= 256)
    generator = np.random.default_rng(length)
    query, key, value = (jnp.asarray(generator.normal(size=(2, length, 2, 8)), jnp.float32) for _ in range(3))
    segments = jnp.asarray(np.sort(generator.integers(0, 4, (2, length))))
    mask = segment_mask(segments)
    # Scores far apart as well, which need the largest one taken off; bfloat16 would round those too far.
    for policy, apart, tolerance in (("float32", 30.0, 2e-5), ("bfloat16", 1.0, 3e-2)):
        expected = jax.nn.dot_product_attention(apart * query, key, value, mask=mask[:, None])
        found = attention(apart * query, key, value, mask, policy)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
