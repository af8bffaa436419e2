import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ltrec_jax import parallel
from ltrec_jax.train import sparse_table


def table(rows=6, width=3, seed=0):
    return sparse_table.make_table(np.random.default_rng(seed).normal(size=(rows, width)))


def dense_adam(values, gradients, learning_rate, weight_decay=0.0):
    optimizer = optax.adamw(learning_rate, eps=sparse_table.EPSILON, weight_decay=weight_decay)
    state = optimizer.init(values)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, values)
        values = optax.apply_updates(values, updates)
    return values


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rows_touched_at_every_step_behave_as_under_dense_adam(weight_decay):
    start, ids = table(), jnp.array([4, 1], jnp.int32)
    rng = np.random.default_rng(1)
    steps = [jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(4)]
    ours = start
    for rows in steps:
        ours = sparse_table.lazy_adam(ours, ids, rows, learning_rate=0.1, weight_decay=weight_decay)
    theirs = dense_adam(start.values, [jnp.zeros((6, 3)).at[ids].add(r) for r in steps], 0.1, weight_decay)
    np.testing.assert_allclose(ours.values[ids], theirs[ids], rtol=1e-5, atol=1e-6)


def test_dense_adam_is_dense_adam():
    start, rng = table(), np.random.default_rng(3)
    ours, dense = sparse_table.make_table(start.values, "dense_adam"), []
    for _ in range(4):
        ids = jnp.asarray(rng.integers(0, 7, 5), jnp.int32)  # 6 is padding
        rows = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
        ours = sparse_table.dense_adam(ours, ids, rows, learning_rate=0.1, weight_decay=0.2)
        dense.append(jnp.zeros((6, 3)).at[ids].add(rows, mode="drop"))
    np.testing.assert_allclose(ours.values, dense_adam(start.values, dense, 0.1, 0.2), rtol=1e-5, atol=1e-6)


def test_sparse_adam_is_adam_on_what_was_touched_with_the_clock_of_the_table():
    ours, rng = table(), np.random.default_rng(5)
    expected, first, second = np.array(ours.values, np.float64), np.zeros((6, 3)), np.zeros((6, 3))
    for time, row in enumerate((1, 1, 4, 1, 4), start=1):  # row 4 is first met at the third update
        gradient = rng.normal(size=(1, 3)).astype(np.float32)
        ours = sparse_table.sparse_adam(ours, jnp.array([row], jnp.int32), gradient, learning_rate=0.1)
        first[row] = 0.9 * first[row] + 0.1 * gradient[0]
        second[row] = 0.999 * second[row] + 0.001 * gradient[0] ** 2
        size = np.sqrt(second[row] / (1 - 0.999**time)) + sparse_table.EPSILON
        expected[row] -= 0.1 * first[row] / (1 - 0.9**time) / size
    np.testing.assert_allclose(ours.values, expected, rtol=1e-4)
    assert float(ours.clock) == 5


def test_rowwise_adagrad_by_hand():
    ours = sparse_table.make_table(table().values, "rowwise_adagrad")
    expected, sums = np.array(ours.values), np.zeros(6)
    rng = np.random.default_rng(4)
    for _ in range(3):
        ids, rows = np.array([1, 4, 1, 6], np.int32), rng.normal(size=(4, 3)).astype(np.float32)
        ours = sparse_table.rowwise_adagrad(ours, ids, rows, learning_rate=0.1, weight_decay=0.2)
        for row, gradient in ((1, rows[0] + rows[2]), (4, rows[1])):
            sums[row] += np.mean(gradient**2)
            expected[row] -= 0.1 * (gradient / (np.sqrt(sums[row]) + sparse_table.EPSILON) + 0.2 * expected[row])
    np.testing.assert_allclose(ours.values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.columns.second[:, 0], sums, rtol=1e-5)
    np.testing.assert_array_equal(ours.columns.updates[:, 0], [0, 3, 0, 0, 3, 0])


def test_untouched_rows_and_their_moments_keep_their_bits():
    start = table()
    after = sparse_table.lazy_adam(start, jnp.array([2], jnp.int32), jnp.ones((1, 3)), learning_rate=0.1)
    others = np.array([0, 1, 3, 4, 5])
    np.testing.assert_array_equal(after.cells[others], start.cells[others])
    assert not np.array_equal(after.values[2], start.values[2])


def test_duplicates_are_summed_before_they_are_squared():
    start = table()
    twice = sparse_table.lazy_adam(start, jnp.array([2, 2], jnp.int32), jnp.ones((2, 3)), learning_rate=0.1)
    once = sparse_table.lazy_adam(start, jnp.array([2], jnp.int32), 2 * jnp.ones((1, 3)), learning_rate=0.1)
    np.testing.assert_allclose(twice.values, once.values, rtol=1e-6)
    np.testing.assert_allclose(twice.columns.second, once.columns.second, rtol=1e-6)
    np.testing.assert_array_equal(twice.columns.updates, once.columns.updates)


def test_padding_reads_zeros_and_writes_nothing():
    start = table()
    padding = jnp.array([6, 6, 6], jnp.int32)
    np.testing.assert_array_equal(sparse_table.gather(start, padding), np.zeros((3, 3)))
    after = sparse_table.lazy_adam(start, padding, jnp.ones((3, 3)), learning_rate=0.1)
    np.testing.assert_array_equal(after.cells, start.cells)


@pytest.mark.parametrize("rule", sparse_table.RULES)
@pytest.mark.parametrize("mode", ["pmap", "shard_map", "vmap"])
def test_every_replica_makes_the_update_of_the_merged_gradient(mode, rule):
    start, update = sparse_table.make_table(table(rows=8).values, rule), sparse_table.RULES[rule]
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 9, size=(4, 5)).astype(np.int32)  # 8 is padding
    gradients = rng.normal(size=(4, 5, 3)).astype(np.float32)
    spread = parallel.choose(mode, count=4)

    def body(state, batch, key):
        rows, gradient = batch
        return update(state, rows, gradient, learning_rate=0.1, axis=spread.axis), {}

    step = spread.compile(body, donate=False)
    after, _ = step(spread.replicate(start), spread.shard((ids, gradients)), jax.random.key(0))
    expected = update(start, ids.reshape(-1), gradients.reshape(-1, 3) / 4, learning_rate=0.1)
    np.testing.assert_allclose(after.values, expected.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.columns.updates, expected.columns.updates)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        sparse_table.lazy_adam(table(), jnp.array([1], jnp.int32), jnp.ones((1, 4)), learning_rate=0.1)


@pytest.mark.parametrize("rule", ["lazy_adam", "sparse_adam", "rowwise_adagrad"])
def test_no_copy_of_a_donated_table_is_compiled(rule):
    rows, width = 4096, 8
    start = sparse_table.make_table(table(rows, width).values, rule)
    update = jax.jit(lambda t, i, g: sparse_table.RULES[rule](t, i, g, learning_rate=0.1), donate_argnums=0)
    ids, gradients = jnp.arange(16, dtype=jnp.int32), jnp.ones((16, width))
    memory = update.lower(start, ids, gradients).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * width * 4
