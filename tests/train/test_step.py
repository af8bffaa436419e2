"""The body of a step on a model of a few numbers, against sums written out in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ltrec_jax import parallel
from ltrec_jax.train import sparse_table
from ltrec_jax.train.state import TrainState
from ltrec_jax.train.step import make_train_step


class Goal(NamedTuple):
    """What the weights shall become."""

    target: np.ndarray
    weight: np.ndarray


def run_to_goals(targets, *, average, start):
    """The states after each of the goals, which differ, so that the weights keep moving."""

    def loss(params, rows, batch, key):
        error = jnp.sum((params["head"]["projection"] - batch.target) ** 2)
        return error, {"squared_error": error}

    optimizer = optax.sgd(0.2)
    step = jax.jit(make_train_step(loss=loss, optimizer=optimizer, axis=None, schedule=jnp.ones_like, average=average))
    weights = {"head": {"projection": jnp.asarray(start)}}
    state = TrainState(jnp.int32(0), weights, {}, {}, optimizer.init(weights), average=weights)
    states = []
    for target in targets:
        state, _ = step(state, Goal(target, np.ones(1, np.float32)), jax.random.key(0))
        states.append(jax.device_get(state))
    return states


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_moving_average_is_of_the_weights_after_each_step_and_not_of_the_first_ones(decay):
    targets = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    states = run_to_goals(targets, average=decay, start=np.full(3, 1000.0, np.float32))
    weights = np.stack([state.trainable["head"]["projection"] for state in states]).astype(np.float64)
    for number in (1, 2, 7, 40):
        share = decay ** np.arange(number)[::-1]
        expected = share @ weights[:number] / share.sum()
        np.testing.assert_allclose(states[number - 1].average["head"]["projection"], expected, rtol=1e-5)


class Sentences(NamedTuple):
    """Words [n] and users [n] of a slice, with their weights [n]; 7 stands for no word, 5 for no user."""

    words: np.ndarray
    users: np.ndarray
    weight: np.ndarray


def sentence_loss(params, rows, batch, key):
    scores = jnp.sum((rows["words"] @ params["encoder"]["kernel"]) * rows["users"], axis=1)
    error = jnp.sum(batch.weight * (scores - 1.0) ** 2)
    return error, {"squared_error": error}


@pytest.mark.parametrize(
    ("mode", "devices", "clip_norm"), [("jit", 1, 0.0), ("jit", 1, 0.3), ("vmap", 4, 1e3), ("vmap", 4, 0.3)]
)
def test_word_rows_and_dense_leaves_are_clipped_to_one_norm_and_users_are_not(mode, devices, clip_norm):
    rng = np.random.default_rng(0)
    kernel, words, users = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (7, 3), (5, 2)))
    # Words twice in a slice and in two, and rows without any.
    batch = Sentences(
        np.array([0, 2, 2, 4, 2, 7, 6, 0], np.int32),
        np.array([0, 1, 1, 2, 0, 5, 4, 4], np.int32),
        np.array([1, 1, 1, 1, 1, 0, 1, 1], np.float32),
    )
    tables = {"words": sparse_table.make_table(words), "users": sparse_table.make_table(users)}
    weights = {"encoder": {"kernel": jnp.asarray(kernel)}}
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), weights, {}, tables, optimizer.init(weights))
    spread = parallel.choose(mode, count=devices)
    body = make_train_step(
        loss=sentence_loss,
        row_ids=lambda batch: {"words": batch.words, "users": batch.users},
        optimizer=optimizer,
        table_rates={"words": 0.1, "users": 0.1},
        table_decay={"words": 0.0, "users": 0.0},
        schedule=jnp.ones_like,
        axis=spread.axis,
        clip_norm=clip_norm,
        clipped=("words",),
    )
    shards = jax.tree.map(lambda part: part.reshape(devices, -1), batch)
    key = spread.replicate(jax.random.key(0))
    after, metrics = jax.device_get(spread.compile(body, donate=False)(spread.replicate(state), shards, key))

    def mean_loss(kernel, words, users):
        rows = {"words": jnp.take(words, batch.words, axis=0, fill_value=0.0, mode="fill")}
        rows["users"] = jnp.take(users, batch.users, axis=0, fill_value=0.0, mode="fill")
        return sentence_loss({"encoder": {"kernel": kernel}}, rows, batch, None)[0] / 7

    of_kernel, of_words, of_users = map(np.asarray, jax.grad(mean_loss, argnums=(0, 1, 2))(kernel, words, users))
    norm = np.sqrt((of_kernel**2).sum() + (of_words**2).sum())
    assert 0.3 < norm < 1e3
    scale = clip_norm / norm if clip_norm == 0.3 else 1.0
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(after.trainable["encoder"]["kernel"], kernel - scale * of_kernel, rtol=1e-4, atol=1e-5)
    # Adam's first moment is a tenth of the gradient that it was given.
    first = {name: table.cells[:, table.widths[0] : 2 * table.widths[0]] for name, table in after.tables.items()}
    np.testing.assert_allclose(first["words"], 0.1 * scale * of_words, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first["users"], 0.1 * of_users, rtol=1e-4, atol=1e-6)
