"""The host loop on a model of one number, so that every decision can be followed by hand."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.loop import Phase, run_phase
from ltrec_jax.train.pair_loss import RMSE
from ltrec_jax.train.state import TrainState


class Source:
    """Four batches per epoch, each a number that depends on the step alone."""

    steps_per_epoch, units_per_epoch, tokens_per_epoch = 4, 4, 0

    def batch(self, epoch, step):
        from ltrec_jax.train.batches import Batch

        value = np.full((1, 1), epoch * 10.0 + step, np.float32)
        return Batch(*[value] * 6, None, None, None)


class Rows:
    """A metric writer in memory that can do something at a step."""

    def __init__(self, at=None, do=None):
        self.rows, self.at, self.do = [], at, do

    def write(self, step, metrics):
        self.rows.append({"step": step} | metrics)
        if step == self.at and "train_rmse" in metrics:
            self.do()

    def rewind(self, phase, step):
        self.rows = [row for row in self.rows if row["step"] <= step]

    def close(self):
        pass


def step(state, batch, key):
    noise = jax.random.normal(jax.random.fold_in(key, state.step))
    weight = state.trainable["w"] + batch.target[0, 0] + noise
    metrics = {"squared_error": weight**2, "weight": jnp.float32(1), "gradient_norm": jnp.float32(1)}
    return TrainState(state.step + 1, {"w": weight}, {}, {}, ()), metrics


def run(directory, *, epochs=3, errors=None, patience=0, writer=None, step=step):
    known = iter(errors or [])
    state = TrainState(jnp.int32(0), {"w": jnp.float32(0)}, {}, {}, ())
    with Checkpoints(directory, keep=2) as kept:
        return run_phase(
            Phase("head", epochs, patience, log_every=1, figures=RMSE),
            state,
            step=step,
            source=Source(),
            parallel=parallel.choose("jit"),
            key=jax.random.key(1),
            evaluate=(lambda state: next(known)) if errors else None,
            checkpoints=kept,
            writer=writer or Rows(),
        )


def test_the_best_epoch_is_what_comes_out(tmp_path):
    outcome = run(tmp_path, epochs=4, errors=[0.9, 0.5, 0.7, 0.8])
    assert (outcome.epoch, outcome.error, int(outcome.state.step)) == (2, 0.5, 8)


def test_patience_ends_early_and_says_so(tmp_path):
    outcome = run(tmp_path, epochs=9, errors=[0.9, 0.5, 0.7, 0.8, 0.1], patience=2)
    assert (outcome.epoch, outcome.error) == (2, 0.5)
    assert "no better validation error" in outcome.reason


def test_without_validation_the_last_state_comes_out(tmp_path):
    outcome = run(tmp_path)
    assert (outcome.epoch, outcome.error, int(outcome.state.step)) == (3, None, 12)


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_stop_is_saved_and_the_resumed_run_has_the_same_bits(tmp_path, signal_name, at):
    errors = [0.9, 0.5, 0.7]
    whole = Rows()
    expected = run(tmp_path / "whole", errors=errors, writer=whole)
    writer = Rows(at, lambda: os.kill(os.getpid(), getattr(signal, signal_name)))
    with pytest.raises(StoppedError, match=rf"{signal_name} at step {at} of 12.*--resume"):
        run(tmp_path / "cut", errors=errors, writer=writer)
    again = Rows()
    again.rows = writer.rows
    outcome = run(tmp_path / "cut", errors=errors[at // 4 :], writer=again)
    np.testing.assert_array_equal(outcome.state.trainable["w"], expected.state.trainable["w"])
    assert (outcome.epoch, outcome.error) == (expected.epoch, expected.error)
    keep = ("step", "train_rmse", "validation_rmse")
    assert [{k: r[k] for k in keep if k in r} for r in again.rows] == [
        {k: r[k] for k in keep if k in r} for r in whole.rows
    ]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_phase_is_not_run_again(tmp_path):
    run(tmp_path, errors=[0.9, 0.5, 0.7])
    writer = Rows()
    outcome = run(tmp_path, errors=[9.9], writer=writer)
    assert (outcome.epoch, outcome.error) == (2, 0.5)
    assert not writer.rows


def test_a_loss_that_is_not_finite_stops_with_step_and_last_good_checkpoint(tmp_path):
    def explode(state, batch, key):
        after, metrics = step(state, batch, key)
        bad = jnp.where(after.step == 6, jnp.nan, 1.0)
        return after, metrics | {"squared_error": metrics["squared_error"] * bad}

    with pytest.raises(UserError, match=r"no longer finite at step 6 \(head\).*/4\. Lower the learning rate"):
        run(tmp_path, step=explode)


def test_it_says_when_there_is_no_checkpoint_yet(tmp_path):
    def explode(state, batch, key):
        after, metrics = step(state, batch, key)
        return after, metrics | {"gradient_norm": jnp.float32(jnp.inf)}

    with pytest.raises(UserError, match="no checkpoint exists yet"):
        run(tmp_path, step=explode)
