"""The host loop of one phase: steps, progress, evaluation, early stopping, checkpoints, clean interruption, NaN stop.

It knows neither model nor data: it is given a compiled step, a batch source, an `evaluate` function, and `Figures` that
say what the sums of a step mean.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
from tqdm import tqdm

from ltrec_jax import processes
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.parallel import Parallel
from ltrec_jax.train.batches import Source, prefetch
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.state import TrainState
from ltrec_jax.types import MetricWriter

Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
Evaluate = Callable[[TrainState], float]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a step's sums mean. `of`: sums of metrics -> figures by name, the first of which is the loss that validation
    measures too; `counted`: what a unit of weight is, in the plural; `remedy`: what to do when the loss explodes.
    """

    of: Callable[[Mapping[str, float]], dict[str, float]]
    counted: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training: how long, how often evaluated (once per epoch), when given up, how it is reported.

    It is saved at the end of every epoch, and between them whenever `save_minutes` have passed since (0: never).
    """

    name: str
    epochs: int
    patience: int
    log_every: int
    figures: Figures
    save_minutes: float = 10.0


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
    `StoppedError` after saving on SIGINT or SIGTERM, and `UserError` when the loss is no longer finite, naming the step
    and the last good checkpoint.
    """
    best, start = _Best(), 0
    if (restored := checkpoints.restore(state)) is not None:
        state, start = restored.state, restored.step
        best = _Best(**restored.notes["best"]) if restored.notes["best"]["step"] else _Best()
    writer.rewind(phase.name, start)
    per_epoch = source.steps_per_epoch
    total = phase.epochs * per_epoch
    reason = "all epochs done"
    meter = _Meter(phase, source, writer, start)
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
                _refuse_nan(meter.flush(), phase, done, checkpoints)
            error = None
            if done % per_epoch == 0:
                if evaluate is not None:
                    error = processes.of_first(evaluate(state))
                    best.see(done, error)
                    meter.evaluated(done, error)
                checkpoints.save(done, state, {"best": _plain(best)}, error=error)
                saved = time.monotonic()
            # Several processes must stop and save at one step: they agree where they wait for figures anyway.
            if not settled and processes.number() > 1:
                continue
            due = 0 < 60 * phase.save_minutes <= time.monotonic() - saved
            stopping, saving = processes.anywhere(bool(stop.asked), due)
            if (stopping or saving) and done % per_epoch:
                checkpoints.save(done, state, {"best": _plain(best)})
                saved = time.monotonic()
            if stopping:
                checkpoints.wait()
                raise StoppedError(
                    f"Stopped on {stop.asked or 'a signal'} at step {done} of {total} ({phase.name}); all is saved. "
                    "Run the same command with --resume to go on."
                )
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


def _refuse_nan(figures: list[float], phase: Phase, step: int, checkpoints: Checkpoints) -> None:
    if all(map(math.isfinite, figures)):
        return
    checkpoints.wait()
    kept = checkpoints.steps
    good = (
        f"the last good checkpoint is {checkpoints.directory / str(kept[-1])}" if kept else "no checkpoint exists yet"
    )
    raise UserError(f"The loss is no longer finite at step {step} ({phase.name}); {good}. {phase.figures.remedy}")


class _Meter:
    """Progress bar and metric rows. Device values are fetched once per row, so that steps overlap."""

    def __init__(self, phase: Phase, source: Source, writer: MetricWriter, start: int) -> None:
        self._phase, self._source, self._writer = phase, source, writer
        self._pending: list[dict[str, jax.Array]] = []
        self._step, self._slots = start, 0
        self._bar = tqdm(
            total=phase.epochs * source.steps_per_epoch,
            initial=start,
            desc=f"{phase.name:>8}",
            unit="step",
            file=sys.stderr,
            mininterval=0.5,
            dynamic_ncols=True,
            disable=not processes.is_first(),
        )
        self._validation = self._loss_name = ""
        self._since = time.perf_counter()

    def add(self, step: int, batch: Any, metrics: dict[str, jax.Array]) -> None:
        self._pending.append(metrics)
        if batch.token_ids is not None:
            self._slots += batch.token_ids.size
        self._step = step

    def flush(self) -> list[float]:
        """Write one row of what has been added since the last one; returns the figures that must be finite."""
        fetched = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._since
        sums = {name: float(sum(m[name] for m in fetched)) for name in fetched[0] if name != "gradient_norm"}
        figures, counted = self._phase.figures.of(sums), self._phase.figures.counted
        gradient_norm = float(fetched[-1]["gradient_norm"])
        steps = len(fetched)
        tokens = self._source.tokens_per_epoch / self._source.steps_per_epoch * steps
        texts = self._source.units_per_epoch / self._source.steps_per_epoch * steps if tokens else 0.0
        padding = 1 - tokens / self._slots if self._slots else 0.0
        row: dict[str, Any] = {
            "phase": self._phase.name,
            "epoch": self._step / self._source.steps_per_epoch,
            **{f"train_{name}": value for name, value in figures.items()},
            "gradient_norm": gradient_norm,
            f"{counted.replace(' ', '_')}_seen": round(sums["weight"]),
            "tokens_encoded": round(tokens),
            "padding": padding,
            "seconds": seconds,
        }
        self._writer.write(self._step, row)
        name, loss = next(iter(figures.items()))
        note = f"{name} {loss:.4f}{self._validation}, {sums['weight'] / seconds:,.0f} {counted}/s"
        if tokens:
            note += f", {texts / seconds:,.0f} texts/s, {tokens / seconds:,.0f} tokens/s, padding {padding:.0%}"
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(steps)
        self._loss_name = name
        self._pending, self._slots = [], 0
        self._since = time.perf_counter()
        return [*figures.values(), gradient_norm]

    def evaluated(self, step: int, error: float) -> None:
        self._validation = f" (validation {error:.4f})"
        epoch = step / self._source.steps_per_epoch
        self._writer.write(step, {"phase": self._phase.name, "epoch": epoch, f"validation_{self._loss_name}": error})
        self._since = time.perf_counter()

    def close(self) -> None:
        self._bar.close()


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
