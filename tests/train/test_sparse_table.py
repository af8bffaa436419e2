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


def test_untouched_rows_and_their_moments_keep_their_bits():
    start = table()
    after = sparse_table.lazy_adam(start, jnp.array([2], jnp.int32), jnp.ones((1, 3)), learning_rate=0.1)
    others = np.array([0, 1, 3, 4, 5])
    for name in ("values", "first", "second", "updates"):
        np.testing.assert_array_equal(getattr(after, name)[others], getattr(start, name)[others])
    assert not np.array_equal(after.values[2], start.values[2])


def test_duplicates_are_summed_before_they_are_squared():
    start = table()
    twice = sparse_table.lazy_adam(start, jnp.array([2, 2], jnp.int32), jnp.ones((2, 3)), learning_rate=0.1)
    once = sparse_table.lazy_adam(start, jnp.array([2], jnp.int32), 2 * jnp.ones((1, 3)), learning_rate=0.1)
    np.testing.assert_allclose(twice.values, once.values, rtol=1e-6)
    np.testing.assert_allclose(twice.second, once.second, rtol=1e-6)
    np.testing.assert_array_equal(twice.updates, once.updates)


def test_padding_reads_zeros_and_writes_nothing():
    start = table()
    padding = jnp.array([6, 6, 6], jnp.int32)
    np.testing.assert_array_equal(sparse_table.gather(start, padding), np.zeros((3, 3)))
    after = sparse_table.lazy_adam(start, padding, jnp.ones((3, 3)), learning_rate=0.1)
    for name in ("values", "first", "second", "updates"):
        np.testing.assert_array_equal(getattr(after, name), getattr(start, name))


@pytest.mark.parametrize("mode", ["pmap", "shard_map", "vmap"])
def test_every_replica_makes_the_update_of_the_merged_gradient(mode):
    start = table(rows=8)
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 9, size=(4, 5)).astype(np.int32)  # 8 is padding
    gradients = rng.normal(size=(4, 5, 3)).astype(np.float32)
    spread = parallel.choose(mode, count=4)

    def body(state, batch, key):
        rows, gradient = batch
        return sparse_table.lazy_adam(state, rows, gradient, learning_rate=0.1, axis=spread.axis), {}

    step = spread.compile(body, donate=False)
    after, _ = step(spread.replicate(start), spread.shard((ids, gradients)), jax.random.key(0))
    expected = sparse_table.lazy_adam(start, ids.reshape(-1), gradients.reshape(-1, 3) / 4, learning_rate=0.1)
    np.testing.assert_allclose(after.values, expected.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.updates, expected.updates)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        sparse_table.lazy_adam(table(), jnp.array([1], jnp.int32), jnp.ones((1, 4)), learning_rate=0.1)


def test_no_copy_of_a_donated_table_is_compiled():
    rows, width = 4096, 8
    start = table(rows, width)
    update = jax.jit(lambda t, i, g: sparse_table.lazy_adam(t, i, g, learning_rate=0.1), donate_argnums=0)
    ids, gradients = jnp.arange(16, dtype=jnp.int32), jnp.ones((16, width))
    memory = update.lower(start, ids, gradients).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * width * 4
