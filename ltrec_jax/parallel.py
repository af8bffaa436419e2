"""The one place for devices: one program body run under jit, pmap or shard_map (vmap as the one-device oracle).

A body is `body(state, batch, key) -> (state, metrics)`. `state` and `key` are replicated, every leaf of `batch` has a
leading device axis of length `count`; the body sees its own slice without that axis, and reduces over `axis` (None
under jit) with `pmean`, `psum` or `all_gather`. What it returns must be equal on all devices.

TRAP: gradients are taken locally and averaged by an explicit collective *outside* the differentiated function.
`pmean` inside the loss, or shard_map's varying-axis checks, give gradients wrong by a factor of the device count.
"""

import dataclasses
import importlib.util
import os
import platform
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ltrec_jax import memory
from ltrec_jax.errors import UserError
from ltrec_jax.types import PyTree

AXIS = "devices"
Body = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How a step is spread: `mode` is jit, pmap, shard_map or vmap; `devices` the local devices it runs on."""

    mode: str
    count: int
    devices: tuple[Any, ...]

    @property
    def axis(self) -> str | None:
        """Name of the device axis inside a body; None where there is one device and no axis."""
        return None if self.mode == "jit" else AXIS

    @property
    def mesh(self) -> Mesh:
        return jax.make_mesh((len(self.devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=self.devices)

    def replicate(self, tree: PyTree) -> PyTree:
        """Place a tree whole on every device."""
        if len(self.devices) == 1:
            return jax.device_put(tree, self.devices[0])
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def shard(self, batch: PyTree) -> PyTree:
        """Start moving a batch to the devices, one slice of its leading axis each; returns at once."""
        if len(self.devices) == 1:
            return jax.device_put(batch, self.devices[0])
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def compile(self, body: Body, *, donate: bool = True) -> Body:
        """The body as one compiled function of (state, batch, key); the state's memory is reused when `donate`."""
        donated = (0,) if donate else ()
        if self.mode == "jit":
            return jax.jit(lambda state, batch, key: body(state, _first(batch), key), donate_argnums=donated)
        if self.mode == "pmap":
            return jax.pmap(
                body,
                axis_name=AXIS,
                in_axes=(None, 0, None),
                out_axes=None,
                devices=self.devices,
                donate_argnums=donated,
            )
        if self.mode == "shard_map":
            replicated, split = PartitionSpec(), PartitionSpec(AXIS)
            mapped = jax.shard_map(
                lambda state, batch, key: body(state, _first(batch), key),
                mesh=self.mesh,
                in_specs=(replicated, split, replicated),
                out_specs=replicated,
                check_vma=False,
            )
            return jax.jit(mapped, donate_argnums=donated)
        mapped = jax.vmap(body, in_axes=(None, 0, None), out_axes=None, axis_name=AXIS, axis_size=self.count)
        return jax.jit(mapped, donate_argnums=donated)


def choose(mode: str = "auto", *, count: int | None = None) -> Parallel:
    """A `Parallel` over the first `count` local devices (default all). auto: pmap on several devices, jit on one.

    "vmap" runs `count` slices on one device: the oracle of the tests.
    """
    memory.keep_freed()
    local = tuple(jax.local_devices())
    if mode == "vmap":
        return Parallel("vmap", count or 1, local[:1])
    if count is not None and count > len(local):
        raise UserError(f"{count} devices were asked for, JAX sees {len(local)}.")
    devices = local[:count] if count else local
    if mode == "auto":
        mode = "pmap" if len(devices) > 1 else "jit"
    if mode == "jit":
        devices = devices[:1]
    return Parallel(mode, len(devices), devices)


def mean_over_devices(tree: PyTree, axis: str | None) -> PyTree:
    """`pmean` over the axis, or the tree itself where there is none."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def sum_over_devices(tree: PyTree, axis: str | None) -> PyTree:
    """`psum` over the axis, or the tree itself where there is none."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def gather_over_devices(tree: PyTree, axis: str | None) -> PyTree:
    """`all_gather` of the leading dimension over the axis ([n, ...] -> [devices * n, ...])."""
    return tree if axis is None else jax.lax.all_gather(tree, axis, tiled=True)


def device_key(key: jax.Array, axis: str | None) -> jax.Array:
    """A key of this device's own, so that no two devices draw the same dropout mask."""
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def axis_size(axis: str | None) -> int:
    """The number of devices on the axis, 1 where there is none."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def enable_compile_cache(directory: str) -> None:
    """Keep compiled programs on disk between processes (a fine-tuning step takes seconds to compile)."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def warn_about_unused_accelerator() -> None:
    """Warn where an NVIDIA GPU is visible and JAX is the CPU build: the run would be many times slower."""
    if (
        jax.default_backend() == "cpu"
        and shutil.which("nvidia-smi")
        and not importlib.util.find_spec("jax_cuda12_plugin")
    ):
        warnings.warn(
            "An NVIDIA GPU is visible but JAX is the CPU build. Install the extra: pip install 'ltrec-jax[cuda]'.",
            stacklevel=2,
        )


def describe_hardware() -> dict[str, Any]:
    """What a report names: platform, device kind and count, and the versions that decide speed."""
    import jaxlib

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
    }


def _processor_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _first(batch: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), batch)
