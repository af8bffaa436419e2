"""The one place for devices: one program body run under jit, pmap or shard_map (vmap as the one-device oracle).

A body is `body(state, batch, key) -> (state, metrics)`. `state` and `key` are replicated, every leaf of `batch` has a
leading device axis of length `count`; the body sees its own slice without that axis, and reduces over `axis` (None
under jit) with `pmean`, `psum` or `all_gather`. What it returns must be equal on all devices. Under shard_map parts of
the state may be split by rows instead (`layout`): each device then sees and returns its own rows of them.

With several processes the devices are those of all of them. Arrays are global then: every process holds the shards of
its own devices, hands in its own slices of a batch (`share`), and reads with `local`.

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
WHOLE, BY_ROWS = PartitionSpec(), PartitionSpec(AXIS)
"""Layouts of an array over the devices: a copy on each, or its leading axis split among them."""
Body = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How a step is spread: `mode` is jit, pmap, shard_map or vmap; `devices` those it runs on, process by process."""

    mode: str
    count: int
    devices: tuple[Any, ...]

    @property
    def axis(self) -> str | None:
        """Name of the device axis inside a body; None where there is one device and no axis."""
        return None if self.mode == "jit" else AXIS

    @property
    def mesh(self) -> Mesh:
        # Not `jax.make_mesh`, which may order the devices anew: a process's slices must lie side by side.
        return Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    @property
    def several_processes(self) -> bool:
        """Whether some of the devices belong to other processes."""
        return any(device.process_index != jax.process_index() for device in self.devices)

    @property
    def share(self) -> slice:
        """The slices of a global batch that this process's devices take."""
        if not self.several_processes:
            return slice(None)
        mine = [n for n, device in enumerate(self.devices) if device.process_index == jax.process_index()]
        return slice(mine[0], mine[-1] + 1)

    def replicate(self, tree: PyTree) -> PyTree:
        """Place a tree whole on every device. Every process must hand in the same values."""
        return self.place(tree, WHOLE)

    def shard(self, batch: PyTree) -> PyTree:
        """Start moving a batch to the devices, one slice of its leading axis each; returns at once.

        With several processes: this process's slices (`share`) of the global batch.
        """
        if self.several_processes:
            by_rows = NamedSharding(self.mesh, BY_ROWS)
            return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(by_rows, leaf), batch)
        return self.place(batch, BY_ROWS)

    def place(self, tree: PyTree, layout: PyTree) -> PyTree:
        """Place a tree by a layout (a `PartitionSpec`, or a tree prefix of them). Placed global arrays stay."""
        if len(self.devices) == 1:
            return jax.device_put(tree, self.devices[0])
        shardings = self._shardings(layout)
        if not self.several_processes:
            return jax.device_put(tree, shardings)
        return jax.tree.map(
            lambda sharding, part: jax.tree.map(lambda leaf: _global(leaf, sharding), part), shardings, tree
        )

    def create(self, make: Callable[..., PyTree], layout: PyTree, *arguments: PyTree) -> PyTree:
        """What `make` returns, made where it will lie: no device ever holds the whole of what is split."""
        if len(self.devices) == 1:
            return jax.jit(make)(*arguments)
        return jax.jit(make, out_shardings=self._shardings(layout))(*arguments)

    def local(self, tree: PyTree) -> PyTree:
        """What is replicated in a tree as arrays of this process, with which it may compute what the others do not."""
        return jax.tree.map(
            lambda leaf: leaf.addressable_data(0) if _is_global(leaf) and leaf.is_fully_replicated else leaf, tree
        )

    def compile(self, body: Body, *, donate: bool = True, layout: PyTree = WHOLE) -> Body:
        """The body as one compiled function of (state, batch, key); the state's memory is reused when `donate`.

        `layout` of the state: a tree prefix of `WHOLE` and, under shard_map alone, `BY_ROWS`.
        """
        donated = (0,) if donate else ()
        if self.mode == "jit":
            return jax.jit(lambda state, batch, key: body(state, _first(batch), key), donate_argnums=donated)
        if self.mode == "shard_map":
            mapped = jax.shard_map(
                lambda state, batch, key: body(state, _first(batch), key),
                mesh=self.mesh,
                in_specs=(layout, BY_ROWS, WHOLE),
                out_specs=(layout, WHOLE),
                check_vma=False,
            )
            return jax.jit(mapped, donate_argnums=donated)
        if layout != WHOLE:
            raise ValueError(f"a state that is split by rows needs shard_map, not {self.mode}")
        if self.mode == "pmap":
            return self._pmapped(body, donated)
        mapped = jax.vmap(body, in_axes=(None, 0, None), out_axes=None, axis_name=AXIS, axis_size=self.count)
        return jax.jit(mapped, donate_argnums=donated)

    def _pmapped(self, body: Body, donated: tuple[int, ...]) -> Body:
        mapped = jax.pmap(
            body,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=self.devices,
            donate_argnums=donated,
        )
        if not self.several_processes:
            return mapped
        # With several processes pmap gives each its own part; a checkpoint, and the next step, want the global array.
        whole = NamedSharding(self.mesh, WHOLE)

        def joined(leaf: jax.Array) -> jax.Array:
            shards = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, whole, shards)

        return lambda state, batch, key: jax.tree.map(joined, mapped(state, batch, key))

    def _shardings(self, layout: PyTree) -> PyTree:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), layout)


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


def choose_for_run(mode: str = "auto", *, by_rows: bool = False) -> Parallel:
    """A `Parallel` over the devices of all processes. auto: as `choose`, but shard_map where tables are split by rows.

    One device of one process is the same under any mode, and needs nothing split.
    """
    if by_rows and mode == "pmap":
        raise UserError("Setting train.shard_tables needs train.parallel shard_map (or auto), not pmap.")
    if mode == "auto" and by_rows and len(jax.devices()) > 1:
        mode = "shard_map"
    if jax.process_count() == 1:
        return choose(mode)
    if mode == "jit":
        raise UserError(
            "Setting parallel (train.parallel) jit uses one device; several processes need auto, pmap or shard_map."
        )
    memory.keep_freed()
    devices = tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
    return Parallel("pmap" if mode == "auto" else mode, len(devices), devices)


def mean_over_devices(tree: PyTree, axis: str | None) -> PyTree:
    """`pmean` over the axis, or the tree itself where there is none."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def sum_over_devices(tree: PyTree, axis: str | None) -> PyTree:
    """`psum` over the axis, or the tree itself where there is none."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def scatter_sum_over_devices(tree: PyTree, axis: str) -> PyTree:
    """The sum over the axis, its leading dimension dealt out ([devices * n, ...] -> each device's own [n, ...])."""
    return jax.tree.map(lambda leaf: jax.lax.psum_scatter(leaf, axis, tiled=True), tree)


def gather_over_devices(tree: PyTree, axis: str | None) -> PyTree:
    """`all_gather` of the leading dimension over the axis ([n, ...] -> [devices * n, ...])."""
    return tree if axis is None else jax.lax.all_gather(tree, axis, tiled=True)


def device_index(axis: str) -> jax.Array:
    """The place of this device on the axis, int32."""
    return jax.lax.axis_index(axis)


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


def _is_global(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _global(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array over the devices of several processes from the same values in each of them; a global one as it is."""
    if _is_global(leaf):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_global(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
