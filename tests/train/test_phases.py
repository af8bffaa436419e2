"""The whole step on a real (tiny) encoder: one body under every wrapper, what trains, what stays."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from ltrec_jax import parallel
from ltrec_jax.data.history import history
from ltrec_jax.train import phases
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.sparse_table import EPSILON, RULES
from ltrec_jax.train.state import WORDS, full_params, merge, partition, trainable_rule


@pytest.fixture(scope="module")
def problem(small_split, small_config):
    model = dataclasses.replace(small_config.model, embedding_dropout=0.5)
    config = dataclasses.replace(small_config, model=model)
    return load_problem(small_split, config, spread=parallel.choose("jit"))


def on(problem, spread, **train):
    config = dataclasses.replace(problem.config, train=dataclasses.replace(problem.config.train, **train))
    return dataclasses.replace(problem, spread=spread, config=config)


DROPPING = {"encoder_dropout": True}
"""All layers, with the encoder's own dropout in embeddings, attention and outputs."""


@pytest.mark.parametrize(
    ("mode", "phase", "train"),
    [
        ("shard_map", "head", {}),
        # Each further one compiles a program of its own.
        pytest.param("pmap", "encoder", DROPPING, marks=pytest.mark.slow),
        pytest.param("shard_map", "encoder", {}, marks=pytest.mark.slow),
        pytest.param("vmap", "encoder", {}, marks=pytest.mark.slow),
        pytest.param("pmap", "encoder", {}, marks=pytest.mark.slow),
        pytest.param("pmap", "head", {}, marks=pytest.mark.slow),
        pytest.param("vmap", "head", {}, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_parameters_of_one(problem, run_steps, mode, phase, train):
    one, rows_of_one = run_steps(on(problem, parallel.choose("jit"), **train), phase)
    many, rows_of_many = run_steps(on(problem, parallel.choose(mode, count=8), **train), phase)
    for a, b in zip(rows_of_one, rows_of_many, strict=True):
        np.testing.assert_allclose(a["squared_error"], b["squared_error"], rtol=1e-4)
        assert a["weight"] == b["weight"]
    # Adam divides by the root of tiny second moments: a last-bit difference of a gradient near zero moves a weight by
    # a share of the learning rate, so weights are compared on that scale.
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("mode", "phase", "train"),
    [
        ("jit", "head", {}),
        pytest.param("jit", "encoder", DROPPING, marks=pytest.mark.slow),
        pytest.param("pmap", "encoder", {}, marks=pytest.mark.slow),
        pytest.param("pmap", "head", {}, marks=pytest.mark.slow),
    ],
)
def test_accumulated_slices_give_the_step_of_the_whole_batch(problem, run_steps, mode, phase, train):
    whole, rows_of_whole = run_steps(on(problem, parallel.choose("jit"), **train), phase)
    spread = parallel.choose(mode, count=None if mode == "jit" else 2)
    sliced, rows_of_sliced = run_steps(on(problem, spread, accumulate=3, **train), phase)
    for a, b in zip(rows_of_whole, rows_of_sliced, strict=True):
        np.testing.assert_allclose(a["squared_error"], b["squared_error"], rtol=1e-4)
        assert a["weight"] == b["weight"]
    for (path, a), b in zip(jax.tree.leaves_with_path(whole), jax.tree.leaves(sliced), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_the_moving_average_is_kept_and_evaluated(problem, prepare):
    settled = on(problem, problem.spread, average=0.5, decay="constant", warmup=0.0)
    prepared = prepare(settled, "encoder")
    key, state = problem.spread.replicate(jax.random.key(0)), prepared.state
    weights = []
    for number in range(3):
        state, _ = prepared.step(state, problem.spread.shard(prepared.source.batch(0, number)), key)
        weights.append(jax.device_get(state.trainable))
    expected = jax.tree.map(lambda *w: np.average(w, axis=0, weights=[0.25, 0.5, 1.0]), *weights)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state.average), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    evaluated = full_params(state)["head"]["projection"]
    np.testing.assert_array_equal(evaluated, state.average["head"]["projection"])
    assert not np.array_equal(evaluated, state.trainable["head"]["projection"])


@pytest.mark.slow
def test_dropout_drops_in_training(problem, run_steps):
    _, with_both = run_steps(on(problem, problem.spread, **DROPPING), "encoder")
    _, with_one = run_steps(problem, "encoder")
    model = dataclasses.replace(problem.config.model, embedding_dropout=0.0)
    plain = dataclasses.replace(problem, config=dataclasses.replace(problem.config, model=model))
    _, without = run_steps(plain, "encoder")
    assert len({float(rows[0]["squared_error"]) for rows in (with_both, with_one, without)}) == 3


@pytest.mark.parametrize("what", ["all", "top:1", pytest.param("bias", marks=pytest.mark.slow), "none"])
def test_only_what_is_named_learns(problem, prepare, run_steps, what):
    changed = on(problem, problem.spread, trainable=what)
    before = traverse_util.flatten_dict(full_params(prepare(changed, "encoder").state))
    before = {path: np.asarray(leaf) for path, leaf in before.items()}
    after = traverse_util.flatten_dict(full_params(run_steps(changed, "encoder")[0]))
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    encoder = {path for path in moved if path[0] == "encoder"}
    assert {("head", "projection"), ("head", "text_bias")} <= moved
    assert ("head", "mu") not in moved
    assert ("head", "center") not in moved
    if what == "none":
        assert not encoder
    elif what == "bias":
        assert encoder
        assert all(path[-1] == "bias" for path in encoder)
    elif what == "top:1":
        assert encoder
        assert all(path[1:4] == ("encoder", "layer", "1") for path in encoder)
    else:
        assert WORDS in encoder
        assert all(path in encoder for path in before if path[0] == "encoder" and path[-1] == "kernel")


def test_rows_are_no_longer_than_the_texts_need(problem):
    rows = on(problem, problem.spread, row_length=256).batches(with_texts=True).batch(0, 0).token_ids
    assert problem.tokens.lengths.max() <= rows.shape[-1] == 32


@pytest.mark.slow
def test_the_rule_of_the_tables_is_the_configured_one(problem, run_steps):
    by_rule = {rule: run_steps(on(problem, problem.spread, table_optimizer=rule), "encoder")[0] for rule in RULES}
    for name, width in (
        ("users", problem.config.model.embedding_dim + 1),
        ("words", problem.encoder.config.hidden_size),
    ):
        lazy, adagrad, dense = (by_rule[r].tables[name].columns for r in ("lazy_adam", "rowwise_adagrad", "dense_adam"))
        assert lazy.second.shape[1] == dense.second.shape[1] == width
        assert adagrad.second.shape[1] == 1
        assert len(np.unique(lazy.updates)) > 1
        assert np.unique(dense.updates).tolist() == [4]


def test_rows_of_users_and_items_decay_where_they_are_touched(problem, prepare):
    settled = on(problem, problem.spread, warmup=0.0, table_weight_decay=0.25)
    prepared, rate = prepare(settled, "head"), settled.config.train.table_learning_rate
    tables = jax.tree.map(np.array, prepared.state.tables)
    width = tables["items"].widths[0]
    # Item rows start at 0, where decay is not seen.
    tables["items"].cells[:, :width] = 0.5
    before = {name: table.cells.copy() for name, table in tables.items()}
    batch = prepared.source.batch(0, 0)
    state, _ = prepared.step(dataclasses.replace(prepared.state, tables=tables), batch, jax.random.key(0))
    for name, ids in (("users", batch.pair_user[batch.weight > 0]), ("items", batch.item)):
        touched = np.isin(np.arange(len(before[name])), ids)
        assert 0 < touched.sum() < len(touched)
        cells = np.asarray(state.tables[name].cells)
        values, first, second = cells[:, :width], cells[:, width : 2 * width], cells[:, 2 * width : 3 * width]
        # The first step of Adam, from the moments it leaves: m = (1 - b1) g, v = (1 - b2) g^2.
        expected = before[name][:, :width] - rate * (
            (first / 0.1) / (np.sqrt(second / 0.001) + EPSILON) + 0.25 * before[name][:, :width]
        )
        np.testing.assert_allclose(values[touched], expected[touched], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(cells[~touched], before[name][~touched])


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["remat", "scan_layers"])
def test_how_layers_are_run_changes_no_step(problem, run_steps, setting):
    _, plain = run_steps(problem, "encoder")
    _, other = run_steps(on(problem, problem.spread, **{setting: True}), "encoder")
    for one, two in zip(plain, other, strict=True):
        np.testing.assert_allclose(two["squared_error"], one["squared_error"], rtol=1e-3)


def test_words_that_no_text_has_keep_their_bits(problem, run_steps):
    state, _ = run_steps(problem, "encoder")
    used = np.unique(problem.tokens.values)
    unused = np.setdiff1d(np.arange(len(state.tables["words"].values)), [*used, problem.encoder.config.pad_token_id])
    assert len(unused)
    loaded = problem.encoder.params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(state.tables["words"].values[unused], loaded[unused])


def test_the_loss_of_a_step_is_the_formula(problem, prepare):
    """Squared error and gradient of the head phase, against NumPy on the unbatched pairs."""
    prepared = prepare(problem, "head")
    batch = prepared.source.batch(0, 0)
    _, metrics = prepared.step(prepared.state, batch, jax.random.key(0))
    fresh = prepare(problem, "head").state
    head = merge(fresh.trainable, fresh.frozen)["head"]
    z = problem.features_IxE - np.asarray(head["center"])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    users = np.asarray(fresh.tables["users"].values)
    units = prepared.source.units(0, 0)
    real = batch.weight[0] > 0
    user, item = batch.pair_user[0][real], batch.item[0][batch.pair_item[0][real]]
    assert real.sum() == units.size.sum()
    scores = float(head["mu"]) + np.sum(users[user, :-1] * (z @ np.asarray(head["projection"]))[item], axis=1)
    np.testing.assert_allclose(metrics["squared_error"], np.sum((scores - batch.target[0][real]) ** 2), rtol=1e-4)


def test_finished_vectors_score_as_the_step_does(problem, prepare, run_steps):
    state, _ = run_steps(problem, "encoder")
    prepared = prepare(problem, "encoder")
    vectors, pooled = phases.finished_vectors(problem, prepared, state)
    np.testing.assert_array_equal(pooled, prepared.pooled(state, np.arange(problem.dataset.num_items)))
    train = problem.split.train
    unseen = np.setdiff1d(np.arange(problem.dataset.num_items), train.item)
    assert len(unseen) >= 10
    anchors, _ = phases.finished_vectors(
        dataclasses.replace(problem, gate_I=np.zeros_like(problem.gate_I)), prepared, state
    )
    np.testing.assert_array_equal(vectors.item_vectors[unseen], anchors.item_vectors[unseen])
    assert np.isfinite(np.asarray(vectors.score(np.arange(5)))).all()


def test_a_user_without_training_events_has_zeros(problem, prepare):
    rows = np.flatnonzero(problem.split.train.user != 3)
    split = dataclasses.replace(problem.split, train_rows=problem.split.train_rows[rows])
    colder = problem.on(split)
    assert history(split.train, problem.dataset.num_users).counts[3] == 0
    vectors, _ = phases.finished_vectors(colder, prepare(colder, "head"), prepare(colder, "head").state)
    assert not vectors.user_vectors[3].any()
    assert vectors.user_biases[3] == 0


def test_partition_and_merge_are_inverse():
    tree = {"encoder": {"a": {"kernel": 1, "bias": 2}}, "head": {"projection": 3, "mu": 4}}
    chosen, rest = partition(tree, trainable_rule("bias", 2))
    assert chosen == {"encoder": {"a": {"bias": 2}}, "head": {"projection": 3}}
    assert merge(chosen, rest) == tree
    with pytest.raises(ValueError, match="two trees"):
        merge(tree, chosen)
