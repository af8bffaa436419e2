"""A run that was stopped goes on where there are more or fewer devices: the same to the order of sums."""

import dataclasses
import signal

import jax
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.errors import StoppedError
from ltrec_jax.train import phases
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.tracking import Nowhere


class Stops(Nowhere):
    """Asks the run to stop at a step."""

    def write(self, step, metrics):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)


def run(problem, count, place, writer):
    there = dataclasses.replace(problem, spread=parallel.choose("auto", count=count))
    prepared = phases.prepare_encoder(there, problem.config.train.epochs, patience=0, start=None)
    with Checkpoints(place, keep=2) as kept:
        return phases.run(there, prepared, kept, writer)


@pytest.fixture(scope="module")
def problem(small_split, small_config, shallow_encoder):
    # Masks of dropout are drawn on each device for its own part of a batch.
    model = dataclasses.replace(small_config.model, embedding_dropout=0.0)
    encoder = dataclasses.replace(small_config.encoder, name=str(shallow_encoder))
    train = dataclasses.replace(small_config.train, epochs=2, save_minutes=0.0, patience=0, log_every=1)
    config = dataclasses.replace(small_config, model=model, encoder=encoder, train=train)
    return load_problem(small_split, config, spread=parallel.choose("jit"))


@pytest.fixture(scope="module")
def whole(problem, tmp_path_factory):
    return run(problem, 1, tmp_path_factory.mktemp("whole"), Nowhere())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_the_encoder_phase_goes_on_on_other_devices(problem, whole, tmp_path, before, after):
    """By default: pmap on several devices, whole tables, everything learning."""
    assert parallel.choose("auto", count=8).mode == "pmap"
    with pytest.raises(StoppedError, match="at step 4 of"):
        run(problem, before, tmp_path, Stops())
    outcome = run(problem, after, tmp_path, Nowhere())
    assert (outcome.epoch, int(outcome.state.step)) == (whole.epoch, int(whole.state.step))
    np.testing.assert_allclose(outcome.error, whole.error, rtol=1e-4)
    found, expected = ((each.state.trainable, _rows(each.state)) for each in (outcome, whole))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4), found, expected)


def _rows(state):
    return {name: table.values for name, table in state.tables.items()}
