"""The host loop on a model of one number, so that every decision can be followed by hand."""

import dataclasses
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
from ltrec_jax.train.meter import Work
from ltrec_jax.train.pair_loss import RMSE
from ltrec_jax.train.state import TrainState


class Source:
    """Four batches per epoch, each a number that depends on the step alone."""

    steps_per_epoch, units_per_epoch, tokens_per_epoch, user_encodings_per_epoch = 4, 4, 0, 0

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


def run(directory, *, epochs=3, errors=None, patience=0, writer=None, step=step, keep=2, **more):
    known = iter(errors or [])
    state = TrainState(jnp.int32(0), {"w": jnp.float32(5)}, {}, {}, ())
    with Checkpoints(directory, keep=keep) as kept:
        return run_phase(
            Phase("head", epochs, patience, **({"log_every": 1, "figures": RMSE} | more)),
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


def test_of_equal_epochs_the_first_comes_out(tmp_path):
    outcome = run(tmp_path, epochs=5, errors=[0.5, 0.5, 0.6, 0.5, 0.7])
    assert (outcome.epoch, outcome.error, int(outcome.state.step)) == (1, 0.5, 4)


def test_patience_ends_early_and_says_so(tmp_path):
    outcome = run(tmp_path, epochs=9, errors=[0.9, 0.5, 0.7, 0.8, 0.1], patience=2)
    assert (outcome.epoch, outcome.error) == (2, 0.5)
    assert "no better validation error" in outcome.reason


def test_without_validation_the_last_state_comes_out(tmp_path):
    outcome = run(tmp_path)
    assert (outcome.epoch, outcome.error, int(outcome.state.step)) == (3, None, 12)


@pytest.mark.parametrize(("minutes", "expected"), [(1e-9, [3, 4]), (0.0, [4])])
def test_a_run_is_saved_by_time_within_an_epoch(tmp_path, minutes, expected):
    run(tmp_path, epochs=1, save_minutes=minutes)
    with Checkpoints(tmp_path, keep=2) as kept:
        assert kept.steps == expected


def test_a_kill_at_any_row_would_lose_one_interval(tmp_path):
    class Looks(Rows):
        def write(self, step, metrics):
            newest = max((int(path.name) for path in tmp_path.glob("*") if path.name.isdecimal()), default=0)
            lost.append(step - newest)

    lost = []
    run(tmp_path, epochs=4, writer=Looks())
    assert max(lost) == Source.steps_per_epoch


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


def test_a_stop_after_the_last_step_is_honoured(tmp_path):
    """What a machine can do is measured at the end of a phase: seconds in which a signal may come."""
    work = Work(2e9, lambda: signal.raise_signal(signal.SIGTERM) or 1e12)
    with pytest.raises(StoppedError, match=r"SIGTERM at step 12 of 12 \(head\); all is saved"):
        run(tmp_path, work=work)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    outcome = run(tmp_path, work=work)
    assert int(outcome.state.step) == 12


def test_a_finished_phase_is_not_run_again(tmp_path):
    run(tmp_path, errors=[0.9, 0.5, 0.7])
    writer = Rows()
    outcome = run(tmp_path, errors=[9.9], writer=writer)
    assert (outcome.epoch, outcome.error) == (2, 0.5)
    assert not writer.rows


@pytest.mark.parametrize(
    ("factor", "what"), [(np.nan, "is no longer finite"), (1e6, r"has exploded \(from .* to .*\)")]
)
def test_a_bad_loss_stops_with_step_rate_and_last_good_checkpoint(tmp_path, factor, what):
    def explode(state, batch, key):
        after, metrics = step(state, batch, key)
        bad = jnp.where(after.step == 6, factor, 1.0)
        return after, metrics | {"squared_error": metrics["squared_error"] * bad}

    told = rf"The loss {what} at step 6 and learning rate 0.25 \(head\); .*/4\. Lower the learning rate"
    # Two steps per row: the step is named that is bad, not the one at which it was seen.
    for log_every in (1, 4):
        with pytest.raises(UserError, match=told):
            run(tmp_path / str(log_every), step=explode, log_every=log_every, learning_rate=lambda step: 0.05 * step)


def test_what_is_saved_between_has_been_looked_at(tmp_path):
    """A save that falls due where the loss has not been read yet reads it first."""

    def explode(state, batch, key):
        after, metrics = step(state, batch, key)
        return after, metrics | {"squared_error": jnp.where(after.step == 6, jnp.nan, 1.0)}

    with pytest.raises(UserError, match=r"at step 6 \(head\).*/4\."):
        run(tmp_path, step=explode, log_every=100, save_minutes=1e-9)
    with Checkpoints(tmp_path, keep=2) as kept:
        assert kept.steps == [4, 5]


def test_a_checkpoint_is_called_good_when_a_good_loss_was_computed_from_it(tmp_path):
    """The update of step 8 wrecks the weights: the loss of step 8 was good still, that of step 9 is not."""

    def wreck(state, batch, key):
        after, metrics = step(state, batch, key)
        bad = state.step == 8
        return after, metrics | {"squared_error": jnp.where(bad, jnp.nan, 1.0)}

    with pytest.raises(UserError, match=r"The loss is no longer finite at step 9 .*last good checkpoint is .*/4\."):
        run(tmp_path / "more", step=wreck)
    # Resumed, it fails again and does not take back what it said.
    with pytest.raises(UserError, match=r"The loss is no longer finite at step 9 .*last good checkpoint is .*/4\."):
        run(tmp_path / "more", step=wreck)
    with pytest.raises(UserError, match=r"the checkpoint .*/8 came just before and is not known to be good"):
        run(tmp_path / "one", step=wreck, keep=1)


@pytest.mark.parametrize("where", ["trainable", "tables"])
def test_what_is_not_finite_is_never_saved(tmp_path, where):
    def wreck(state, batch, key):
        after, metrics = step(state, batch, key)
        value = jnp.where(after.step == 8, jnp.inf, 1.0)
        return dataclasses.replace(after, **{where: {"w": jnp.stack([after.trainable["w"], value])[None]}}), metrics

    def start(state, batch, key):
        flat = dataclasses.replace(state, trainable={"w": jnp.ravel(state.trainable["w"])[0]}, tables={})
        return wreck(flat, batch, key)

    told = r"What is learnt is no longer finite at step 8 and learning rate 0.35 \(head\).*/4\. Lower the"
    with pytest.raises(UserError, match=told):
        run(tmp_path, step=start, keep=1, learning_rate=lambda step: 0.05 * step)
    with Checkpoints(tmp_path, keep=1) as kept:
        assert kept.steps == [4]


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_a_validation_error_that_is_not_finite_stops(tmp_path, error):
    told = r"The validation error is no longer finite at step 8 and learning rate 0.35 \(head\).*/4\. Lower the"
    with pytest.raises(UserError, match=told):
        run(tmp_path, errors=[0.9, error, 0.7], learning_rate=lambda step: 0.05 * step)
    with Checkpoints(tmp_path, keep=2) as kept:
        assert kept.steps == [4]


def test_a_resumed_run_measures_an_explosion_by_the_same_first_loss(tmp_path):
    """A loss of 500 is an explosion where the first one was 1; the resumed run begins with 20."""

    def grow(state, batch, key):
        after, metrics = step(state, batch, key)
        loss = jnp.select([after.step < 5, after.step < 7], [1.0, 400.0], 250_000.0)
        return after, metrics | {"squared_error": loss}

    told = r"has exploded \(from 1 to 500\) at step 7"
    with pytest.raises(UserError, match=told):
        run(tmp_path / "whole", step=grow)
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", step=grow, writer=Rows(5, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(UserError, match=told):
        run(tmp_path / "cut", step=grow)


def test_the_rows_tell_the_sampler_the_rate_and_the_share_of_the_peak(tmp_path, capsys):
    writer = Rows()
    run(tmp_path, writer=writer, learning_rate=lambda step: 0.5**step, work=Work(2e9, lambda: 1e12))
    assert writer.rows[0] == {
        "step": 0,
        "phase": "head",
        "steps_per_epoch": 4,
        "encodings_per_epoch": 0,
        "tokens_per_epoch": 0,
    }
    assert [row["learning_rate"] for row in writer.rows if "train_rmse" in row] == [0.5**step for step in range(12)]
    last, seconds = writer.rows[-1], sum(row.get("seconds", 0) for row in writer.rows[2:])
    np.testing.assert_allclose(last["model_flops_per_second"], 11 / 4 * 2e9 / seconds, rtol=1e-6)
    np.testing.assert_allclose(last["share_of_peak"], last["model_flops_per_second"] / 1e12)
    assert "of the 1,000 measured for one large product" in capsys.readouterr().err


def test_it_says_when_there_is_no_checkpoint_yet(tmp_path):
    def explode(state, batch, key):
        after, metrics = step(state, batch, key)
        return after, metrics | {"gradient_norm": jnp.float32(jnp.inf)}

    with pytest.raises(UserError, match="no checkpoint exists yet"):
        run(tmp_path, step=explode)
