"""The optimizer of the dense leaves: an optax chain of Adam, decoupled decay and per-part learning rates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ltrec_jax.config import TrainConfig
from ltrec_jax.types import PyTree

Schedule = Callable[[jnp.ndarray], jnp.ndarray]


def make_schedule(config: TrainConfig, total_steps: int) -> Schedule:
    """Factor on a peak rate: linear from near 0 to 1 over the first `warmup` share of steps, then as `decay` says.

    "cosine" and "linear" fall to 0 at the last step, "constant" stays at 1.
    """
    warm = round(total_steps * config.warmup)

    def factor(step: jnp.ndarray) -> jnp.ndarray:
        rising = (step + 1) / max(warm, 1)
        done = jnp.clip((step - warm) / max(total_steps - warm, 1), 0.0, 1.0)
        return jnp.where(step < warm, rising, _FALLING[config.decay](done))

    return factor


_FALLING: dict[str, Schedule] = {
    "cosine": lambda done: 0.5 * (1 + jnp.cos(jnp.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": jnp.ones_like,
}


def rate_at(peak: float, config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate of a step, counted from 0, as a number to tell."""
    factor = make_schedule(config, total_steps)
    return lambda step: peak * float(factor(jnp.int32(step)))


def layer_rate(path: tuple[str, ...], num_layers: int, layer_decay: float) -> float:
    """Factor on an encoder leaf's rate: layer_decay^(layers above it) (Howard & Ruder, ACL 2018).

    The top layer (and the pooler) has 1, the embeddings lie below the lowest layer.
    """
    if "layer" in path:
        return layer_decay ** (num_layers - 1 - int(path[path.index("layer") + 1]))
    return layer_decay**num_layers if "embeddings" in path else 1.0


def make_optimizer(config: TrainConfig, total_steps: int, num_layers: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019) over the trainable subtree {encoder: ..., head: ...} (and a user_head).

    Kernels and embeddings decay, biases and LayerNorm scales do not; encoder and heads have peaks and decays of their
    own under one schedule, the encoder's falling from layer to layer downwards. Clipping is the step's: it is over
    word rows too.
    """
    factor = make_schedule(config, total_steps)

    def part(peak: float, decay: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(decay, mask=_decays),
            optax.scale_by_schedule(lambda step: -peak * factor(step)),
        )

    def by_depth(updates: PyTree, _: PyTree) -> PyTree:
        return jax.tree.map_with_path(
            lambda path, leaf: leaf * layer_rate(tuple(key.key for key in path), num_layers, config.layer_decay),
            updates,
        )

    encoder = part(config.learning_rate, config.weight_decay)
    if config.layer_decay != 1.0:
        encoder = optax.chain(encoder, optax.stateless(by_depth))
    return optax.multi_transform(
        {"encoder": encoder, "head": part(config.head_learning_rate, config.head_weight_decay)}, _part_of_leaf
    )


def _decays(params: PyTree) -> PyTree:
    return jax.tree.map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding", "projection", "text_bias"), params
    )


def _part_of_leaf(params: PyTree) -> PyTree:
    return jax.tree.map_with_path(lambda path, _: "encoder" if path[0].key == "encoder" else "head", params)
