"""LayerNorm with a gradient of its own: what a CPU spends on it is passes over memory, and this needs fewer.

Out of scope: where it stands in the encoder (`bert`).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba et al., 2016), float32 (`kept`:
    rounded to bfloat16).

    Parameters `scale` and `bias` [E], as of `flax.linen.LayerNorm`. `fast`: the variance as E[x^2] - E[x]^2, one pass
    over x less and some of float32's digits.
    """

    size: int
    epsilon: float
    fast: bool = False
    kept: bool = False

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.size,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.size,))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = layer_norm(x.astype(jnp.float32), self.scale, self.bias, self.epsilon, self.fast)
        return y.astype(jnp.bfloat16) if self.kept else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: jax.Array, scale_E: jax.Array, bias_E: jax.Array, epsilon: float, fast: bool) -> jax.Array:
    """`LayerNorm` of x [..., E] as a function.

    Backwards only x, the mean and the deviation are kept: left to itself, JAX also stores the product of deviation and
    scale, as large as x. A step of MiniLM in bfloat16 (672 tokens) takes 134 ms instead of 145.
    """
    return _forward(x, scale_E, bias_E, epsilon, fast)[0]


def _forward(
    x: jax.Array, scale_E: jax.Array, bias_E: jax.Array, epsilon: float, fast: bool
) -> tuple[jax.Array, Residuals]:
    scale, bias = _like(scale_E, x), _like(bias_E, x)
    mean = x.mean(axis=-1, keepdims=True)
    if fast:
        variance = jnp.maximum(0.0, (x * x).mean(axis=-1, keepdims=True) - mean * mean)
    else:
        variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    return (x - mean) * (inverse * scale) + bias, (x, scale_E, mean, inverse)


def _backward(epsilon: float, fast: bool, residuals: Residuals, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale_E, mean, inverse = residuals
    normal, scaled = (x - mean) * inverse, g * _like(scale_E, x)
    along = (scaled * normal).mean(axis=-1, keepdims=True)
    x_gradient = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - normal * along)
    rows = tuple(range(x.ndim - 1))
    return x_gradient, (g * normal).sum(axis=rows), g.sum(axis=rows)


def _like(values_E: jax.Array, x: jax.Array) -> jax.Array:
    return values_E.reshape((1,) * (x.ndim - 1) + (-1,))


layer_norm.defvjp(_forward, _backward)
