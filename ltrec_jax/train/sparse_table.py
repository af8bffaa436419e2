"""Tables of rows (users, items, words) that are updated only where a batch touched them: lazy Adam.

The gradient of `table[ids]` is dense in JAX, as large as the table. Here the gathered rows are differentiated instead,
duplicates are summed, and only the touched rows and their moments are written back into donated memory, so that the
time and the extra memory of a step do not depend on the number of rows.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ltrec_jax import parallel
from ltrec_jax.types import Array

B1, B2, EPSILON = 0.9, 0.999, 1e-8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseTable:
    """values, first and second moment: float32 [N, W]; updates: int32 [N], how often each row was touched."""

    values: jax.Array
    first: jax.Array
    second: jax.Array
    updates: jax.Array


def make_table(values: Array) -> SparseTable:
    """A table with these values and moments of zero."""
    values = jnp.asarray(values, jnp.float32)
    return SparseTable(values, jnp.zeros_like(values), jnp.zeros_like(values), jnp.zeros(values.shape[0], jnp.int32))


def gather(table: SparseTable, ids: Array) -> jax.Array:
    """Rows [n, W] of int32 ids [n]; an id equal to the number of rows is padding and gives zeros."""
    return jnp.take(table.values, ids, axis=0, mode="fill", fill_value=0.0)


def lazy_adam(
    table: SparseTable,
    ids: Array,
    gradients: Array,
    *,
    learning_rate: Array | float,
    weight_decay: float = 0.0,
    axis: str | None = None,
) -> SparseTable:
    """One Adam step (Kingma & Ba, 2015) on the rows `ids` [n] with row gradients [n, W]; others stay untouched.

    Gradients of equal ids are summed before they are squared. Each row has its own clock t (its number of updates), so
    the bias correction of a row first met late is that of a first step, not of a late one; rows touched at every step
    behave as under dense Adam. Decay is decoupled (Loshchilov & Hutter, 2019) and as lazy as the update:

        row <- row - lr (m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps) + weight_decay row)

    Over a device axis, ids and gradients of all devices are gathered, merged and divided by their count, and every
    replica makes the same update: local gradients are those of the device count times the global mean loss.
    """
    if gradients.shape != (ids.shape[0], table.values.shape[1]):
        raise ValueError(f"gradients {gradients.shape} do not match ids {ids.shape} and rows {table.values.shape}")
    num_rows = table.values.shape[0]
    ids, gradients = parallel.gather_over_devices((ids, gradients), axis)
    rows, slot = jnp.unique(ids, size=ids.shape[0], fill_value=num_rows, return_inverse=True)
    gradient = jax.ops.segment_sum(gradients, slot.reshape(-1), num_segments=ids.shape[0]) / parallel.axis_size(axis)

    def read(column: jax.Array) -> jax.Array:
        return jnp.take(column, rows, axis=0, mode="fill", fill_value=0)

    def at(column: jax.Array, put: str, values: Array | int) -> jax.Array:
        write = getattr(column.at[rows], put)
        return write(values, mode="drop", unique_indices=True, indices_are_sorted=True)

    first = B1 * read(table.first) + (1 - B1) * gradient
    second = B2 * read(table.second) + (1 - B2) * gradient**2
    time = (read(table.updates) + 1).astype(jnp.float32)[:, None]
    direction = (first / (1 - B1**time)) / (jnp.sqrt(second / (1 - B2**time)) + EPSILON)
    if weight_decay:
        direction += weight_decay * read(table.values)
    return SparseTable(
        values=at(table.values, "add", -learning_rate * direction),
        first=at(table.first, "set", first),
        second=at(table.second, "set", second),
        updates=at(table.updates, "add", 1),
    )
