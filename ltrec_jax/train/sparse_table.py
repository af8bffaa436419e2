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
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax import parallel
from ltrec_jax.config import TableRule
from ltrec_jax.parallel import Parallel
from ltrec_jax.types import Array, PyTree

B1, B2, EPSILON = 0.9, 0.999, 1e-8
ROWS_MULTIPLE = 3840
"""Split tables have a multiple of this many rows (15 * 256): their shape, and so a checkpoint, is the same on every
number of devices that divides it."""
_BLOCK = 1 << 18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseTable:
    """Rows of values and what the rule remembers of each, side by side in `cells` float32 [N, W + first + second + 1].

    A row is one piece of memory: in a table of many GB the first touch of a page costs more than the arithmetic.
    2,048 rows of 7 GB are read and updated in 1.6 ms; with moments in arrays of their own it was 5.8 (2 cores).

    `clock` float32: how often the table was updated. `split_rows`: None where every device holds the table whole; else
    the number of rows that are real. `cells` is longer then (a multiple of `ROWS_MULTIPLE`), and inside a step it is a
    device's own part.
    """

    cells: jax.Array
    clock: jax.Array
    widths: tuple[int, int, int] = dataclasses.field(metadata={"static": True})
    split_rows: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __len__(self) -> int:
        return int(self.cells.shape[0])

    @property
    def columns(self) -> "Columns":
        """The parts of all rows. Each is a copy: what a step reads are rows."""
        return self.parts(self.cells)

    @property
    def values(self) -> jax.Array:
        """float32 [N, W]."""
        return self.cells[:, : self.widths[0]]

    def parts(self, cells: jax.Array) -> "Columns":
        """The parts of some rows of cells."""
        values, first, second = self.widths
        pieces = jnp.split(cells, (values, values + first, values + first + second), axis=1)
        return Columns(*pieces)


class Columns(NamedTuple):
    """Parts of rows: values [n, W]; Adam's moments first, second [n, W]; updates [n, 1], how often they were updated.

    Row-wise Adagrad: no first moment [n, 0], a sum of squares per row [n, 1]. `updates` counts in float32 and stays at
    2^24, where a bias correction has long been 1.
    """

    values: jax.Array
    first: jax.Array
    second: jax.Array
    updates: jax.Array


def make_table(values: Array, rule: TableRule = "lazy_adam", *, split: bool = False) -> SparseTable:
    """A table with these values that has seen nothing yet, whole on every device or to be split by rows."""
    values = jnp.asarray(values, jnp.float32)
    real_rows, width = values.shape
    first, second = (0, 1) if rule == "rowwise_adagrad" else (width, width)
    more_rows = -real_rows % ROWS_MULTIPLE if split else 0
    cells = jnp.pad(values, ((0, more_rows), (0, first + second + 1)))
    return SparseTable(cells, jnp.zeros(()), (width, first, second), real_rows if split else None)


def layout(table: SparseTable) -> PyTree:
    """How a table lies over the devices: a table of partition specifications."""
    rows: Any = parallel.WHOLE if table.split_rows is None else parallel.BY_ROWS
    clock: Any = parallel.WHOLE
    return dataclasses.replace(table, cells=rows, clock=clock)


def gather(table: SparseTable, ids: Array, axis: str | None = None) -> jax.Array:
    """Rows [n, W] of int32 ids [n]; an id equal to the number of rows is padding and gives zeros.

    `axis` inside a step over several devices: the ids are this device's own, and so are the rows that come back.
    """
    if table.split_rows is None:
        return table.parts(_take(table, ids)).values
    if axis is None:
        return table.parts(_take(table, _own_ids(table, ids, axis))).values
    found = _take(table, _own_ids(table, parallel.gather_over_devices(ids, axis), axis))
    return parallel.scatter_sum_over_devices(table.parts(found).values, axis)


def read_rows(table: SparseTable, ids: Array, spread: Parallel) -> jax.Array:
    """Rows [n, W] of ids [n] outside a step, wherever they lie, as an array of this process. All processes must ask."""
    if table.split_rows is None:
        return gather(spread.local(table), ids)
    return spread.local(spread.create(gather, parallel.WHOLE, table, np.asarray(ids)))


def all_rows(table: SparseTable, spread: Parallel) -> np.ndarray:
    """The values [N, W] on the host. A split table is read block by block: no device need hold it whole."""
    if table.split_rows is None:
        return np.asarray(spread.local(table).values)
    rows = np.empty((table.split_rows, table.widths[0]), np.float32)
    size = min(len(rows), _BLOCK)
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        block[:] = np.asarray(read_rows(table, np.arange(start, start + size, dtype=np.int32), spread))[: len(block)]
    return rows


def merged(table: SparseTable, ids: Array, gradients: Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """The distinct rows touched on any device, int32 [n], sorted and filled up with N, and the sum of the gradients of
    each over the device count, [n, W].

    Of a table that is whole on every device, all devices get the same; of a split one, each gets its own rows.
    """
    if gradients.shape != (ids.shape[0], table.widths[0]):
        raise ValueError(f"gradients {gradients.shape} do not match ids {ids.shape} and rows of {table.widths[0]}")
    ids, gradients = parallel.gather_over_devices((ids, gradients), axis)
    if table.split_rows is not None:
        ids = _own_ids(table, ids, axis)
    size = ids.shape[0]
    rows, slot = jnp.unique(ids, size=size, fill_value=len(table), return_inverse=True)
    gradient = jax.ops.segment_sum(gradients, slot.reshape(-1), num_segments=size) / parallel.axis_size(axis)
    return rows, gradient


class Update(Protocol):
    """One step of a rule on the rows `ids` [n] (N = padding) with row gradients [n, W].

    `distinct`: ids and gradients are those that `merged` gave.
    """

    def __call__(
        self,
        table: SparseTable,
        ids: Array,
        gradients: Array,
        *,
        learning_rate: Array | float,
        weight_decay: float = 0.0,
        axis: str | None = None,
        distinct: bool = False,
    ) -> SparseTable: ...


def _rule(apply: Callable[[SparseTable, jax.Array, jax.Array, Array | float, float], SparseTable]) -> Update:
    """An `Update` from what a rule makes of a table, the rows that are touched and their merged gradients [n, W]."""

    @functools.wraps(apply)
    def update(
        table: SparseTable,
        ids: Array,
        gradients: Array,
        *,
        learning_rate: Array | float,
        weight_decay: float = 0.0,
        axis: str | None = None,
        distinct: bool = False,
    ) -> SparseTable:
        rows, gradient = (jnp.asarray(ids), jnp.asarray(gradients)) if distinct else merged(table, ids, gradients, axis)
        return apply(table, rows, gradient, learning_rate, weight_decay)

    return update


def _lazy_rule(step: Callable[[Columns, jax.Array, Array | float, float, jax.Array], Columns]) -> Update:
    """A rule from what it makes of the touched rows alone; its last argument is the number of this update, from 1."""

    @_rule
    @functools.wraps(step)
    def apply(
        table: SparseTable, rows: jax.Array, gradient: jax.Array, learning_rate: Array | float, weight_decay: float
    ) -> SparseTable:
        clock = table.clock + 1
        after = step(table.parts(_take(table, rows)), gradient, learning_rate, weight_decay, clock)
        return dataclasses.replace(table, cells=_put(table.cells, rows, jnp.concatenate(after, axis=1)), clock=clock)

    return apply


@_lazy_rule
def lazy_adam(rows: Columns, gradient: jax.Array, rate: Array | float, decay: float, clock: jax.Array) -> Columns:
    """One Adam step (Kingma & Ba, 2015) on the touched rows; the others stay as they are.

    Gradients of equal ids are summed before they are squared. Each row has its own clock t (its number of updates), so
    the bias correction of a row first met late is that of a first step, not of a late one; rows touched at every step
    behave as under dense Adam. Decay is decoupled (Loshchilov & Hutter, 2019) and as lazy as the update:

        row <- row - lr (m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps) + weight_decay row)
    """
    return _adam(rows, gradient, rate, decay, rows.updates + 1)


@_lazy_rule
def sparse_adam(rows: Columns, gradient: jax.Array, rate: Array | float, decay: float, clock: jax.Array) -> Columns:
    """`lazy_adam` with one clock t for the whole table: its number of updates, as in PyTorch's SparseAdam.

    A row that is first met late, or seldom, is corrected as if its moments had been averaged for long: its step is up
    to (1 - b1) / sqrt(1 - b2) = 3.2 times as large.
    """
    return _adam(rows, gradient, rate, decay, clock)


@_lazy_rule
def rowwise_adagrad(rows: Columns, gradient: jax.Array, rate: Array | float, decay: float, clock: jax.Array) -> Columns:
    """One step of Adagrad (Duchi et al., 2011) with one accumulator for each row, as in large embedding tables
    (Gupta et al., "Training recommender systems at scale", 2020): memory N instead of 2 N W.

        G <- G + mean_j g_j^2          row <- row - lr (g / (sqrt(G) + eps) + weight_decay row)
    """
    second = rows.second + jnp.mean(gradient**2, axis=1, keepdims=True)
    direction = gradient / (jnp.sqrt(second) + EPSILON) + decay * rows.values
    return Columns(rows.values - rate * direction, rows.first, second, rows.updates + 1)


@_rule
def dense_adam(
    table: SparseTable, rows: jax.Array, gradient: jax.Array, learning_rate: Array | float, weight_decay: float
) -> SparseTable:
    """Adam over all rows at once, as plain frameworks do it: rows without a gradient move on by their momentum.

    For parity and comparison. Time and memory grow with the table.
    """
    columns = table.columns
    every = _put(jnp.zeros_like(columns.values), rows, gradient)
    after = _adam(columns, every, learning_rate, weight_decay, table.clock + 1)
    return dataclasses.replace(table, cells=jnp.concatenate(after, axis=1), clock=table.clock + 1)


RULES: dict[TableRule, Update] = {
    "lazy_adam": lazy_adam,
    "sparse_adam": sparse_adam,
    "rowwise_adagrad": rowwise_adagrad,
    "dense_adam": dense_adam,
}


def _adam(
    rows: Columns, gradient: jax.Array, learning_rate: Array | float, weight_decay: float, time: jax.Array
) -> Columns:
    first = B1 * rows.first + (1 - B1) * gradient
    second = B2 * rows.second + (1 - B2) * gradient**2
    direction = (first / (1 - B1**time)) / (jnp.sqrt(second / (1 - B2**time)) + EPSILON) + weight_decay * rows.values
    return Columns(rows.values - learning_rate * direction, first, second, rows.updates + 1)


def _own_ids(table: SparseTable, ids: Array, axis: str | None) -> jax.Array:
    """Row numbers in this device's part of a split table; padding and the rows of other parts get its length."""
    assert table.split_rows is not None
    here = len(table)
    own = ids if axis is None else ids - parallel.device_index(axis) * here
    # Not negative: such an index would count from the end.
    return jnp.where((own >= 0) & (own < here) & (ids < table.split_rows), own, here)


def _take(table: SparseTable, ids: Array) -> jax.Array:
    return jnp.take(table.cells, ids, axis=0, mode="fill", fill_value=0.0)


def _put(cells: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return cells.at[rows].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)
