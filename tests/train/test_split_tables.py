"""Tables split by rows over the devices do what replicas do, each device holding its share of them alone."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.train import phases, sparse_table
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.sparse_table import ROWS_MULTIPLE


@pytest.mark.parametrize("rule", sparse_table.RULES)
def test_reads_and_updates_are_those_of_replicas(rule):
    rng = np.random.default_rng(0)
    rows, spread = ROWS_MULTIPLE + 5, parallel.choose("shard_map", count=8)
    values = rng.normal(size=(rows, 3)).astype(np.float32)
    # The last row of one device and the first of the next, both ends of the table, duplicates, padding.
    part = 2 * ROWS_MULTIPLE // 8
    ids = rng.choice(np.array([0, part - 1, part, rows - 1, rows, 7, 7], np.int32), size=(8, 6))
    gradients = rng.normal(size=(8, 6, 3)).astype(np.float32)
    update = sparse_table.RULES[rule]

    def run(table, layout):
        def body(state, batch, key):
            found = sparse_table.gather(state, batch[0], spread.axis)
            after = update(state, *batch, learning_rate=0.1, weight_decay=0.1, axis=spread.axis)
            return after, parallel.gather_over_devices(found, spread.axis)

        step = spread.compile(body, layout=layout, donate=False)
        return step(spread.place(table, layout), spread.shard((ids, gradients)), spread.replicate(jax.random.key(0)))

    split = sparse_table.make_table(values, rule, split=True)
    whole, found_whole = run(sparse_table.make_table(values, rule), parallel.WHOLE)
    parts, found_parts = run(split, sparse_table.layout(split))
    np.testing.assert_array_equal(found_parts, found_whole)
    assert parts.cells.shape[0] == 2 * ROWS_MULTIPLE
    assert {shard.data.shape[0] for shard in parts.cells.addressable_shards} == {part}
    np.testing.assert_array_equal(parts.cells[:rows], whole.cells)
    assert not np.asarray(parts.values[rows:]).any()
    np.testing.assert_array_equal(sparse_table.all_rows(parts, spread), whole.values)
    some = np.array([rows - 1, 0, rows], np.int32)
    np.testing.assert_array_equal(sparse_table.read_rows(parts, some, spread), sparse_table.gather(whole, some))


def test_one_device_reads_and_writes_a_split_table_too():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    split = sparse_table.make_table(values, split=True)
    ids = jnp.array([4, 1, 4], jnp.int32)
    np.testing.assert_array_equal(sparse_table.gather(split, ids), [[0, 0, 0], [3, 4, 5], [0, 0, 0]])
    after = sparse_table.lazy_adam(split, ids, jnp.ones((3, 3)), learning_rate=0.1)
    np.testing.assert_array_equal(after.columns.updates[:6, 0], [0, 1, 0, 0, 0, 0])
    assert after.split_rows == 4


def test_split_tables_need_shard_map():
    assert parallel.choose_for_run("auto", by_rows=True).mode == "shard_map"
    assert parallel.choose_for_run("auto").mode == "pmap"
    with pytest.raises(UserError, match="shard_tables needs"):
        parallel.choose_for_run("pmap", by_rows=True)
    with pytest.raises(ValueError, match="needs shard_map"):
        parallel.choose("pmap").compile(lambda state, batch, key: (state, {}), layout=parallel.BY_ROWS)


@pytest.fixture(scope="module")
def problem(small_split, small_config):
    model = dataclasses.replace(small_config.model, embedding_dropout=0.0)
    train = dataclasses.replace(small_config.train, head_epochs=3, save_minutes=0.0, patience=0)
    return load_problem(
        small_split, dataclasses.replace(small_config, model=model, train=train), spread=parallel.choose("jit")
    )


def on(problem, spread, *, split=True):
    train = dataclasses.replace(problem.config.train, shard_tables=split)
    return dataclasses.replace(problem, spread=spread, config=dataclasses.replace(problem.config, train=train))


class Rows:
    """A metric writer that forgets, and asks the run to stop at a step."""

    def __init__(self, at=None):
        self.at = at

    def write(self, step, metrics):
        if step == self.at:
            signal.raise_signal(signal.SIGTERM)

    def rewind(self, phase, step):
        pass

    def close(self):
        pass


def run(problem, place, stop_at=None):
    prepared = phases.prepare_head(problem, 3, patience=0)
    with Checkpoints(place, keep=2) as kept:
        return prepared, phases.run(problem, prepared, kept, Rows(stop_at))


def test_seven_devices_cannot_share_the_rows_evenly(problem):
    with pytest.raises(UserError, match="evenly over 7 devices"):
        phases.prepare_head(on(problem, parallel.choose("shard_map", count=7)), 1, patience=0)


@pytest.mark.slow
def test_a_run_with_split_tables_goes_on_on_other_devices(problem, tmp_path):
    """Stopped on 8 devices, resumed on 2: as one device with whole tables, and what is deployed is the same."""
    many = on(problem, parallel.choose("shard_map", count=8))
    with pytest.raises(StoppedError):
        run(many, tmp_path / "cut", stop_at=9)
    few = on(problem, parallel.choose("shard_map", count=2))
    prepared, outcome = run(few, tmp_path / "cut")
    vectors, _ = phases.finished_vectors(few, prepared, outcome.state)
    one = on(problem, problem.spread, split=False)
    plain, expected = run(one, tmp_path / "whole")
    wanted, _ = phases.finished_vectors(one, plain, expected.state)
    assert (outcome.epoch, int(outcome.state.step)) == (expected.epoch, int(expected.state.step))
    np.testing.assert_allclose(vectors.user_vectors, wanted.user_vectors, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(vectors.item_vectors, wanted.item_vectors, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(outcome.error, expected.error, rtol=1e-4)
