"""Blocks hold every entry once; both ways to solve agree with NumPy, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.errors import UserError
from ltrec_jax.solve import row_solve

ROWS, COLUMNS, WIDTH = 30, 50, 6


@pytest.fixture(scope="module")
def entries():
    """Row, column, value: row 3 has no entry, row 0 has 40, the others few."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 7, ROWS)
    counts[0], counts[3] = 40, 0
    row = rng.permutation(np.repeat(np.arange(ROWS), counts))
    return row, rng.integers(0, COLUMNS, len(row)), rng.normal(size=len(row))


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(1).normal(size=(COLUMNS, WIDTH))


def ridge(state, block):
    left, right = row_solve.normal_equations(state["q"], block, 2.0 * block.mask, block.value)
    return row_solve.cholesky_solve(left + state["prior"][None], right)


def ridge_by_woodbury(state, block):
    weight = 2.0 * block.mask
    right = row_solve.weighted_target_sum(state["q"], block, weight, block.value)
    diagonal = jnp.broadcast_to(state["diagonal"][None], right.shape)
    return row_solve.woodbury_solve(diagonal, state["q"], block, weight, right)


def oracle(entries, table, prior):
    row, column, value = entries
    answer = np.zeros((ROWS, WIDTH))
    for r in range(ROWS):
        q, y = table[column[row == r]], value[row == r]
        answer[r] = np.linalg.solve(2.0 * q.T @ q + prior, 2.0 * q.T @ y)
    return answer


@pytest.mark.parametrize("mode", ["jit", "pmap", "shard_map"])
def test_every_row_is_solved_on_any_devices(entries, table, mode):
    spread = parallel.choose(mode, count=1 if mode == "jit" else 4)
    with jax.enable_x64(True):
        blocks = row_solve.make_blocks(*entries, ROWS, width=WIDTH, spread=spread)
        found = row_solve.map_rows(ridge, {"q": table, "prior": 0.5 * np.eye(WIDTH)}, blocks)
    np.testing.assert_allclose(found, oracle(entries, table, 0.5 * np.eye(WIDTH)), rtol=1e-9)


def test_blocks_hold_every_entry_once_in_its_order(entries):
    row, column, value = entries
    blocks = row_solve.make_blocks(row, column, value, ROWS, width=WIDTH)
    for r in range(ROWS):
        found = [
            (np.asarray(b.column)[d, i][np.asarray(b.mask)[d, i] > 0], np.asarray(b.value)[d, i])
            for b in blocks.blocks
            for d, i in np.argwhere(np.asarray(b.row) == r)
        ]
        assert len(found) == 1
        np.testing.assert_array_equal(found[0][0], column[row == r])
        np.testing.assert_allclose(found[0][1][: (row == r).sum()], value[row == r], rtol=1e-6)


def test_woodbury_equals_cholesky_in_the_eigenbasis(entries, table):
    with jax.enable_x64(True):
        prior = row_solve.gramian(table) * 0.1 + 0.3 * np.eye(WIDTH)
        values, vectors = row_solve.eigenbasis(prior)
        spread = parallel.choose("jit")
        blocks = row_solve.make_blocks(*entries, ROWS, width=WIDTH, spread=spread)
        direct = row_solve.map_rows(ridge, {"q": table, "prior": prior}, blocks)
        turned = row_solve.map_rows(ridge_by_woodbury, {"q": table @ vectors, "diagonal": values}, blocks)
        np.testing.assert_allclose(turned @ vectors.T, direct, rtol=1e-8)


def test_a_long_row_is_summed_in_slices(monkeypatch, entries, table):
    monkeypatch.setattr(row_solve, "_SLICE", 8)
    blocks = row_solve.make_blocks(*entries, ROWS, width=WIDTH, spread=parallel.choose("jit"))
    long = next(b for b in blocks.blocks if b.column.shape[-1] == 64)
    block = row_solve.Block(*(part[0] for part in long))
    left, right = row_solve.normal_equations(table.astype(np.float32), block, block.mask, block.value)
    row, column, value = entries
    q = table[column[row == 0]]
    np.testing.assert_allclose(left[0], q.T @ q, rtol=1e-5)
    np.testing.assert_allclose(right[0], q.T @ value[row == 0], rtol=1e-4, atol=1e-5)


def test_blocks_are_bounded(entries, monkeypatch):
    monkeypatch.setattr(row_solve, "BLOCK_FLOATS", 400)
    blocks = row_solve.make_blocks(*entries, ROWS, width=WIDTH, spread=parallel.choose("jit"))
    assert max(b.column.size * WIDTH for b in blocks.blocks if b.column.shape[-1] == 8) <= 400
    assert len({b.column.shape for b in blocks.blocks}) == len({b.column.shape[-1] for b in blocks.blocks})


def test_a_singular_row_is_named(entries, table):
    blocks = row_solve.make_blocks(*entries, ROWS, width=WIDTH, spread=parallel.choose("jit"))
    state = {"q": np.zeros_like(table, np.float32), "prior": np.zeros((WIDTH, WIDTH), np.float32)}
    with pytest.raises(UserError, match=r"users are singular \(the first: users number 0\). Raise x\."):
        row_solve.require_solved(row_solve.map_rows(ridge, state, blocks), "users", "Raise x.")


def test_wrong_row_ids_are_refused_and_no_entries_are_fine(table):
    with pytest.raises(ValueError, match=r"0\.\.2"):
        row_solve.make_blocks(np.array([3]), np.array([0]), None, 3, width=2)
    none = np.zeros(0, np.int64)
    blocks = row_solve.make_blocks(none, none, None, 3, width=WIDTH, spread=parallel.choose("jit"))
    state = {"q": table.astype(np.float32), "prior": np.eye(WIDTH, dtype=np.float32)}
    np.testing.assert_array_equal(row_solve.map_rows(ridge, state, blocks), np.zeros((3, WIDTH)))
