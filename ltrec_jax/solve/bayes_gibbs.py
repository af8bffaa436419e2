"""Gibbs sampling for the model of `bayes_model`: each unknown drawn from its distribution given all others, in turns.

A sweep draws (W_U, Lambda_U), lambda, user rows, a; then the same of the items and g; then alpha. Rows without events
tell nothing about W and Lambda: they are left out there and stand at W x, which is exact and mixes faster.
Out of scope: what is made of the samples (`bayes_served`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from ltrec_jax.solve.bayes_model import RELEVANCE, Side, by_row, design, dot, joined, known, row_numbers
from ltrec_jax.solve.row_solve import Block, normal_equations, weighted_squared_error
from ltrec_jax.types import Array


class Draw(NamedTuple):
    """A side's current sample: rows [R, d], noise precisions (a or g) [R], map W [F, d], lambda of each block [G]."""

    rows: jax.Array
    noise: jax.Array
    map: jax.Array
    relevance: jax.Array


class State(NamedTuple):
    """Everything that changes from sweep to sweep."""

    users: Draw
    items: Draw
    alpha: jax.Array


class Sample(NamedTuple):
    """What a sweep gives to the average: user rows, the item rows' mean given them, both maps, alpha, a [U], g [I]."""

    users: jax.Array
    items: jax.Array
    user_map: jax.Array
    item_map: jax.Array
    alpha: jax.Array
    user_noise: jax.Array
    item_noise: jax.Array


def start(users: Side, items: Side, alpha: Array, key: jax.Array) -> State:
    """Rows drawn from the prior around zero."""
    user_key, item_key = jax.random.split(key)
    return State(_start_side(users, user_key), _start_side(items, item_key), jnp.asarray(alpha))


def sweep(
    state: State,
    sides: tuple[Side, Side],
    blocks: tuple[tuple[Block, ...], tuple[Block, ...]],
    alpha0: tuple[Array, Array],
    key: jax.Array,
    axis: str | None,
) -> tuple[State, Sample]:
    """One draw of everything. alpha0: shape and rate of alpha's prior."""
    users, items = sides
    user_key, item_key, gamma_key = jax.random.split(key, 3)
    alpha_shape = jnp.reshape(alpha0[0] + 0.5 * jnp.sum(items.counts), 1)
    user_gammas, item_gammas, alpha_gamma = _gammas(gamma_key, _shapes(users), _shapes(items), (alpha_shape,))
    user_draw, _, _ = _draw_side(users, state.users, state.items, state.alpha, blocks[0], user_gammas, user_key, axis)
    item_draw, item_mean, error_I = _draw_side(
        items, state.items, user_draw, state.alpha, blocks[1], item_gammas, item_key, axis
    )
    alpha = alpha_gamma[0][0] / (alpha0[1] + 0.5 * jnp.sum(item_draw.noise * error_I))
    sample = Sample(user_draw.rows, item_mean, user_draw.map, item_draw.map, alpha, user_draw.noise, item_draw.noise)
    return State(user_draw, item_draw, alpha), sample


def _shapes(side: Side) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shapes of a side's Gamma draws: Bartlett's squares [d], lambda [G], noise [R]: the same in all sweeps."""
    width = len(side.scatter)
    freedom = side.freedom + jnp.sum(known(side))
    squares = 0.5 * (freedom - jnp.arange(width, dtype=freedom.dtype))
    return squares, RELEVANCE[0] + 0.5 * width * jnp.sum(side.member, axis=0), side.noise + 0.5 * side.counts


def _gammas(key: jax.Array, *groups: tuple[jax.Array, ...]) -> list[list[jax.Array]]:
    """Draws of Gamma(shape, 1) for all shapes of a sweep at once: one sampler to compile and to run."""
    shapes = [shape for group in groups for shape in group]
    drawn = iter(jnp.split(jax.random.gamma(key, jnp.concatenate(shapes)), np.cumsum([len(x) for x in shapes])[:-1]))
    return [[next(drawn) for _ in group] for group in groups]


def _draw_side(
    side: Side,
    own: Draw,
    other: Draw,
    alpha: Array,
    blocks: tuple[Block, ...],
    gammas: list[jax.Array],
    key: jax.Array,
    axis: str | None,
) -> tuple[Draw, jax.Array, jax.Array]:
    """The side drawn anew, the conditional mean of its rows, and each row's squared error [R], weighted by the other
    side's noise precisions."""
    map_key, row_key = jax.random.split(key)
    squares, relevance, noise = gammas
    map_FxD, precision = _draw_prior(side, own, squares, map_key)
    size_F = jnp.sum(map_FxD * dot(map_FxD, precision), axis=1)
    relevance = relevance / (RELEVANCE[1] + 0.5 * dot(side.member.T, size_F))
    rows, mean, error = _draw_rows(side, own.noise, other, map_FxD, precision, alpha, blocks, row_key, axis)
    noise = noise / (side.noise + 0.5 * alpha * error)
    return Draw(rows, noise, map_FxD, relevance), mean, error


def _draw_prior(side: Side, own: Draw, squares: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """W [F, d] and Lambda [d, d], jointly, given the rows with events."""
    map_key, triangle_key = jax.random.split(key)
    weight_F = dot(side.member, own.relevance)
    lower = jnp.linalg.cholesky(side.gram + jnp.diag(weight_F))
    found = cho_solve((lower, True), dot(side.warm.T, own.rows))
    rest = (own.rows - dot(side.features, found)) * known(side)[:, None]
    scatter = side.scatter + dot(rest.T, rest) + dot(found.T * weight_F[None, :], found)
    # Lambda = root root^T with root = scatter^-1/2 T, T Bartlett's triangle.
    triangle = jnp.tril(jax.random.normal(triangle_key, scatter.shape, scatter.dtype), -1)
    triangle = triangle + jnp.diag(jnp.sqrt(2.0 * squares))
    root = solve_triangular(jnp.linalg.cholesky(scatter), triangle, lower=True, trans="T")
    precision = dot(root, root.T)
    normal = jax.random.normal(map_key, found.shape, found.dtype)
    # Rows of W have covariance Lambda^-1 = root^-T root^-1, columns inv(lower lower^T).
    across = solve_triangular(lower, normal, lower=True, trans="T")
    return found + jnp.linalg.solve(root.T, across.T).T, precision


def _draw_rows(
    side: Side,
    noise_R: Array,
    other: Draw,
    map_FxD: jax.Array,
    precision: jax.Array,
    alpha: Array,
    blocks: tuple[Block, ...],
    key: jax.Array,
    axis: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    table, bias, num_rows = design(other.rows), other.rows[:, 0], len(side.counts)
    row = row_numbers(blocks)
    here = jnp.minimum(row, num_rows - 1)
    weights = [other.noise[block.column] * block.mask for block in blocks]
    targets = [(block.value - bias[block.column]) * block.mask for block in blocks]
    sums = [normal_equations(table, *entries) for entries in zip(blocks, weights, targets, strict=True)]
    left, right = joined([left for left, _ in sums]), joined([right for _, right in sums])
    scale = (alpha * noise_R)[here]
    lower = jnp.linalg.cholesky(precision[None] + scale[:, None, None] * left)
    target = dot(dot(side.features, map_FxD)[here], precision) + scale[:, None] * right
    normal = jax.random.normal(key, (num_rows, len(precision)), table.dtype) * known(side)[:, None]
    # mean = L^-T L^-1 target and drawn = mean + L^-T normal, one solve after the other: two at a time can deadlock
    # (`row_solve`).
    forward = solve_triangular(lower, target[..., None], lower=True)
    both = jnp.concatenate([forward, forward + normal[here][..., None]], axis=-1)
    mean, drawn = jnp.moveaxis(solve_triangular(lower, both, lower=True, trans="T"), -1, 0)
    errors, first = [], 0
    for block, weight, goal in zip(blocks, weights, targets, strict=True):
        solution = drawn[first : first + len(block.row)]
        errors.append(weighted_squared_error(table, block, weight, goal, solution))
        first += len(block.row)
    rows, mean, error = (by_row(part, row, num_rows, axis) for part in (drawn, mean, joined(errors)))
    return rows, mean, error


def _start_side(side: Side, key: jax.Array) -> Draw:
    sd = jnp.sqrt(jnp.diag(side.scatter))
    rows = jax.random.normal(key, (len(side.counts), len(sd)), sd.dtype) * sd[None, :] * known(side)[:, None]
    columns, blocks = side.member.shape
    return Draw(
        rows, jnp.ones(len(rows), sd.dtype), jnp.zeros((columns, len(sd)), sd.dtype), jnp.ones(blocks, sd.dtype)
    )
