"""Top-N factors whose items are anchored at their texts: a squared error over ALL pairs, solved exactly in turns.

    q_i = x_i + v_i        score = <p_u, q_i>
    minimise  sum_(u,i observed) w_ui (<p_u, q_i> - 1)^2  +  a0 sum_(all u, warm i) <p_u, q_i>^2
            + lam sum_u (n_u + a0 |I|) |p_u|^2  +  lam sum_i (n_i + a0 |U|) |q_i - x_i|^2

|I| items and |U| users with training events, n their numbers of events. No negative is sampled: the second sum goes
through the Gramian of the other side (Hu, Koren & Volinsky, ICDM 2008; the scaled penalties are those of Rendle et al.,
RecSys 2022, at exponent 1). A rare item stays near its text, a frequent one moves away, a never-seen one is its text.
Out of scope: what a cold item takes from its neighbours (`cold_start`), new users (`fold_in`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ltrec_jax.config import WholeDataConfig
from ltrec_jax.errors import UserError
from ltrec_jax.objectives.propensity import popularity_weights
from ltrec_jax.parallel import Parallel, choose
from ltrec_jax.solve import row_solve
from ltrec_jax.solve.row_solve import Block, Blocks
from ltrec_jax.types import Array

_SHORTEST = 32
"""Narrower blocks would only be more programs to compile: a Woodbury solve of 32 entries is cheap at any width."""
_REMEDY = "Raise whole_data.l2 above 0, and see that no text vector is far larger than the others."


@dataclasses.dataclass(frozen=True)
class Solution:
    """User vectors [U, D] (zero without events), item vectors [I, D] (a cold item's is its anchor), float32 or float64.

    `objective`: its value after each half alternation (users, items, users, ...), never rising.
    """

    user_vectors: np.ndarray
    item_vectors: np.ndarray
    objective: tuple[float, ...]


def anchors(features_IxE: np.ndarray, center_E: np.ndarray, scale: float) -> np.ndarray:
    """x_i = scale * (f_i - center) / |f_i - center|, float32 [I, E]; a text at the centre itself has x = 0."""
    shifted = np.asarray(features_IxE, np.float32) - center_E[None, :]
    return scale * shifted / np.maximum(np.linalg.norm(shifted, axis=1, keepdims=True), 1e-6)


def solve(
    user_N: np.ndarray,
    item_N: np.ndarray,
    anchor_IxD: np.ndarray,
    *,
    num_users: int,
    settings: WholeDataConfig,
    weight_N: np.ndarray | None = None,
    start_IxD: np.ndarray | None = None,
    spread: Parallel | None = None,
) -> Solution:
    """Alternate exact solves, users first and last, so that each user vector is a fold-in at the final Q.

    They start at Q = X, or at Q = `start_IxD`: where all anchors are 0 (plain iALS), the start must not be.

    user_N, item_N: the N observed positives, each pair once. `weight_N`: their weights (default: `popularity_weights`
    with `settings.propensity_power`). The arithmetic has the dtype of `anchor_IxD`: float64 needs
    `jax.enable_x64(True)`. Deterministic. No positives, or a singular solve, is a `UserError`.
    """
    if len(user_N) == 0:
        raise UserError("There is no positive event to solve for. Lower the positive rating, or choose another split.")
    spread, dtype = spread or choose(), anchor_IxD.dtype
    counts_I = np.bincount(item_N, minlength=len(anchor_IxD))
    if weight_N is None:
        weight_N = popularity_weights(counts_I, settings.propensity_power)[item_N]
    warm = np.flatnonzero(counts_I)
    place_I = np.zeros(len(anchor_IxD), np.int64)
    place_I[warm] = np.arange(len(warm))
    counts_U = np.bincount(user_N, minlength=num_users)
    width, weight_N = anchor_IxD.shape[1], weight_N.astype(dtype)
    a0, l2 = settings.unobserved_weight, settings.l2
    shape = {"width": width, "shortest": _SHORTEST, "spread": spread}
    users = _Side(
        row_solve.make_blocks(user_N, place_I[item_N], weight_N, num_users, **shape),
        # Without events a row is 0 under any ridge but 0, which it would have where a0 = 0.
        jnp.asarray(np.where(counts_U > 0, l2 * (counts_U + a0 * len(warm)), 1.0), dtype),
        None,
    )
    items = _Side(
        row_solve.make_blocks(place_I[item_N], user_N, weight_N, len(warm), **shape),
        jnp.asarray(l2 * (counts_I[warm] + a0 * np.count_nonzero(counts_U)), dtype),
        jnp.asarray(anchor_IxD[warm]),
    )
    objective: list[float] = []
    q = jnp.asarray((anchor_IxD if start_IxD is None else start_IxD)[warm], dtype)
    item_penalty = _penalty(q, items.ridge_R, items.anchor_RxD)
    with row_solve.one_blas_thread():
        for _ in tqdm.tqdm(range(settings.alternations), "solving", unit="alternation", delay=2.0, leave=False):
            p, user_penalty = _half(users, q, a0, "users", objective, item_penalty)
            q, item_penalty = _half(items, p, a0, "items", objective, user_penalty)
        p, _ = _half(users, q, a0, "users", objective, item_penalty)
    item_vectors = np.array(anchor_IxD)
    item_vectors[warm] = np.asarray(q)
    return Solution(np.asarray(p), item_vectors, tuple(objective))


@dataclasses.dataclass(frozen=True)
class _Side:
    """The rows of one side: their entries, ridge [R] and prior means [R, D] (None: zero)."""

    blocks: Blocks
    ridge_R: jax.Array
    anchor_RxD: jax.Array | None


def _half(
    side: _Side, other_CxD: jax.Array, a0: float, what: str, objective: list[float], other_penalty: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Solve all rows of a side given the other; also their penalty. Appends the objective."""
    gramian_DxD, vectors_DxD, state = _turn(other_CxD, a0, side.ridge_R, side.anchor_RxD)
    turned_RxD, error_R = row_solve.map_rows(_solve_block, state, side.blocks)
    rows_RxD, rest, penalty = _turn_back(turned_RxD, vectors_DxD, gramian_DxD, side.ridge_R, side.anchor_RxD)
    row_solve.require_solved(rows_RxD, what, _REMEDY)
    objective.append(float(jnp.sum(error_R) + rest + penalty + other_penalty))
    return rows_RxD, penalty


@jax.jit
def _turn(
    other_CxD: jax.Array, a0: float, ridge_R: jax.Array, anchor_RxD: jax.Array | None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """a0 times the other side's Gramian, its eigenvectors, and what `_solve_block` needs in their basis."""
    gramian_DxD = a0 * row_solve.gramian(other_CxD)
    values_D, vectors_DxD = row_solve.eigenbasis(gramian_DxD)
    state = {"table": _dot(other_CxD, vectors_DxD), "shared": values_D, "ridge": ridge_R}
    if anchor_RxD is not None:
        state["anchor"] = _dot(anchor_RxD, vectors_DxD)
    return gramian_DxD, vectors_DxD, state


@jax.jit
def _turn_back(
    turned_RxD: jax.Array,
    vectors_DxD: jax.Array,
    gramian_DxD: jax.Array,
    ridge_R: jax.Array,
    anchor_RxD: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rows in their own basis, and two terms of the objective: over all pairs, and the rows' penalty."""
    rows_RxD = _dot(turned_RxD, vectors_DxD.T)
    everywhere = jnp.sum(gramian_DxD * row_solve.gramian(rows_RxD))
    return rows_RxD, everywhere, _penalty(rows_RxD, ridge_R, anchor_RxD)


def _dot(left: Array, right: Array) -> jax.Array:
    return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)


def _penalty(rows_RxD: jax.Array, ridge_R: jax.Array, anchor_RxD: jax.Array | None) -> jax.Array:
    away = rows_RxD if anchor_RxD is None else rows_RxD - anchor_RxD
    return jnp.sum(ridge_R * jnp.sum(away**2, axis=1))


def _solve_block(state: dict[str, Array], block: Block) -> tuple[jax.Array, jax.Array]:
    """Rows in the eigenbasis [B, D], and each row's weighted squared error over its observed entries [B]."""
    table_CxD, weight_BxW, ridge_B = jnp.asarray(state["table"]), block.value, jnp.asarray(state["ridge"])[block.row]
    diagonal_BxD = state["shared"][None, :] + ridge_B[:, None]
    prior_BxD = jnp.zeros_like(diagonal_BxD)
    if "anchor" in state:
        prior_BxD = ridge_B[:, None] * jnp.asarray(state["anchor"])[block.row]
    if block.column.shape[1] < table_CxD.shape[1]:
        right = prior_BxD + row_solve.weighted_target_sum(table_CxD, block, weight_BxW, block.mask)
        solved = row_solve.woodbury_solve(diagonal_BxD, table_CxD, block, weight_BxW, right)
    else:
        left, right = row_solve.normal_equations(table_CxD, block, weight_BxW, block.mask)
        left = left + diagonal_BxD[:, :, None] * jnp.eye(table_CxD.shape[1], dtype=left.dtype)[None]
        solved = row_solve.cholesky_solve(left, prior_BxD + right)
    return solved, row_solve.weighted_squared_error(table_CxD, block, weight_BxW, block.mask, solved)
