import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.model.head import Head, popularity_gate


def test_gate_by_hand():
    np.testing.assert_allclose(popularity_gate(np.array([0, 1, 10, 90]), 10.0), [0, 1 / 11, 0.5, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(popularity_gate(np.array([0, 1]), 0.0), [0.0, 1.0])


def test_anchor_is_the_projection_of_the_centred_unit_vector():
    head = Head(embedding_dim=2)
    x = np.array([[3.0, 4.0, 1.0], [1.0, 0.0, 1.0]], np.float32)
    params = head.init(jax.random.key(0), x)["params"] | {"center": jnp.array([0.0, 0.0, 1.0])}
    params["text_bias"] = jnp.array([1.0, 2.0, 3.0])
    anchor, bias = head.apply({"params": params}, x)
    unit = np.array([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(anchor, unit @ np.asarray(params["projection"]), rtol=1e-5)
    np.testing.assert_allclose(bias, unit @ [1.0, 2.0, 3.0], rtol=1e-5)


def test_an_empty_slot_is_finite_in_value_and_gradient():
    head = Head(embedding_dim=2)
    params = head.init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
    gradient = jax.grad(lambda x: head.apply({"params": params}, x)[0].sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()
