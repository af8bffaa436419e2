"""Tables of rows (users, items, words) that are updated only where a batch touched them.

The gradient of `table[ids]` is dense in JAX, as large as the table. Here the gathered rows are differentiated instead,
duplicates are summed, and only the touched rows and their moments are written back into donated memory, so that the
time and the extra memory of a step do not depend on the number of rows.

Every rule has the signature of `lazy_adam`. Over a device axis, ids and gradients of all devices are gathered, merged
and divided by their count, and every replica makes the same update: local gradients are those of the device count times
the global mean loss.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from ltrec_jax import parallel
from ltrec_jax.config import TableRule
from ltrec_jax.types import Array

B1, B2, EPSILON = 0.9, 0.999, 1e-8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseTable:
    """values float32 [N, W]; what the rule remembers; updates int32 [N], how often each row was updated.

    Adam: first and second moment [N, W]. Row-wise Adagrad: no first moment [N, 0], a sum of squares per row [N, 1].
    """

    values: jax.Array
    first: jax.Array
    second: jax.Array
    updates: jax.Array


def make_table(values: Array, rule: TableRule = "lazy_adam") -> SparseTable:
    """A table with these values that has seen nothing yet."""
    values = jnp.asarray(values, jnp.float32)
    num_rows, width = values.shape
    first, second = (0, 1) if rule == "rowwise_adagrad" else (width, width)
    return SparseTable(
        values,
        jnp.zeros((num_rows, first), jnp.float32),
        jnp.zeros((num_rows, second), jnp.float32),
        jnp.zeros(num_rows, jnp.int32),
    )


def gather(table: SparseTable, ids: Array) -> jax.Array:
    """Rows [n, W] of int32 ids [n]; an id equal to the number of rows is padding and gives zeros."""
    return jnp.take(table.values, ids, axis=0, mode="fill", fill_value=0.0)


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
    return SparseTable(
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
    return SparseTable(
        values=touched.add(table.values, -learning_rate * direction),
        first=table.first,
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
    return SparseTable(table.values - learning_rate * direction, first, second, table.updates + 1)


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
    size = ids.shape[0]
    rows, slot = jnp.unique(ids, size=size, fill_value=table.values.shape[0], return_inverse=True)
    gradient = jax.ops.segment_sum(gradients, slot.reshape(-1), num_segments=size) / parallel.axis_size(axis)
    return _Touched(rows), gradient


def _adam_direction(first: jax.Array, second: jax.Array, updates: jax.Array) -> jax.Array:
    time = updates.astype(jnp.float32)[:, None]
    return (first / (1 - B1**time)) / (jnp.sqrt(second / (1 - B2**time)) + EPSILON)
