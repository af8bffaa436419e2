"""The host loop of one phase: steps, progress, evaluation, early stopping, checkpoints, clean interruption, NaN stop.

It knows neither model nor data: it is given a compiled step, a batch source, an `evaluate` function, and `Figures` that
say what the sums of a step mean. Out of scope: what is shown and written meanwhile (`meter`).
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax import processes
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.parallel import Parallel
from ltrec_jax.train import stopping
from ltrec_jax.train.batches import Source, prefetch
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.meter import Figures, Meter, Work
from ltrec_jax.train.state import TrainState
from ltrec_jax.types import MetricWriter

Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
Evaluate = Callable[[TrainState], float]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training: how long, how often evaluated (once per epoch), when given up, how it is reported.

    It is saved at the end of every epoch, and between them whenever `save_minutes` have passed since (0: never). A kill
    loses one such interval at most, and the step under way.
    `learning_rate` of a step (from 0) and `work` are what is told of them; None: nothing.
    """

    name: str
    epochs: int
    patience: int
    log_every: int
    figures: Figures
    save_minutes: float = 10.0
    learning_rate: Callable[[int], float] | None = None
    work: Work | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The chosen state, its epoch (counted from 1) and validation error (None without validation), and why it ended."""

    state: TrainState
    epoch: int
    error: float | None
    reason: str


@dataclasses.dataclass
class _Best:
    """What early stopping remembers; saved as the notes of every checkpoint."""

    step: int = 0
    error: float = math.inf
    worse: int = 0

    def see(self, step: int, error: float) -> None:
        if error < self.error:
            self.step, self.error, self.worse = step, error, 0
        else:
            self.worse += 1


def run_phase(
    phase: Phase,
    state: TrainState,
    *,
    step: Step,
    source: Source,
    parallel: Parallel,
    key: jax.Array,
    evaluate: Evaluate | None,
    checkpoints: Checkpoints,
    writer: MetricWriter,
) -> Outcome:
    """Train for `phase.epochs`, resuming from the newest checkpoint if there is one, and return the best state.

    Same seed and devices: the same bits, resumed or not. Without `evaluate` the last state is the outcome. Raises
    `StoppedError` after saving on SIGINT or SIGTERM, and `UserError` when the loss is no longer finite, or far from
    where it was, or the validation error or what is learnt no longer finite, naming the step, the learning rate and the
    last good checkpoint: one from which a loss has been computed that was good.
    """
    best, start, first_loss = _Best(), 0, math.inf
    if (restored := checkpoints.restore(state)) is not None:
        state, start = restored.state, restored.step
        best = _Best(**restored.notes["best"]) if restored.notes["best"]["step"] else _Best()
        first_loss = restored.notes.get("first_loss") or math.inf
    # A phase that begins anew writes its row of step 0 again.
    writer.rewind(phase.name, start or -1)
    per_epoch = source.steps_per_epoch
    total = phase.epochs * per_epoch
    reason = "all epochs done"
    meter = Meter(
        phase.name,
        phase.figures,
        source,
        writer,
        start=start,
        total=total,
        learning_rate=phase.learning_rate,
        work=phase.work,
        first_loss=first_loss,
    )

    def look() -> None:
        """Wait for the steps so far; refuse a bad loss."""
        if (bad := meter.flush()) is not None:
            raise _refusal(f"The loss {bad.found}", bad.step, phase, checkpoints, seen=bad.step - 1)

    def save(step: int) -> None:
        # The losses seen were computed before the last update, which may have broken what is saved.
        if any(processes.anywhere(not _finite(state))):
            raise _refusal("What is learnt is no longer finite", step, phase, checkpoints, seen=step)
        checkpoints.save(step, state, {"best": _plain(best), "first_loss": _json(meter.first_loss)}, best=best.step)

    def stopped() -> StoppedError:
        checkpoints.wait()
        return StoppedError(
            f"Stopped on {stop.asked or 'a signal'} at step {done} of {total} ({phase.name}); all is saved. "
            f"{stopping.RESUME}"
        )

    saved, done = time.monotonic(), start
    with stopping.deferred() as stop, contextlib.closing(meter):
        for number, batch in prefetch(source, start, total, parallel.shard):
            if phase.patience and best.worse >= phase.patience:
                reason = f"no better validation error in {best.worse} evaluations"
                break
            state, metrics = step(state, batch, key)
            # A save goes on while the next step runs, and ends before the one after: a kill in between would cost two
            # intervals.
            checkpoints.wait()
            done = number + 1
            meter.add(done, batch, metrics)
            settled = done % phase.log_every == 0 or done % per_epoch == 0
            if settled:
                look()
            if done % per_epoch == 0:
                if evaluate is not None:
                    error = processes.of_first(evaluate(state))
                    if not math.isfinite(error):
                        raise _refusal("The validation error is no longer finite", done, phase, checkpoints, seen=done)
                    best.see(done, error)
                    meter.evaluated(done, error)
                save(done)
                saved = time.monotonic()
            # Several processes must stop and save at one step: they agree where they wait for figures anyway.
            if not settled and processes.number() > 1:
                continue
            due = 0 < 60 * phase.save_minutes <= time.monotonic() - saved
            asked, saving = processes.anywhere(bool(stop.asked), due)
            if (asked or saving) and done % per_epoch:
                look()
                save(done)
                saved = time.monotonic()
            if asked:
                raise stopped()
        meter.finish()
        # What came after the last step: its figures are the last ones, and what measures the machine takes seconds.
        if any(processes.anywhere(bool(stop.asked))):
            raise stopped()
    if evaluate is None or not best.step:
        return Outcome(state, phase.epochs, None, reason)
    if best.step != int(state.step):
        chosen = checkpoints.restore(state, best.step)
        assert chosen is not None
        state = chosen.state
    return Outcome(state, best.step // per_epoch, best.error, reason)


def _plain(best: _Best) -> dict[str, Any]:
    # Step 0 says that nothing has been evaluated yet.
    return dataclasses.asdict(best) | {"error": _json(best.error)}


def _json(number: float) -> float | None:
    # Strict JSON has no infinity.
    return number if math.isfinite(number) else None


def _finite(state: TrainState) -> bool:
    """Whether all that learns is finite: sums on the host, where a save copies it anyway. Nothing is compiled."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(
            bool(np.isfinite(np.sum(part.data)))
            for leaf in jax.tree.leaves((state.trainable, state.tables))
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
            for part in (leaf.addressable_shards[:1] if leaf.is_fully_replicated else leaf.addressable_shards)
        )


def _refusal(what: str, step: int, phase: Phase, checkpoints: Checkpoints, *, seen: int) -> UserError:
    """`seen`: the last step with a good loss. A checkpoint is called good if one of those was computed from it."""
    checkpoints.wait()
    kept = checkpoints.steps
    good = [checkpoint for checkpoint in kept if checkpoint < seen]
    told = (
        f"the last good checkpoint is {checkpoints.directory / str(good[-1])}"
        if good
        else f"the checkpoint {checkpoints.directory / str(kept[-1])} came just before and is not known to be good"
        if kept
        else "no checkpoint exists yet"
    )
    rate = f" and learning rate {phase.learning_rate(step - 1):.2g}" if phase.learning_rate else ""
    return UserError(f"{what} at step {step}{rate} ({phase.name}); {told}. {phase.figures.remedy}")
