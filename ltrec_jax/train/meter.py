"""What a phase tells while it runs: progress bar, rows of metrics, the first step whose loss is no good, FLOP/s.

Out of scope: where the rows go (`tracking`), what is done about a bad loss (`loop`).
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from ltrec_jax import processes
from ltrec_jax.train.batches import Source
from ltrec_jax.types import MetricWriter

_EXPLODED = 100.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a step's sums mean. `of`: sums of metrics -> figures by name, the first of which is the loss; `counted`:
    what a unit of weight is, in the plural; `remedy`: what to do when the loss explodes; `validated`: the name of what
    validation measures, where it is not the loss; `usual`: a loss of usual size, where the first step's may be near 0.
    """

    of: Callable[[Mapping[str, float]], dict[str, float]]
    counted: str
    remedy: str
    validated: str = ""
    usual: float = 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations that the model asks for in an epoch, and the machine's measured peak per second."""

    flops_per_epoch: float
    peak: Callable[[], float]


@dataclasses.dataclass(frozen=True)
class BadLoss:
    """The first step whose loss is not finite, or far above that of the first steps, and what was found."""

    step: int
    found: str


class Meter:
    """Progress bar and metric rows of a phase. Device values are fetched once per row, so that steps overlap."""

    def __init__(
        self,
        name: str,
        figures: Figures,
        source: Source,
        writer: MetricWriter,
        *,
        start: int,
        total: int,
        learning_rate: Callable[[int], float] | None = None,
        work: Work | None = None,
        first_loss: float = math.inf,
    ) -> None:
        """`first_loss`: that of the meter whose steps this one goes on from, if it had any."""
        self._name, self._figures, self._source, self._writer = name, figures, source, writer
        self._learning_rate, self._work = learning_rate, work
        self._pending: list[dict[str, jax.Array]] = []
        self._step, self._slots = start, 0
        self._first_loss = first_loss
        self._rows, self._timed_seconds, self._timed_steps = 0, 0.0, 0
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=f"{name:>8}",
            unit="step",
            file=sys.stderr,
            mininterval=0.5,
            dynamic_ncols=True,
            disable=not processes.is_first(),
        )
        self._validation = self._loss_name = ""
        if start == 0 and total:
            self._describe()
        self._since = time.perf_counter()

    def add(self, step: int, batch: Any, metrics: dict[str, jax.Array]) -> None:
        """A step has been started; nothing is waited for."""
        self._pending.append(metrics)
        self._slots += batch.token_places
        self._step = step

    def flush(self) -> BadLoss | None:
        """Wait for the steps added since the last call and write one row of them."""
        if not self._pending:
            return None
        fetched = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._since
        sums = _summed(fetched)
        figures, counted = self._figures.of(sums), self._figures.counted
        steps = len(fetched)
        tokens = self._source.tokens_per_epoch / self._source.steps_per_epoch * steps
        encodings = self._source.units_per_epoch + self._source.user_encodings_per_epoch
        texts = encodings / self._source.steps_per_epoch * steps if tokens else 0.0
        padding = 1 - tokens / self._slots if self._slots else 0.0
        row: dict[str, Any] = {
            "phase": self._name,
            "epoch": self._step / self._source.steps_per_epoch,
            **{f"train_{name}": value for name, value in figures.items()},
            "gradient_norm": float(fetched[-1]["gradient_norm"]),
            f"{counted.replace(' ', '_')}_seen": round(sums["weight"]),
            "texts_encoded": round(texts),
            "tokens_encoded": round(tokens),
            "padding": padding,
            "seconds": seconds,
        }
        if self._learning_rate is not None:
            row["learning_rate"] = self._learning_rate(self._step - 1)
        self._writer.write(self._step, row)
        name, loss = next(iter(figures.items()))
        note = f"{name} {loss:.4f}{self._validation}, {sums['weight'] / seconds:,.0f} {counted}/s"
        if tokens:
            note += f", {texts / seconds:,.0f} texts/s, {tokens / seconds:,.0f} tokens/s, padding {padding:.0%}"
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(steps)
        self._loss_name = name
        if self._rows:
            self._timed_seconds += seconds
            self._timed_steps += steps
        self._rows += 1
        self._pending, self._slots = [], 0
        self._since = time.perf_counter()
        return self._first_bad(fetched)

    @property
    def first_loss(self) -> float:
        """What an exploded loss is measured against; infinite until a loss has been seen."""
        return self._first_loss

    def evaluated(self, step: int, error: float) -> None:
        """The validation error after a step; the time it took is nobody's."""
        self._validation = f" (validation {error:.4f})"
        epoch, name = step / self._source.steps_per_epoch, self._figures.validated or self._loss_name
        self._writer.write(step, {"phase": self._name, "epoch": epoch, f"validation_{name}": error})
        self._since = time.perf_counter()

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def finish(self) -> None:
        """End the bar and tell how near the model's products came to the machine's peak."""
        self.close()
        # Steps of the first row wait for the compiler.
        if self._work is None or not self._timed_steps:
            return
        rate = self._work.flops_per_epoch * self._timed_steps / self._source.steps_per_epoch / self._timed_seconds
        peak = self._work.peak()
        row = {"phase": self._name, "model_flops_per_second": rate, "matmul_peak": peak, "share_of_peak": rate / peak}
        self._writer.write(self._step, row)
        if processes.is_first():
            print(
                f"{self._name}: the model's products ran at {rate / 1e9:,.0f} GFLOP/s, "
                f"{rate / peak:.0%} of the {peak / 1e9:,.0f} measured for one large product",
                file=sys.stderr,
            )

    def _describe(self) -> None:
        source = self._source
        row = {
            "phase": self._name,
            "steps_per_epoch": source.steps_per_epoch,
            "encodings_per_epoch": source.units_per_epoch if source.tokens_per_epoch else 0,
            "tokens_per_epoch": source.tokens_per_epoch,
        }
        if source.user_encodings_per_epoch:
            row["user_encodings_per_epoch"] = source.user_encodings_per_epoch
        self._writer.write(0, row)

    def _first_bad(self, fetched: list[dict[str, Any]]) -> BadLoss | None:
        for step, found in enumerate(fetched, self._step - len(fetched) + 1):
            figures = self._figures.of(_summed([found]))
            if not all(map(math.isfinite, [*figures.values(), float(found["gradient_norm"])])):
                return BadLoss(step, "is no longer finite")
            loss = next(iter(figures.values()))
            if loss > _EXPLODED * self._first_loss:
                return BadLoss(step, f"has exploded (from {self._first_loss:.4g} to {loss:.4g})")
            if math.isinf(self._first_loss) and loss > 0:
                self._first_loss = max(loss, self._figures.usual)
        return None


def _summed(fetched: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(sum(m[name] for m in fetched)) for name in fetched[0] if name != "gradient_norm"}
