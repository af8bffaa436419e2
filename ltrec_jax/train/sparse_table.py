"""Tables of rows (users, items, words) that are updated only where a batch touched them.

The gradient of `table[ids]` is dense in JAX, as large as the table. Here the gathered rows are differentiated instead,
duplicates are summed, and only the touched rows and their moments are written back into donated memory, so that the
time and the extra memory of a step do not depend on the number of rows.

Every rule has the signature of `lazy_adam`. Over a device axis, ids and gradients of all devices are gathered, merged
and divided by their count, and every replica makes the same update: local gradients are those of the device count times
the global mean loss.

A table that outgrows a device is split by rows (`make_table(..., split=True)`): each of D devices holds N/D rows that
lie side by side, and their moments. Reading, every device looks up the ids of all, and the rows found are summed, of
which only the owner's is not zero; writing, each applies what concerns its own rows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ltrec_jax import parallel
from ltrec_jax.config import TableRule
from ltrec_jax.parallel import Parallel
from ltrec_jax.types import Array

B1, B2, EPSILON = 0.9, 0.999, 1e-8
ROWS_MULTIPLE = 3840
"""Split tables have a multiple of this many rows (15 * 256): their shape, and so a checkpoint, is the same on every
number of devices that divides it."""
_BLOCK = 1 << 18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseTable:
    """values float32 [N, W]; what the rule remembers; updates int32 [N], how often each row was updated.

    Adam: first and second moment [N, W]. Row-wise Adagrad: no first moment [N, 0], a sum of squares per row [N, 1].
    `split_rows`: None where every device holds the table whole; else the number of rows that are real. The arrays are
    longer then (a multiple of `ROWS_MULTIPLE`), and inside a step they are a device's own part.
    """

    values: jax.Array
    first: jax.Array
    second: jax.Array
    updates: jax.Array
    split_rows: int | None = dataclasses.field(default=None, metadata={"static": True})


def make_table(values: Array, rule: TableRule = "lazy_adam", *, split: bool = False) -> SparseTable:
    """A table with these values that has seen nothing yet, whole on every device or to be split by rows."""
    values = jnp.asarray(values, jnp.float32)
    real_rows, width = values.shape
    if split:
        values = jnp.pad(values, ((0, -real_rows % ROWS_MULTIPLE), (0, 0)))
    num_rows = len(values)
    first, second = (0, 1) if rule == "rowwise_adagrad" else (width, width)
    return SparseTable(
        values,
        jnp.zeros((num_rows, first), jnp.float32),
        jnp.zeros((num_rows, second), jnp.float32),
        jnp.zeros(num_rows, jnp.int32),
        real_rows if split else None,
    )


def layout(table: SparseTable) -> PartitionSpec:
    """How a table lies over the devices."""
    return parallel.WHOLE if table.split_rows is None else parallel.BY_ROWS


def gather(table: SparseTable, ids: Array, axis: str | None = None) -> jax.Array:
    """Rows [n, W] of int32 ids [n]; an id equal to the number of rows is padding and gives zeros.

    `axis` inside a step over several devices: the ids are this device's own, and so are the rows that come back.
    """
    if table.split_rows is None:
        return _take(table.values, ids)
    if axis is None:
        return _take(table.values, _own_ids(table, ids, axis))
    found = _take(table.values, _own_ids(table, parallel.gather_over_devices(ids, axis), axis))
    return parallel.scatter_sum_over_devices(found, axis)


def read_rows(table: SparseTable, ids: Array, spread: Parallel) -> jax.Array:
    """Rows [n, W] of ids [n] outside a step, wherever they lie, as an array of this process. All processes must ask."""
    if table.split_rows is None:
        return gather(spread.local(table), ids)
    return spread.local(spread.create(gather, parallel.WHOLE, table, np.asarray(ids)))


def all_rows(table: SparseTable, spread: Parallel) -> np.ndarray:
    """The values [N, W] on the host. A split table is read block by block: no device need hold it whole."""
    if table.split_rows is None:
        return np.asarray(spread.local(table.values))
    rows = np.empty((table.split_rows, table.values.shape[1]), np.float32)
    size = min(len(rows), _BLOCK)
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        block[:] = np.asarray(read_rows(table, np.arange(start, start + size, dtype=np.int32), spread))[: len(block)]
    return rows


class Update(Protocol):
    """One step of a rule on the rows `ids` [n] (N = padding) with row gradients [n, W]."""

    def __call__(
        self,
        table: SparseTable,
        ids: Array,
        gradients: Array,
        *,
        learning_rate: Array | float,
        weight_decay: float = 0.0,
        axis: str | None = None,
    ) -> SparseTable: ...


@dataclasses.dataclass(frozen=True)
class _Touched:
    """The distinct rows of a batch, int32 [n], sorted and filled up with N."""

    rows: jax.Array

    def read(self, column: jax.Array) -> jax.Array:
        return jnp.take(column, self.rows, axis=0, mode="fill", fill_value=0)

    def add(self, column: jax.Array, values: Array | int) -> jax.Array:
        return column.at[self.rows].add(values, mode="drop", unique_indices=True, indices_are_sorted=True)

    def set(self, column: jax.Array, values: Array) -> jax.Array:
        return column.at[self.rows].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)


def _rule(apply: Callable[[SparseTable, _Touched, jax.Array, Array | float, float], SparseTable]) -> Update:
    """An `Update` from what a rule does with the touched rows and their merged gradient [n, W]."""

    @functools.wraps(apply)
    def update(
        table: SparseTable,
        ids: Array,
        gradients: Array,
        *,
        learning_rate: Array | float,
        weight_decay: float = 0.0,
        axis: str | None = None,
    ) -> SparseTable:
        touched, gradient = _merged(table, ids, gradients, axis)
        return apply(table, touched, gradient, learning_rate, weight_decay)

    return update


@_rule
def lazy_adam(
    table: SparseTable, touched: _Touched, gradient: jax.Array, learning_rate: Array | float, weight_decay: float
) -> SparseTable:
    """One Adam step (Kingma & Ba, 2015) on the touched rows; the others stay as they are.

    Gradients of equal ids are summed before they are squared. Each row has its own clock t (its number of updates), so
    the bias correction of a row first met late is that of a first step, not of a late one; rows touched at every step
    behave as under dense Adam. Decay is decoupled (Loshchilov & Hutter, 2019) and as lazy as the update:

        row <- row - lr (m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps) + weight_decay row)
    """
    first = B1 * touched.read(table.first) + (1 - B1) * gradient
    second = B2 * touched.read(table.second) + (1 - B2) * gradient**2
    direction = _adam_direction(first, second, touched.read(table.updates) + 1)
    if weight_decay:
        direction += weight_decay * touched.read(table.values)
    return dataclasses.replace(
        table,
        values=touched.add(table.values, -learning_rate * direction),
        first=touched.set(table.first, first),
        second=touched.set(table.second, second),
        updates=touched.add(table.updates, 1),
    )


@_rule
def rowwise_adagrad(
    table: SparseTable, touched: _Touched, gradient: jax.Array, learning_rate: Array | float, weight_decay: float
) -> SparseTable:
    """One step of Adagrad (Duchi et al., 2011) with one accumulator for each row, as in large embedding tables
    (Gupta et al., "Training recommender systems at scale", 2020): memory N instead of 2 N W.

        G <- G + mean_j g_j^2          row <- row - lr (g / (sqrt(G) + eps) + weight_decay row)
    """
    second = touched.read(table.second) + jnp.mean(gradient**2, axis=1, keepdims=True)
    direction = gradient / (jnp.sqrt(second) + EPSILON)
    if weight_decay:
        direction += weight_decay * touched.read(table.values)
    return dataclasses.replace(
        table,
        values=touched.add(table.values, -learning_rate * direction),
        second=touched.set(table.second, second),
        updates=touched.add(table.updates, 1),
    )


@_rule
def dense_adam(
    table: SparseTable, touched: _Touched, gradient: jax.Array, learning_rate: Array | float, weight_decay: float
) -> SparseTable:
    """Adam over all rows at once, as plain frameworks do it: rows without a gradient move on by their momentum.

    For parity and comparison. Time and memory grow with the table.
    """
    gradient = touched.set(jnp.zeros_like(table.values), gradient)
    first = B1 * table.first + (1 - B1) * gradient
    second = B2 * table.second + (1 - B2) * gradient**2
    direction = _adam_direction(first, second, table.updates + 1) + weight_decay * table.values
    values = table.values - learning_rate * direction
    return dataclasses.replace(table, values=values, first=first, second=second, updates=table.updates + 1)


RULES: dict[TableRule, Update] = {
    "lazy_adam": lazy_adam,
    "rowwise_adagrad": rowwise_adagrad,
    "dense_adam": dense_adam,
}


def _merged(table: SparseTable, ids: Array, gradients: Array, axis: str | None) -> tuple[_Touched, jax.Array]:
    """The rows touched on any device, and the sum of their gradients over the device count, [n, W]."""
    if gradients.shape != (ids.shape[0], table.values.shape[1]):
        raise ValueError(f"gradients {gradients.shape} do not match ids {ids.shape} and rows {table.values.shape}")
    ids, gradients = parallel.gather_over_devices((ids, gradients), axis)
    if table.split_rows is not None:
        ids = _own_ids(table, ids, axis)
    size = ids.shape[0]
    rows, slot = jnp.unique(ids, size=size, fill_value=table.values.shape[0], return_inverse=True)
    gradient = jax.ops.segment_sum(gradients, slot.reshape(-1), num_segments=size) / parallel.axis_size(axis)
    return _Touched(rows), gradient


def _own_ids(table: SparseTable, ids: Array, axis: str | None) -> jax.Array:
    """Row numbers in this device's part of a split table; padding and the rows of other parts get its length."""
    assert table.split_rows is not None
    here = table.values.shape[0]
    own = ids if axis is None else ids - parallel.device_index(axis) * here
    # Not negative: such an index would count from the end.
    return jnp.where((own >= 0) & (own < here) & (ids < table.split_rows), own, here)


def _take(values: jax.Array, ids: Array) -> jax.Array:
    return jnp.take(values, ids, axis=0, mode="fill", fill_value=0.0)


def _adam_direction(first: jax.Array, second: jax.Array, updates: jax.Array) -> jax.Array:
    time = updates.astype(jnp.float32)[:, None]
    return (first / (1 - B1**time)) / (jnp.sqrt(second / (1 - B2**time)) + EPSILON)
