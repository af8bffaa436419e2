"""The mean of many low-rank predictions as one pair of tables: mean_s P_s Q_s^T, without a matrix of users x items.

Kept is a truncated singular value decomposition of the running sum; samples are merged into it by thin QR of tall
tables. Served is its leading part, so that a score stays mu + b_u + b_i + <p, q>.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ltrec_jax.solve.bayes_model import dot


class LowRank(NamedTuple):
    """Sum over samples of P_s Q_s^T ~ left diag(values) right^T: left [U, R] and right [I, R] orthonormal.

    left_map [F_U, R] and right_map [F_I, R] carry linear maps along: sum_s W_s Q_s^T ~ left_map right^T for the users'
    maps, sum_s P_s W_s^T ~ left right_map^T for the items'. `dropped` sums the squares of the singular values that were
    cut off (each merge's); sqrt(dropped) bounds no norm but says the size of what is lost.
    """

    left: jax.Array
    values: jax.Array
    right: jax.Array
    left_map: jax.Array
    right_map: jax.Array
    dropped: jax.Array


def empty(sizes: tuple[int, int, int, int], rank: int, dtype: jnp.dtype) -> LowRank:
    """No samples yet. sizes: U, I, F_U, F_I."""
    left, right, left_map, right_map = (jnp.zeros((size, rank), dtype) for size in sizes)
    return LowRank(left, jnp.zeros(rank, dtype), right, left_map, right_map, jnp.zeros((), dtype))


@jax.jit
def add(sum_: LowRank, p: jax.Array, q: jax.Array, user_map: jax.Array, item_map: jax.Array) -> LowRank:
    """The sum with S samples more: p [S, U, D], q [S, I, D], user_map [S, F_U, D], item_map [S, F_I, D].

    The samples' products enter exactly; of the singular values of the new sum the leading R are kept.
    """
    rank = len(sum_.values)
    tall_left = jnp.concatenate([sum_.left * sum_.values[None, :], _side_by_side(p)], axis=1)
    tall_right = jnp.concatenate([sum_.right, _side_by_side(q)], axis=1)
    basis_left, root_left = jnp.linalg.qr(tall_left)
    basis_right, root_right = jnp.linalg.qr(tall_right)
    u, values, vt = jnp.linalg.svd(dot(root_left, root_right.T))
    left, right = dot(basis_left, u[:, :rank]), dot(basis_right, vt[:rank].T)
    left_map = dot(sum_.left_map, dot(sum_.right.T, right)) + _mapped(user_map, q, right)
    right_map = dot(sum_.right_map, dot(sum_.left.T, left)) + _mapped(item_map, p, left)
    return LowRank(left, values[:rank], right, left_map, right_map, sum_.dropped + jnp.sum(values[rank:] ** 2))


def served(sum_: LowRank, samples: int, rank: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """p [U, D], q [I, D] and the maps [F_U, D], [F_I, D] of features to them, D = rank, of the mean of the samples.

    <p, q> is the best approximation of that rank (in the sum of squares) to what was kept of the mean. Directions
    without weight, and those that a small catalogue does not have, are zero.
    """
    values = sum_.values[:rank] / samples
    root = jnp.sqrt(values)
    inverse = jnp.where(values > 1e-12, 1.0 / jnp.maximum(root, 1e-6), 0.0) / samples

    def scaled(table: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.pad(table[:, :rank] * scale[None, :], ((0, 0), (0, rank - len(scale))))

    return (
        scaled(sum_.left, root),
        scaled(sum_.right, root),
        scaled(sum_.left_map, inverse),
        scaled(sum_.right_map, inverse),
    )


def _side_by_side(tables_SxRxD: jax.Array) -> jax.Array:
    samples, rows, width = tables_SxRxD.shape
    return tables_SxRxD.transpose(1, 0, 2).reshape(rows, samples * width)


def _mapped(maps_SxFxD: jax.Array, tables_SxRxD: jax.Array, basis_RxK: jax.Array) -> jax.Array:
    inner = jnp.einsum("srd,rk->sdk", tables_SxRxD, basis_RxK, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("sfd,sdk->fk", maps_SxFxD, inner, precision=jax.lax.Precision.HIGHEST)
