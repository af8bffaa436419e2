"""Many small least-squares problems at once: one for each row (user or item) of a sparse table of interactions.

Rows are grouped into blocks of static shape by their number of entries; a function solves one block, all devices share
its rows. Everything follows the dtype of its arguments: float32, or float64 under `jax.enable_x64(True)`.

On a CPU a batched Cholesky factorisation or triangular solve (LAPACK, jaxlib 0.10) splits its batch over XLA's threads
and blocks the thread that it runs on until they are done. As many of them at once as there are threads wait for each
other for good; with two cores, two are enough. So no program has two that do not depend on each other, and no two
programs with one are on their way at the same time.
Out of scope: what is minimised (`anchored_als`, `bayes`, `fold_in`).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax.scipy.linalg import cho_solve

from ltrec_jax.errors import UserError
from ltrec_jax.parallel import Parallel, choose, gather_over_devices
from ltrec_jax.types import Array, PyTree

BLOCK_FLOATS = 1 << 23
"""Numbers a block may hold at once for its gathered vectors and its matrices: 32 MB in float32."""
_SLICE = 1024
"""Entries of a row whose vectors are gathered at once: a row with a million entries needs no more memory."""
_EXACT = jax.lax.Precision.HIGHEST


class Block(NamedTuple):
    """B rows of at most W entries: row [B]; column, value, mask [B, W]. `Blocks` adds a leading axis of devices.

    Padding rows have row = number of rows; padding entries have column 0, value 0, mask 0.
    """

    row: Array
    column: Array
    value: Array
    mask: Array


@dataclasses.dataclass(frozen=True)
class Blocks:
    """All rows, each in one block exactly once (rows without entries too). `order_R`: where each row's result lies."""

    blocks: tuple[Block, ...]
    order_R: jax.Array
    spread: Parallel

    @property
    def num_rows(self) -> int:
        return len(self.order_R)


def make_blocks(
    row_N: np.ndarray,
    column_N: np.ndarray,
    value_N: np.ndarray | None,
    num_rows: int,
    *,
    width: int,
    shortest: int = 8,
    spread: Parallel | None = None,
) -> Blocks:
    """Group the N entries of a sparse table by row into blocks of power-of-two width, placed on the devices.

    row_N and column_N integer ids, value_N float (None: ones); entries of a row keep their order. `width` is the number
    of unknowns per row: a block is so small that its gathered vectors [B, W, width] and its matrices
    [B, width, width] stay within 32 MB (float32). `shortest`: the smallest width, fewer shapes to compile where it is
    larger. A row id outside 0..num_rows-1 is `ValueError`.
    """
    spread = spread or choose()
    if len(row_N) and (row_N.min() < 0 or row_N.max() >= num_rows):
        raise ValueError(f"row ids must lie in 0..{num_rows - 1}")
    value_N = np.ones(len(row_N), np.float32) if value_N is None else value_N
    order_N = np.argsort(row_N, kind="stable")
    counts_R = np.bincount(row_N, minlength=num_rows)
    starts_R = np.cumsum(counts_R) - counts_R
    columns_N, values_N = np.asarray(column_N, np.int32)[order_N], np.asarray(value_N)[order_N]
    width_R = _block_widths(counts_R, shortest)
    blocks, placed = [], []
    for wide in np.unique(width_R).tolist():
        rows = np.flatnonzero(width_R == wide)
        size = _block_rows(len(rows), wide, width, spread.count)
        for first in range(0, len(rows), size):
            chosen = rows[first : first + size]
            chosen = np.concatenate([chosen, np.full(size - len(chosen), num_rows)])
            placed.append(chosen)
            blocks.append(_block(chosen, wide, starts_R, counts_R, columns_N, values_N, num_rows))
    where_P = np.concatenate(placed) if placed else np.zeros(0, np.int64)
    order_R = np.zeros(num_rows, np.int32)
    real = where_P < num_rows
    order_R[where_P[real]] = np.flatnonzero(real)
    devices = [Block(*(_by_device(part, spread.count)[spread.share] for part in block)) for block in blocks]
    return Blocks(tuple(spread.shard(block) for block in devices), spread.replicate(order_R), spread)


def block_entries(counts_R: np.ndarray, *, width: int, shortest: int = 8, devices: int = 1) -> int:
    """Entries of all blocks together, padding included, that `make_blocks` makes of rows with these counts."""
    total = 0
    for wide, rows in zip(*np.unique(_block_widths(counts_R, shortest), return_counts=True), strict=True):
        size = _block_rows(int(rows), int(wide), width, devices)
        total += -(-int(rows) // size) * size * int(wide)
    return total


def map_rows(function: Callable[[PyTree, Block], PyTree], state: PyTree, blocks: Blocks) -> PyTree:
    """`function(state, block)` of every block, its results [B, ...] joined and put in the order of the rows: [R, ...].

    The function is compiled once per shape; give the same function object (of a module, not a new closure) each time.
    Each device computes its share of a block's rows, and gets the results of all.
    """
    run = _compiled(function, blocks.spread)
    state = blocks.spread.replicate(state)
    parts = []
    for block in blocks.blocks:
        parts.append(run(state, block))
        if jax.default_backend() == "cpu":  # one program at a time: see the module's docstring
            jax.block_until_ready(parts[-1])
    return jax.tree.map(lambda *found: _joined(found, blocks.order_R), *parts)


def normal_equations(
    table_CxD: Array, block: Block, weight_BxW: Array, target_BxW: Array
) -> tuple[jax.Array, jax.Array]:
    """Left and right sides of weighted least squares for each row: float [B, D, D] and [B, D].

        left_b = sum_w weight_bw q q^T        right_b = sum_w weight_bw target_bw q        q = table[column_bw]

    Weights of padding entries must be 0 (multiply by `block.mask`). Add the prior's precision to the left side.
    """

    def sums(entries: tuple[Array, Array, Array]) -> tuple[jax.Array, jax.Array]:
        column, weight, target = entries
        q_BxWxD = jnp.asarray(table_CxD)[column]
        weighted = q_BxWxD * weight[..., None]
        left = jnp.einsum("bwd,bwe->bde", weighted, q_BxWxD, precision=_EXACT)
        return left, jnp.einsum("bwd,bw->bd", weighted, target, precision=_EXACT)

    return over_slices(sums, (block.column, weight_BxW, target_BxW))


def cholesky_solve(left_BxDxD: Array, right_BxD: Array) -> jax.Array:
    """x_b = left_b^-1 right_b for symmetric positive definite left sides, float [B, D]. NaN where one is singular."""
    factor = jnp.linalg.cholesky(left_BxDxD)
    return cho_solve((factor, True), right_BxD[..., None])[..., 0]


def woodbury_solve(
    diagonal_BxD: Array, table_CxD: Array, block: Block, weight_BxW: Array, right_BxD: Array
) -> jax.Array:
    """x_b = (diag(d_b) + sum_w weight_bw q q^T)^-1 right_b, float [B, D], at a cost of W^2 D instead of W D^2 + D^3.

    Woodbury's identity with S = sqrt(weight) q: x = D^-1 (r - S^T (I + S D^-1 S^T)^-1 S D^-1 r). The table must be
    given in a basis in which the shared part of the left side is diagonal (`eigenbasis`); weights are not negative.
    NaN or infinity where the diagonal has a zero.
    """
    inverse_BxD = 1.0 / jnp.asarray(diagonal_BxD)
    s_BxWxD = jnp.asarray(table_CxD)[block.column] * jnp.sqrt(weight_BxW)[..., None]
    scaled_BxWxD = s_BxWxD * inverse_BxD[:, None, :]
    inner_BxWxW = (
        jnp.einsum("bwd,bvd->bwv", scaled_BxWxD, s_BxWxD, precision=_EXACT)
        + jnp.eye(s_BxWxD.shape[1], dtype=s_BxWxD.dtype)[None]
    )
    across_BxW = jnp.einsum("bwd,bd->bw", scaled_BxWxD, right_BxD, precision=_EXACT)
    back_BxD = jnp.einsum("bwd,bw->bd", scaled_BxWxD, cholesky_solve(inner_BxWxW, across_BxW), precision=_EXACT)
    return inverse_BxD * right_BxD - back_BxD


def weighted_target_sum(table_CxD: Array, block: Block, weight_BxW: Array, target_BxW: Array) -> jax.Array:
    """The right side alone: sum_w weight_bw target_bw table[column_bw], float [B, D]."""

    def total(entries: tuple[Array, Array]) -> jax.Array:
        column, value = entries
        return jnp.einsum("bwd,bw->bd", jnp.asarray(table_CxD)[column], value, precision=_EXACT)

    return over_slices(total, (block.column, weight_BxW * target_BxW))


def weighted_squared_error(
    table_CxD: Array, block: Block, weight_BxW: Array, target_BxW: Array, solution_BxD: Array
) -> jax.Array:
    """What a row's solution leaves: sum_w weight_bw (<x_b, table[column_bw]> - target_bw)^2, float [B]."""

    def error(entries: tuple[Array, Array, Array]) -> jax.Array:
        column, weight, target = entries
        scores = jnp.einsum("bwd,bd->bw", jnp.asarray(table_CxD)[column], solution_BxD, precision=_EXACT)
        return jnp.sum(weight * (scores - target) ** 2, axis=1)

    return over_slices(error, (block.column, weight_BxW, target_BxW))


def gramian(table_CxD: Array) -> jax.Array:
    """sum_c q_c q_c^T, float [D, D]."""
    return jnp.einsum("cd,ce->de", table_CxD, table_CxD, precision=_EXACT)


def eigenbasis(gramian_DxD: Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [D] (not below 0) and eigenvectors [D, D] (columns): in their basis the Gramian is diagonal."""
    values_D, vectors_DxD = jnp.linalg.eigh(gramian_DxD)
    return jnp.maximum(values_D, 0.0), vectors_DxD


def require_solved(solution_RxD: Array, what: str, remedy: str) -> None:
    """`UserError` that names the first row whose solution is not finite: its equations are singular."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(solution_RxD)).reshape(len(solution_RxD), -1).all(axis=1))
    if len(bad):
        raise UserError(
            f"The equations of {len(bad)} {what} are singular (the first: {what} number {bad[0]}). {remedy}"
        )


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """While it lasts, LAPACK calls of this process use one thread.

    XLA hands small factorisations to LAPACK one by one; OpenBLAS wakes all its threads for each of them from a width of
    about 200 on, which on a busy machine costs 4.5 ms instead of 1.3 for 384 and 15 instead of 0.4 for 256.
    """
    return threadpoolctl.threadpool_limits(1, "blas")


def over_slices(function: Callable[[PyTree], PyTree], entries: PyTree) -> PyTree:
    """function(entries [B, W]), summed over slices of W where rows are long: one slice is gathered at a time."""
    rows, wide = jax.tree.leaves(entries)[0].shape
    if wide <= _SLICE:
        return function(entries)
    sliced = jax.tree.map(lambda part: jnp.asarray(part).reshape(rows, -1, _SLICE).swapaxes(0, 1), entries)
    first, rest = jax.tree.map(lambda part: part[0], sliced), jax.tree.map(lambda part: part[1:], sliced)

    def add(sums: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, function(part)), None

    return jax.lax.scan(add, function(first), rest)[0]


def _block_widths(counts_R: np.ndarray, shortest: int) -> np.ndarray:
    return np.maximum(shortest, 1 << np.ceil(np.log2(np.maximum(counts_R, 1))).astype(np.int64))


def _block_rows(rows: int, wide: int, width: int, devices: int) -> int:
    """Rows per block: what the memory allows, no more than there are, a multiple of the devices."""
    matrix = width if wide >= width else min(width, wide)
    per_row = max(min(wide, _SLICE) * width, matrix * matrix, 1)
    allowed = max(devices * BLOCK_FLOATS // per_row, 1)
    size = min(allowed, 1 << (rows - 1).bit_length()) if rows > 1 else 1
    return -(-size // devices) * devices


def _block(
    rows_B: np.ndarray,
    wide: int,
    starts_R: np.ndarray,
    counts_R: np.ndarray,
    columns_N: np.ndarray,
    values_N: np.ndarray,
    num_rows: int,
) -> Block:
    real = rows_B < num_rows
    counts_B = np.where(real, counts_R[np.where(real, rows_B, 0)], 0)
    starts_B = np.where(real, starts_R[np.where(real, rows_B, 0)], 0)
    mask_BxW = np.arange(wide)[None, :] < counts_B[:, None]
    entry_BxW = np.where(mask_BxW, starts_B[:, None] + np.arange(wide)[None, :], 0)
    if len(columns_N) == 0:
        columns_N, values_N = np.zeros(1, np.int32), np.zeros(1, values_N.dtype)
    column = np.where(mask_BxW, columns_N[entry_BxW], 0)
    value = np.where(mask_BxW, values_N[entry_BxW], 0).astype(values_N.dtype)
    return Block(rows_B.astype(np.int32), column, value, mask_BxW.astype(values_N.dtype))


def _by_device(part: Array, devices: int) -> Array:
    return part.reshape(devices, -1, *part.shape[1:])


@functools.lru_cache(maxsize=32)
def _compiled(function: Callable[[PyTree, Block], PyTree], spread: Parallel) -> Callable[[PyTree, Block], PyTree]:
    def body(state: PyTree, block: Block, key: jax.Array) -> tuple[PyTree, PyTree]:
        return {}, gather_over_devices(function(state, block), spread.axis)

    run, key = spread.compile(body, donate=False), spread.replicate(jax.random.key(0))
    return lambda state, block: run(state, block, key)[1]


@jax.jit
def _joined(parts: tuple[jax.Array, ...], order_R: jax.Array) -> jax.Array:
    return jnp.concatenate(parts)[order_R]
