"""Parameters laid out for inference: kernels stored as the policy's operands, quantised for int8. Frees nothing else.

Quantisation is SmoothQuant's (Xiao et al., ICML 2023) without calibration data: what enters the query, key, value and
intermediate products is a LayerNorm's output, so its parameters tell which channels are large. Those are divided by a
smoothing factor before rounding, and the kernel's rows multiplied by it. MiniLM's own rows, rounded between their least
and largest value, keep as much order without (rank correlation of similarities of 3,883 film titles with float32: .998
both); it is for checkpoints with channels that dwarf the others.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from ltrec_jax.encoder import dense, int8
from ltrec_jax.types import PyTree


def prepare(params: PyTree, policy: dense.Policy) -> PyTree:
    """The tree that `Bert(config, policy)` runs for inference. "float32": unchanged. "bfloat16": kernels rounded once.

    "int8" cannot run without: each dense layer that is rounded gets an int8 `kernel`, its `kernel_scale` and
    `kernel_sums` [O] and an `input_scale` [I], which query, key and value have in common.
    """
    if policy == "int8":
        return _quantised(params)

    def convert(path: tuple, leaf: jax.Array) -> jax.Array:
        return dense.operand(leaf, policy) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def _quantised(params: PyTree) -> PyTree:
    layers = {}
    entering = params["embeddings"]["LayerNorm"]
    for name in sorted(params["encoder"]["layer"], key=int):
        layer = params["encoder"]["layer"][name]
        attention, output = layer["attention"], layer["output"]
        factor_I = _factor(attention["self"].values(), entering)
        layers[name] = {
            "attention": {
                "self": {part: _smoothed(projection, factor_I) for part, projection in attention["self"].items()},
                "output": {**attention["output"], "dense": _behind_others(attention["output"]["dense"])},
            },
            "intermediate": {"dense": _behind(layer["intermediate"]["dense"], attention["output"]["LayerNorm"])},
            "output": {**output, "dense": _behind_others(output["dense"])},
        }
        entering = output["LayerNorm"]
    quantised = {**params, "encoder": {"layer": layers}}
    if "pooler" in params:
        quantised["pooler"] = {"dense": _behind(params["pooler"]["dense"], entering)}
    return quantised


def _behind_others(layer: PyTree) -> PyTree:
    """What follows no LayerNorm, as `dense.behind_others` has it: nothing is known of its channels."""
    if int8.everywhere():
        return _smoothed(layer, jnp.ones(layer["kernel"].shape[0]))
    return {**layer, "kernel": dense.operand(layer["kernel"], "bfloat16")}


def _behind(layer: PyTree, entering: PyTree) -> PyTree:
    return _smoothed(layer, _factor([layer], entering))


def _factor(layers: Iterable[PyTree], entering: PyTree) -> jax.Array:
    """What divides the input of layers behind a LayerNorm: half of its channels' spread moves into the kernels."""
    # The size of a channel after a LayerNorm: its mean and one standard deviation.
    input_I = jnp.abs(entering["bias"]) + jnp.abs(entering["scale"])
    kernel_I = jnp.stack([jnp.abs(layer["kernel"]).max(axis=1) for layer in layers]).max(axis=0)
    usable_I = (input_I > 0.0) & (kernel_I > 0.0)
    return jnp.where(usable_I, jnp.sqrt(input_I / jnp.where(usable_I, kernel_I, 1.0)), 1.0)


def _smoothed(layer: PyTree, factor_I: jax.Array) -> PyTree:
    kernel = int8.round_kernel(layer["kernel"] * factor_I[:, None])
    return {
        "kernel": kernel.values_IxO,
        "kernel_scale": kernel.scale_O,
        "kernel_sums": kernel.sums_O,
        "input_scale": 1.0 / factor_I,
        "bias": layer["bias"],
    }
