"""The body of a step on a model of a few numbers, against sums written out in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
