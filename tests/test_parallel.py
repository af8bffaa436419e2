import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.errors import UserError

MODES = ("pmap", "shard_map", "vmap")


def gradient_body(axis):
    """w <- w - mean over all rows of d/dw (w x - y)^2 / 2, as the training step does it: locally, then the mean."""

    def body(state, batch, key):
        x, y = batch
        gradient = jax.grad(lambda w: jnp.mean((x @ w - y) ** 2) / 2)(state)
        gradient = parallel.mean_over_devices(gradient, axis)
        return state - gradient, {"norm": jnp.linalg.norm(gradient)}

    return body


@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_take_the_step_of_one(mode):
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(16, 3)), rng.normal(size=16), rng.normal(size=3)
    x, y, w = (np.asarray(v, np.float32) for v in (x, y, w))
    expected = w - (x.T @ (x @ w - y)) / 16
    spread = parallel.choose(mode, count=8)
    step = spread.compile(gradient_body(spread.axis), donate=False)
    state, metrics = step(
        spread.replicate(w), spread.shard((x.reshape(8, 2, 3), y.reshape(8, 2))), spread.replicate(jax.random.key(0))
    )
    np.testing.assert_allclose(state, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["norm"], np.linalg.norm(w - expected), rtol=1e-5)


def test_one_device_runs_under_jit_and_several_under_pmap():
    assert parallel.choose("auto", count=1).mode == "jit"
    assert parallel.choose("auto").mode == "pmap"
    assert parallel.choose("auto").count == 8


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(UserError, match="JAX sees 8"):
        parallel.choose("pmap", count=9)


def test_hardware_names_what_decides_speed():
    found = parallel.describe_hardware()
    assert found["platform"] == "cpu"
    assert found["jax"] == jax.__version__
    assert found["processor"]


def test_a_state_split_by_rows_is_updated_where_it_lies():
    spread = parallel.choose("shard_map", count=8)
    state = {"whole": np.ones(3, np.float32), "rows": np.arange(16, dtype=np.float32)}
    layout = {"whole": parallel.WHOLE, "rows": parallel.BY_ROWS}

    def body(state, batch, key):
        return state | {"rows": state["rows"] + parallel.device_index(spread.axis)}, {}

    placed = spread.place(state, layout)
    after, _ = spread.compile(body, layout=layout)(placed, spread.shard(np.zeros((8, 1))), jax.random.key(0))
    np.testing.assert_array_equal(after["rows"], np.arange(16) + np.arange(16) // 2)
    assert {shard.data.shape for shard in after["rows"].addressable_shards} == {(2,)}
    made = spread.create(lambda: jnp.zeros(16), parallel.BY_ROWS)
    assert {shard.data.shape for shard in made.addressable_shards} == {(2,)}


def test_one_process_takes_all_slices_of_a_batch():
    spread = parallel.choose("pmap", count=4)
    assert not spread.several_processes
    assert range(spread.count)[spread.share] == range(4)
