import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder.norm import LayerNorm


@pytest.mark.parametrize("fast", [False, True])
def test_values_and_gradients_are_those_of_flax(fast):
    keys = jax.random.split(jax.random.key(0), 4)
    x, weight = jax.random.normal(keys[0], (3, 5, 8)) + 2.0, jax.random.normal(keys[1], (3, 5, 8))
    params = {"scale": jax.random.normal(keys[2], (8,)), "bias": jax.random.normal(keys[3], (8,))}

    def loss(module):
        return jax.jit(jax.value_and_grad(lambda p, x: (module.apply({"params": p}, x) * weight).sum(), argnums=(0, 1)))

    ours = loss(LayerNorm(8, 1e-3, fast=fast))(params, x)
    theirs = loss(nn.LayerNorm(epsilon=1e-3, use_fast_variance=fast))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_fresh_parameters_leave_rows_of_mean_0_and_variance_1():
    module, x = LayerNorm(64, 1e-12), 5.0 + 3.0 * jax.random.normal(jax.random.key(1), (4, 64))
    y = module.apply(module.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(y.mean(axis=1), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(jnp.var(y, axis=1), np.ones(4), rtol=1e-4)
