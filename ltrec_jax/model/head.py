"""The trainable layer between the encoder's pooled vectors and the score: projection, text bias, popularity gate."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.types import Array


class Head(nn.Module):
    """Item anchors from pooled text vectors.

        z = normalize(x - center)      anchor = W^T z      text_bias = <w, z>

    `center` (the catalogue's mean vector, a constant) removes the direction that all texts share, without which the
    cosine of any two titles is high and W sees little. A solved head may add an `intercept` [D + 1]
    to [text_bias | anchor].

    Call: pooled_KxE float32 -> (anchor_KxD, text_bias_K), float32. A zero vector (an empty slot) stays finite.
    """

    embedding_dim: int
    projection_scale: float = 0.03

    @nn.compact
    def __call__(self, pooled_KxE: Array) -> tuple[jax.Array, jax.Array]:
        hidden = pooled_KxE.shape[-1]
        center_E = self.param("center", nn.initializers.zeros, (hidden,))
        kernel_ExD = self.param(
            "projection", nn.initializers.normal(self.projection_scale), (hidden, self.embedding_dim)
        )
        bias_E = self.param("text_bias", nn.initializers.zeros, (hidden,))
        z_KxE = pooled_KxE - center_E[None, :]
        # rsqrt of a floored square: the gradient of a norm at zero is NaN, and padding slots are zero.
        z_KxE = z_KxE * jax.lax.rsqrt(jnp.maximum(jnp.sum(z_KxE**2, axis=-1, keepdims=True), 1e-12))
        anchor_KxD, text_bias_K = z_KxE @ kernel_ExD, z_KxE @ bias_E
        if self.has_variable("params", "intercept"):
            intercept = self.get_variable("params", "intercept")
            anchor_KxD, text_bias_K = anchor_KxD + intercept[None, 1:], text_bias_K + intercept[0]
        return anchor_KxD, text_bias_K


def popularity_gate(counts_I: np.ndarray, gate_count: float) -> np.ndarray:
    """How far an item's behaviour is trusted beside its text: g(n) = n / (n + c), float32 [I].

    n = training interactions of the item, c = `gate_count`. A never-seen item has g = 0: it *is* its text. With c = 0
    every seen item has g = 1.
    """
    counts_I = np.asarray(counts_I, np.float32)
    seen = counts_I > 0
    return np.divide(counts_I, counts_I + np.float32(gate_count), out=np.zeros_like(counts_I), where=seen)
