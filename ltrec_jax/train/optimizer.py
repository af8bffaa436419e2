"""The optimizer of the dense leaves: an optax chain of clipping, Adam, decoupled decay and per-part learning rates."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from flax import traverse_util

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

    The global norm is clipped first; kernels and embeddings decay, biases and LayerNorm scales do not; the encoder and
    the head have peaks of their own under one schedule.
    """
    factor = warmup_cosine(total_steps, config.warmup)

    def at_peak(peak: float) -> optax.GradientTransformation:
        return optax.scale_by_schedule(lambda step: -peak * factor(step))

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay, mask=_decays),
        optax.multi_transform(
            {"encoder": at_peak(config.learning_rate), "head": at_peak(config.head_learning_rate)}, _part
        ),
    )


def _decays(params: PyTree) -> PyTree:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(
        {path: path[-1] in ("kernel", "embedding", "projection", "text_bias") for path in flat}
    )


def _part(params: PyTree) -> PyTree:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: path[0] for path in flat})
