"""The host loop of one phase: steps, progress, evaluation, early stopping, checkpoints, clean interruption, NaN stop.

It knows neither model nor data: it is given a compiled step, a batch source, an `evaluate` function, and `Figures` that
say what the sums of a step mean. Out of scope: what is shown and written meanwhile (`meter`).
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

from ltrec_jax import processes
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.parallel import Parallel
from ltrec_jax.train.batches import Source, prefetch
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.meter import BadLoss, Figures, Meter, Work
from ltrec_jax.train.state import TrainState
from ltrec_jax.types import MetricWriter

Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
Evaluate = Callable[[TrainState], float]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training: how long, how often evaluated (once per epoch), when given up, how it is reported.

    It is saved at the end of every epoch, and between them whenever `save_minutes` have passed since (0: never).
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
    where it was, naming the step, the learning rate and the last good checkpoint.
    """
    best, start = _Best(), 0
    if (restored := checkpoints.restore(state)) is not None:
        state, start = restored.state, restored.step
        best = _Best(**restored.notes["best"]) if restored.notes["best"]["step"] else _Best()
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
    )
    saved = time.monotonic()
    with _stop_signals() as stop, contextlib.closing(meter):
        for number, batch in prefetch(source, start, total, parallel.shard):
            if phase.patience and best.worse >= phase.patience:
                reason = f"no better validation error in {best.worse} evaluations"
                break
            state, metrics = step(state, batch, key)
            done = number + 1
            meter.add(done, batch, metrics)
            settled = done % phase.log_every == 0 or done % per_epoch == 0
            if settled:
                _refuse(meter.flush(), phase, checkpoints)
            error = None
            if done % per_epoch == 0:
                if evaluate is not None:
                    error = processes.of_first(evaluate(state))
                    best.see(done, error)
                    meter.evaluated(done, error)
                checkpoints.save(done, state, {"best": _plain(best)}, best=best.step)
                saved = time.monotonic()
            # Several processes must stop and save at one step: they agree where they wait for figures anyway.
            if not settled and processes.number() > 1:
                continue
            due = 0 < 60 * phase.save_minutes <= time.monotonic() - saved
            stopping, saving = processes.anywhere(bool(stop.asked), due)
            if (stopping or saving) and done % per_epoch:
                # Never saved unseen: what is kept last is good.
                _refuse(meter.flush(), phase, checkpoints)
                checkpoints.save(done, state, {"best": _plain(best)}, best=best.step)
                saved = time.monotonic()
            if stopping:
                checkpoints.wait()
                raise StoppedError(
                    f"Stopped on {stop.asked or 'a signal'} at step {done} of {total} ({phase.name}); all is saved. "
                    "Run the same command with --resume to go on."
                )
        meter.finish()
    if evaluate is None or not best.step:
        return Outcome(state, phase.epochs, None, reason)
    if best.step != int(state.step):
        chosen = checkpoints.restore(state, best.step)
        assert chosen is not None
        state = chosen.state
    return Outcome(state, best.step // per_epoch, best.error, reason)


def _plain(best: _Best) -> dict[str, Any]:
    # Strict JSON has no infinity; step 0 says that nothing has been evaluated yet.
    return dataclasses.asdict(best) | {"error": best.error if math.isfinite(best.error) else None}


def _refuse(bad: BadLoss | None, phase: Phase, checkpoints: Checkpoints) -> None:
    if bad is None:
        return
    checkpoints.wait()
    kept = checkpoints.steps
    good = (
        f"the last good checkpoint is {checkpoints.directory / str(kept[-1])}" if kept else "no checkpoint exists yet"
    )
    rate = f" and learning rate {phase.learning_rate(bad.step - 1):.2g}" if phase.learning_rate else ""
    raise UserError(f"The loss {bad.found} at step {bad.step}{rate} ({phase.name}); {good}. {phase.figures.remedy}")


@dataclasses.dataclass
class _Stop:
    asked: str = ""


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn SIGINT and SIGTERM into a request that the loop honours after the current step. Main thread only."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = signal.Signals(number).name

    previous: dict[int, Any] = {}
    try:
        for caught in (signal.SIGINT, signal.SIGTERM):
            # Raises ValueError outside the main thread, where Python delivers no signals: nothing to restore then.
            with contextlib.suppress(ValueError):
                previous[caught] = signal.signal(caught, ask)
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
