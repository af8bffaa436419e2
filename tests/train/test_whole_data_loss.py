"""Whole data by gradient: a batch of everything is the objective, batches are it in the mean, and users fold in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.bundle import Bundle
from ltrec_jax.errors import UserError
from ltrec_jax.serve import live_users
from ltrec_jax.serve.service import Service
from ltrec_jax.train import schedule, solves
from ltrec_jax.train.fit import fit
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.state import merge
from ltrec_jax.train.whole_data_loss import make_whole_data_loss

A0 = 0.3


def by_gradient(config, **train):
    model = dataclasses.replace(config.model, embedding_dropout=0.0, user_l2=0.02, item_l2=0.02)
    train = dataclasses.replace(config.train, objective="whole_data", **train)
    whole = dataclasses.replace(config.whole_data, unobserved_weight=A0)
    return dataclasses.replace(config, model=model, train=train, whole_data=whole)


@pytest.fixture(scope="module")
def problem(small_split, small_config):
    return load_problem(small_split, by_gradient(small_config, propensity_power=0.3), spread=parallel.choose("jit"))


def with_train(problem, spread=None, **train):
    config = dataclasses.replace(problem.config, train=dataclasses.replace(problem.config.train, **train))
    return dataclasses.replace(problem, config=config, spread=spread or problem.spread)


@pytest.fixture(scope="module")
def world(problem):
    """Item vectors [I, D], biases [I], user vectors [U, D], and the likes with their weights."""
    rng = np.random.default_rng(0)
    num_users, num_items = problem.dataset.num_users, problem.dataset.num_items
    train = problem.split.train
    liked = train.rating >= 4
    counts = np.bincount(train.item[liked], minlength=num_items)
    weight = np.where(counts > 0, np.maximum(counts, 1.0) ** -0.3, 0)
    weight = np.minimum(weight, 10 * counts.max() ** -0.3) * counts.sum() / (weight @ counts)
    q, b, p = rng.normal(size=(num_items, 4)), rng.normal(size=num_items), rng.normal(size=(num_users, 4))
    return {"q": q, "b": b, "p": p}, train.user[liked], train.item[liked], weight[train.item[liked]]


def whole(values, user, item, weight):
    """The sum over likes and over all pairs of users and items with likes, as it is written."""
    scores = values["p"] @ values["q"].T + values["b"][None, :]
    users, items = np.unique(user), np.unique(item)
    observed = jnp.sum(weight * (scores[user, item] - 1) ** 2)
    return observed + A0 * jnp.sum(scores[users][:, items] ** 2)


def of_batch(problem, source, num_items):
    """The loss of one batch as a function of the vectors themselves: the head gives them as they are."""

    class Given:
        def apply(self, variables, pooled):
            return pooled[:, :-1], pooled[:, -1]

    no_penalty = dataclasses.replace(problem.config.model, user_l2=0.0, item_l2=0.0, bias_l2=0.0)
    loss = make_whole_data_loss(
        pooled_texts=lambda params, batch, words, key: params["pooled"],
        head=Given(),
        model=no_penalty,
        unobserved_weight=A0,
        num_items=num_items,
        others=source.others,
        axis=None,
    )

    @jax.jit
    def value(values, batch):
        table = jnp.concatenate([values["q"], values["b"][:, None]], axis=1)
        slot = jnp.minimum(batch.item, num_items - 1)
        params = {"head": None, "pooled": table[slot]}
        users = jnp.minimum(batch.pair_user, len(values["p"]) - 1)
        zeros = jnp.zeros((len(slot), table.shape[1]))
        rows = {"users": jnp.pad(values["p"][users], ((0, 0), (0, 1))), "items": zeros}
        return loss(params, rows, batch, jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(value))


def test_one_batch_of_everything_has_the_value_and_gradient_of_the_objective(problem, world):
    values, *likes = world
    # A dozen likes of an item lie in several chunks, so that slots of one item stand beside each other.
    source = with_train(problem, batch_pairs=100_000, head_pairs_per_item=3).batches(with_texts=False)
    assert source.steps_per_epoch == 1
    batch = jax.tree.map(lambda leaf: leaf[0], source.batch(0, 0))
    assert len(np.unique(batch.item)) < source.units_per_epoch
    values = jax.tree.map(jnp.float32, values)
    found, slope = of_batch(problem, source, problem.dataset.num_items)(values, batch)
    expected, wanted = jax.value_and_grad(lambda v: whole(v, *likes))(values)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name in values:
        np.testing.assert_allclose(slope[name], wanted[name], rtol=1e-3, atol=1e-3 * np.abs(wanted[name]).max())


def test_batches_have_the_gradient_of_the_objective_in_the_mean(problem, world):
    values, *likes = world
    source = with_train(problem, batch_pairs=128, head_pairs_per_item=3).batches(with_texts=False)
    values = jax.tree.map(jnp.float32, values)
    compute = of_batch(problem, source, problem.dataset.num_items)
    epochs, found, slopes = 60, [], []
    for epoch in range(epochs):
        of_steps = [
            compute(values, jax.tree.map(lambda leaf: leaf[0], source.batch(epoch, step)))
            for step in range(source.steps_per_epoch)
        ]
        found.append(sum(float(value) for value, _ in of_steps))
        slopes.append(sum(np.asarray(slope["q"], np.float64) for _, slope in of_steps))
    assert source.steps_per_epoch > 3
    expected, wanted = jax.value_and_grad(lambda v: whole(v, *likes))(values)
    error = np.std(found) / np.sqrt(epochs)
    assert error < 0.01 * expected
    assert abs(np.mean(found) - expected) < 4 * error
    off = np.linalg.norm(np.mean(slopes, axis=0) - wanted["q"])
    chance = np.sqrt(np.var(slopes, axis=0).sum() / epochs)
    assert chance < 0.1 * np.linalg.norm(wanted["q"])
    assert off < 2 * chance


@pytest.mark.slow
def test_eight_devices_take_the_step_of_one(problem, run_steps):
    def step(asked):
        state, (row,) = run_steps(asked, "head", steps=1)
        return merge(state.trainable, {}), row

    (one, row), (many, same) = step(problem), step(with_train(problem, parallel.choose("pmap", count=8)))
    np.testing.assert_allclose(same["loss"], row["loss"], rtol=1e-4)
    np.testing.assert_allclose(same["gradient_norm"], row["gradient_norm"], rtol=1e-3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_a_run_by_gradient_ranks_and_its_users_fold_in(small_split, small_config, tmp_path):
    config = by_gradient(small_config, head_epochs=60, epochs=0, batch_pairs=100_000, table_learning_rate=0.05)
    fit(small_split, config, tmp_path / "run")
    bundle = Bundle.load(tmp_path / "run" / "bundle")
    assert not bundle.predicts_ratings
    assert bundle.vectors.mu == 0
    train = small_split.train
    liked = train.rating >= 4
    scores = np.asarray(bundle.score(np.arange(bundle.num_users)))
    assert scores[train.user[liked], train.item[liked]].mean() > scores.mean() + 0.2
    # A new user with the likes of a training user minimises what that one did in training, to its end.
    rule, v = live_users.rule_of(bundle), bundle.vectors
    service = Service(bundle)
    items, ratings = bundle.history.of(3)
    found = service.users.from_ratings(items.tolist(), ratings.tolist())
    service.close()
    likes = items[ratings >= 4]
    warm = np.unique(train.item[liked])
    q, b = np.asarray(v.item_vectors, np.float64), np.asarray(v.item_biases, np.float64)
    left = q[likes].T @ q[likes] + A0 * q[warm].T @ q[warm] + len(likes) * 0.02 * np.eye(8)
    right = q[likes].T @ (1 - b[likes]) - A0 * q[warm].T @ b[warm]
    np.testing.assert_allclose(found.vector, np.linalg.solve(left, right), rtol=1e-4, atol=1e-5)
    assert np.corrcoef(q @ found.vector, q @ v.user_vectors[3])[0, 1] > 0.9
    assert rule.fresh().solve()[0].shape == (8,)


def lists_on_pairs(config, **changes):
    tuned = {"goal": "whole_data", "steps": "solve_tune_solve", "tune_on": "pairs", "trainable": "top:1", "epochs": 2}
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, **(tuned | changes)))


def test_between_solves_of_whole_data_pairs_are_learnt_from_as_the_solves_do(small_split, small_config):
    asked = load_problem(small_split, lists_on_pairs(small_config))
    found = schedule.on_pairs(asked).config
    user, item = solves.distinct_likes(asked)
    assert found.train.objective == "whole_data"
    assert found.train.propensity_power == asked.config.whole_data.propensity_power
    everyone = len(np.unique(user)) * len(np.unique(item))
    l2, a0 = asked.config.whole_data.l2, asked.config.whole_data.unobserved_weight
    assert found.model.user_l2 * len(user) == pytest.approx(l2 * (len(user) + a0 * everyone))
    by_name = dataclasses.replace(asked.config.train, objective="squared_error")
    kept = dataclasses.replace(asked, config=dataclasses.replace(asked.config, train=by_name))
    assert schedule.on_pairs(kept).config.train.objective == "squared_error"
    assert schedule.on_pairs(kept).config.model == asked.config.model
    for goal in ({"goal": "explicit"}, {"steps": "gradient"}):
        assert not lists_on_pairs(small_config, **goal).solves_on_pairs
    with pytest.raises(UserError, match="objective whole_data: it compares"):
        config = lists_on_pairs(small_config)
        dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=2))


@pytest.mark.slow
def test_clicks_that_are_all_alike_move_the_encoder(small_split, small_config):
    """mu would be 1 and every error 0 if they were learnt from as ratings."""
    events = small_split.dataset.interactions
    clicks = dataclasses.replace(events, rating=np.ones_like(events.rating))
    info = {"template": "the {title}", "scale": [1, 1], "positive_rating": 1}
    dataset = dataclasses.replace(small_split.dataset, interactions=clicks, info=info)
    split = dataclasses.replace(small_split, dataset=dataset)
    bundle = fit(split, lists_on_pairs(small_config))
    before = load_problem(split, small_config).encoder.params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"]
    after = bundle.encoder.params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"]
    # More than the weight decay alone would: 2 epochs of steps at a rate of 0.001 and a decay of 0.01.
    assert np.abs(after - before * (1 - 1e-5)).max() > 1e-4
    train = split.train
    scores = np.asarray(bundle.score(np.arange(bundle.num_users)))
    assert scores[train.user, train.item].mean() > scores.mean() + 0.1
