"""What an epoch costs: the model's floating-point operations by formula, the machine's matmul peak by measurement."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.config import Precision
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.train.state import frozen_layers

_SIZES = {"cpu": 2048}
_ACCELERATOR_SIZE = 8192
_REPEATS = 4


def encoder_flops(config: EncoderConfig, lengths: np.ndarray, trainable: str, *, cached: bool = False) -> float:
    """Operations of encoding texts of these lengths once and learning from them; padding and the head do not count.

    Forwards a layer takes 2 n (4 E^2 + 2 E F) + 4 n^2 E for a text of n tokens: a multiplication and an addition for
    every weight of its products, and attention's. Backwards twice as much where weights learn (once where biases alone
    do), nothing below the lowest layer that learns. `cached`: frozen layers are not run.
    """
    n = np.asarray(lengths, np.float64)
    wide, inner = config.hidden_size, config.intermediate_size
    layer = float((2 * n * (4 * wide * wide + 2 * wide * inner) + 4 * n**2 * wide).sum())
    frozen = frozen_layers(trainable, config.num_layers)
    backwards = 1 if trainable == "bias" else 2
    return layer * ((0 if cached else frozen) + (1 + backwards) * (config.num_layers - frozen))


@functools.cache
def matmul_peak(precision: Precision, devices: int = 1) -> float:
    """Operations per second of one large product with float32 result, the best of a few, times the devices; under 1 s.

    Several devices of a CPU are one processor.
    """
    size = _SIZES.get(jax.default_backend(), _ACCELERATOR_SIZE)
    left = jnp.ones((size, size), precision)
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32))
    product(left, left).block_until_ready()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        product(left, left).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) * (1 if jax.default_backend() == "cpu" else devices)
