"""The optimizer of the dense leaves: an optax chain of clipping, Adam, decoupled decay and per-part learning rates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ltrec_jax.config import TrainConfig
from ltrec_jax.types import PyTree

Schedule = Callable[[jnp.ndarray], jnp.ndarray]


def warmup_cosine(total_steps: int, warmup: float) -> Schedule:
    """Factor on a peak rate: linear from near 0 to 1 over the first `warmup` share of steps, then a cosine to 0."""
    warm = round(total_steps * warmup)

    def factor(step: jnp.ndarray) -> jnp.ndarray:
        rising = (step + 1) / max(warm, 1)
        done = jnp.clip((step - warm) / max(total_steps - warm, 1), 0.0, 1.0)
        return jnp.where(step < warm, rising, 0.5 * (1 + jnp.cos(jnp.pi * done)))

    return factor


def make_optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019) over the trainable subtree {encoder: ..., head: ...}.

    The global norm is clipped first; kernels and embeddings decay, biases and LayerNorm scales do not; encoder and
    head have peaks and decays of their own under one schedule.
    """
    factor = warmup_cosine(total_steps, config.warmup)

    def part(peak: float, decay: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(decay, mask=_decays),
            optax.scale_by_schedule(lambda step: -peak * factor(step)),
        )

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.multi_transform(
            {
                "encoder": part(config.learning_rate, config.weight_decay),
                "head": part(config.head_learning_rate, config.head_weight_decay),
            },
            _part_of_leaf,
        ),
    )


def _decays(params: PyTree) -> PyTree:
    return jax.tree.map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding", "projection", "text_bias"), params
    )


def _part_of_leaf(params: PyTree) -> PyTree:
    return jax.tree.map_with_path(lambda path, _: path[0].key, params)
