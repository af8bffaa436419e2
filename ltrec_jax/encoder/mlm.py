"""The head that guesses masked words: hidden states to scores over the vocabulary. Files belong to `mlm_files`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltrec_jax.encoder import dense
from ltrec_jax.encoder.bert import Dense
from ltrec_jax.encoder.config import EncoderConfig, head_activation_name
from ltrec_jax.types import Array, PyTree


class MlmHead(nn.Module):
    """scores = LayerNorm(activation(h W + b)) E^T + c, with the encoder's own word table E ("tied").

    Call: hidden states of M masked tokens float32 [M, E] and the word table [V, E] -> scores float32 [M, V].
    """

    config: EncoderConfig
    policy: dense.Policy = "float32"

    def setup(self) -> None:
        c = self.config
        self.transform = Dense(c.hidden_size, c.hidden_size, self.policy, head_activation_name(c))
        self.LayerNorm = nn.LayerNorm(epsilon=c.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))

    def __call__(self, hidden_MxE: Array, words_VxE: Array) -> jax.Array:
        transformed = self.LayerNorm(self.transform(jnp.asarray(hidden_MxE)))
        return dense.scores(transformed, jnp.asarray(words_VxE), self.policy) + self.bias[None, :]


def fresh_head(config: EncoderConfig, key: jax.Array) -> PyTree:
    """A new head: {"transform": {kernel, bias}, "LayerNorm": {scale, bias}, "bias"}. The tree of every loaded one."""
    hidden, words = jnp.zeros((1, config.hidden_size)), jnp.zeros((config.vocab_size, config.hidden_size))
    return jax.jit(lambda key: MlmHead(config).init(key, hidden, words)["params"])(key)
