"""Objectives that only rank, in the same step and loop as the squared error: one step by hand, devices, a whole run."""

import dataclasses

import jax
import numpy as np
import pytest

from ltrec_jax import experiment, parallel
from ltrec_jax.bundle import Bundle
from ltrec_jax.errors import UserError
from ltrec_jax.train.fit import fit
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.state import merge
from ltrec_jax.train.tracking import read_rows


def asking(config, objective, **train):
    by_gradient = dataclasses.replace(config.schedule, steps="gradient")
    train = dataclasses.replace(config.train, objective=objective, **train)
    return dataclasses.replace(config, schedule=by_gradient, train=train)


@pytest.fixture(scope="module")
def problem(small_split, small_config):
    plain = dataclasses.replace(small_config.model, embedding_dropout=0.0)
    config = dataclasses.replace(small_config, model=plain)
    return load_problem(small_split, config, spread=parallel.choose("jit"))


def posed(problem, objective, mode="jit", count=None, **train):
    config = asking(problem.config, objective, **train)
    return dataclasses.replace(problem, config=config, spread=parallel.choose(mode, count=count))


@pytest.mark.parametrize("objective", ["softmax", "bpr"])
def test_the_loss_of_a_step_is_the_formula(problem, prepare, objective):
    """Pair by pair in NumPy: only likes, against the other items of the batch, corrected by their training counts."""
    asked = posed(problem, objective, head_pairs_per_item=2)
    prepared = prepare(asked, "head")
    batch = prepared.source.batch(0, 0)
    fresh = jax.device_get(prepared.state)
    users = np.asarray(fresh.tables["users"].values)[:, :-1].astype(np.float64)
    head = merge(fresh.trainable, fresh.frozen)["head"]
    _, metrics = prepared.step(prepared.state, batch, jax.random.key(0))
    z = problem.features_IxE - head["center"]
    q = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ head["projection"]
    train = problem.split.train
    likes = train.rating >= 4
    chunks = -(-np.bincount(train.item[likes], minlength=problem.dataset.num_items) // 2)
    items = batch.item[0][batch.item[0] < problem.dataset.num_items]
    total, real = 0.0, np.flatnonzero(batch.weight[0])
    for pair in real:
        user, own = batch.pair_user[0][pair], batch.item[0][batch.pair_item[0][pair]]
        assert likes[(train.user == user) & (train.item == own)].all()
        others = items[items != own]
        corrected = q @ users[user] - np.log(np.maximum(chunks, 1) / prepared.source.steps_per_epoch)
        if objective == "softmax":
            total += np.log(np.exp(corrected[others]).sum() + np.exp(corrected[own])) - corrected[own]
        else:
            total += np.log1p(np.exp(corrected[others] - corrected[own])).mean()
    assert len(np.unique(items)) < len(items)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)
    assert metrics["weight"] == len(real)


@pytest.mark.parametrize(
    ("objective", "mode", "phase"),
    [
        ("softmax", "pmap", "head"),
        pytest.param("bpr", "shard_map", "head", marks=pytest.mark.slow),
        pytest.param("softmax", "shard_map", "encoder", marks=pytest.mark.slow),
        pytest.param("bpr", "vmap", "encoder", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_parameters_of_one(problem, run_steps, objective, mode, phase):
    one, rows_of_one = run_steps(posed(problem, objective), phase, steps=3)
    many, rows_of_many = run_steps(posed(problem, objective, mode, 8), phase, steps=3)
    for a, b in zip(rows_of_one, rows_of_many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-3)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))


def test_weights_of_the_pairs_follow_the_training_counts(problem):
    source = posed(problem, "squared_error", propensity_power=0.5, propensity_clip=3.0).batches(with_texts=False)
    counts = np.bincount(problem.split.train.item, minlength=problem.dataset.num_items)
    total = found = 0.0
    for step in range(source.steps_per_epoch):
        batch = jax.tree.map(lambda leaf: leaf[0], source.batch(0, step))
        real = batch.weight > 0
        item = batch.item[batch.pair_item[real]]
        scale = batch.weight[real] / np.minimum((counts.max() / counts[item]) ** 0.5, 3.0)
        np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
        total, found = total + batch.weight.sum(), found + real.sum()
    assert found == len(problem.split.train_rows)
    assert total == pytest.approx(found, rel=1e-5)


def test_weights_of_the_pairs_follow_how_likely_their_ratings_are_observed(problem):
    """Naive Bayes by hand: P(Y=r | O=1) / P(Y=r), where items count alike in the marginal; errors weigh the inverse."""
    asked = posed(problem, "squared_error", propensity="naive_bayes", propensity_clip=0.0)
    train, source = problem.split.train, asked.batches(with_texts=False)
    counts = np.bincount(train.item, minlength=problem.dataset.num_items)
    inverse = {}
    for value in np.unique(train.rating).tolist():
        same = train.rating == value
        marginal = (1 / counts[train.item[same]]).sum() + 1
        inverse[value] = marginal / same.mean()
    total = found = 0.0
    for step in range(source.steps_per_epoch):
        batch = jax.tree.map(lambda leaf: leaf[0], source.batch(0, step))
        real = batch.weight > 0
        scale = batch.weight[real] / np.array([inverse[value] for value in batch.target[real].tolist()])
        np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
        total, found = total + batch.weight.sum(), found + real.sum()
    assert found == len(problem.split.train_rows)
    assert total == pytest.approx(found, rel=1e-5)
    weights = asked.rating_weights()[1]
    assert weights.max() / weights.min() > 1.2
    clipped = posed(problem, "squared_error", propensity="naive_bayes", propensity_clip=1.1).rating_weights()[1]
    assert clipped.max() / clipped.min() == pytest.approx(1.1)


@pytest.fixture(scope="module")
def run(small_split, small_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranking") / "run"
    model = dataclasses.replace(small_config.model, user_l2=0.05)
    config = asking(dataclasses.replace(small_config, model=model), "softmax", head_epochs=8, epochs=0)
    return out, config, fit(small_split, config, out)


def test_a_run_ranks_resumes_and_is_read_back(run, small_split):
    out, config, bundle = run
    rows = [row for row in read_rows(out / "metrics.jsonl") if row["phase"] == "head"]
    losses = [row["train_loss"] for row in rows if "train_loss" in row]
    validation = [row["validation_ndcg_loss"] for row in rows if "validation_ndcg_loss" in row]
    assert losses[-1] < losses[0]
    assert len(validation) == 8
    assert min(validation) < validation[0]
    read = Bundle.load(out / "bundle")
    assert not bundle.predicts_ratings
    assert not read.predicts_ratings
    assert bundle.vectors.mu == 0
    assert not bundle.vectors.user_biases.any()
    again = fit(small_split, config, out, resume=True)
    np.testing.assert_array_equal(again.vectors.item_vectors, read.vectors.item_vectors)
    found = experiment.evaluate(read, small_split, config)
    ours = found.models[experiment.OURS].overall
    assert ours["rmse"].value is None
    assert ours["ndcg@20"].value > found.models[experiment.BIASES].overall["ndcg@20"].value


@pytest.mark.slow
def test_the_encoder_learns_to_rank(small_split, small_config, tmp_path):
    model = dataclasses.replace(small_config.model, user_l2=0.05)
    config = asking(dataclasses.replace(small_config, model=model, refit=True), "bpr", head_epochs=4, epochs=2)
    fit(small_split, config, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert {row["phase"] for row in rows} == {"head", "encoder", "refit head", "refit encoder"}
    losses = [row["train_loss"] for row in rows if row["phase"] == "encoder" and "train_loss" in row]
    first = next(row["train_loss"] for row in rows if row["phase"] == "head" and "train_loss" in row)
    assert losses[-1] < first


def test_what_cannot_be_asked_for(problem, small_config):
    with pytest.raises(UserError, match=r"train\.accumulate must be 1 .* bpr: .* do not see each other's"):
        asking(small_config, "bpr", accumulate=2)
    solve = dataclasses.replace(small_config.schedule, steps="solve")
    with pytest.raises(UserError, match=r"schedule\.steps"):
        dataclasses.replace(asking(small_config, "bpr"), schedule=solve)
    with pytest.raises(UserError, match=r"propensity_clip"):
        asking(small_config, "bpr", propensity_clip=0.5)
    with pytest.raises(UserError, match="take popularity"):
        asking(small_config, "bpr", propensity="naive_bayes")
    with pytest.raises(UserError, match="leave it 0 under naive_bayes"):
        asking(small_config, "squared_error", propensity="naive_bayes", propensity_power=0.5)
    picky = dataclasses.replace(problem.config.evaluation, positive_rating=6.0)
    config = asking(dataclasses.replace(problem.config, evaluation=picky), "softmax")
    with pytest.raises(UserError, match="needs likes"):
        dataclasses.replace(problem, config=config).batches(with_texts=False)
