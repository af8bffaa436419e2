"""Where a run's numbers go: always lines of JSON in `metrics.jsonl`; TensorBoard and Weights & Biases where asked."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltrec_jax import storage
from ltrec_jax.config import Tracker
from ltrec_jax.errors import UserError
from ltrec_jax.types import MetricWriter


class JsonLines:
    """Appends rows {"step": ..., metric: value}; a value that is not finite is written as null. A `MetricWriter`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._stream = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one row and flush it, so that a killed run keeps what it has reported."""
        row = {"step": step} | {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in metrics.items()
        }
        self._stream.write(json.dumps(row, allow_nan=False) + "\n")
        self._stream.flush()

    def rewind(self, phase: str, step: int) -> None:
        """Drop the rows of a phase after a step, and a last line that a kill cut short."""
        kept = [row for row in read_rows(self._path) if row.get("phase") != phase or row["step"] <= step]
        self._stream.close()
        storage.write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._stream = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoard:
    """Event files under `directory`, a folder for each phase. What a resumed phase writes anew is shown once."""

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._open, self._directory = SummaryWriter, directory
        self._phases: dict[str, Any] = {}

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One scalar for each finite number."""
        writer = self._phases[metrics["phase"]]
        for name, value in _numbers(metrics).items():
            writer.add_scalar(name, value, step)

    def rewind(self, phase: str, step: int) -> None:
        """Begin the phase's file, or go on after a step: TensorBoard drops what older files have beyond."""
        folder = self._directory / phase.replace(" ", "_")
        # Files of one second would have one name.
        self._phases[phase] = self._open(
            str(folder), purge_step=step + 1 if step else None, filename_suffix=f".from-{step}"
        )

    def close(self) -> None:
        """Flush and close."""
        for writer in self._phases.values():
            writer.close()


class WeightsAndBiases:
    """A run of the project "ltrec", named like its directory, one for each start; offline if WANDB_MODE says so."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._run = wandb.init(
            project="ltrec", name=directory.name, group=directory.name, dir=str(directory), config=dict(settings)
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Finite numbers under the phase's name, over the phase's steps."""
        phase = metrics["phase"]
        row = {f"{phase}/{name}": value for name, value in _numbers(metrics).items()}
        self._run.log(row | {f"{phase}/step": step})

    def rewind(self, phase: str, step: int) -> None:
        """Name the phase's axis. Nothing is taken back: a resumed run is another run of its group."""
        self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


class Several:
    """One `MetricWriter` that tells them all."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = writers

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """To each."""
        for writer in self._writers:
            writer.write(step, metrics)

    def rewind(self, phase: str, step: int) -> None:
        """Each."""
        for writer in self._writers:
            writer.rewind(phase, step)

    def close(self) -> None:
        """Each."""
        for writer in self._writers:
            writer.close()


class Nowhere:
    """The `MetricWriter` of processes beside the first one."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def rewind(self, phase: str, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_writer(run: Path, track: Sequence[Tracker], settings: Mapping[str, Any]) -> MetricWriter:
    """`metrics.jsonl` of a run directory and what else is asked for; a missing extra is a `UserError` that names it."""
    others: dict[Tracker, Callable[[], MetricWriter]] = {
        "tensorboard": lambda: TensorBoard(run / "tensorboard"),
        "wandb": lambda: WeightsAndBiases(run, settings),
    }
    beside = [others[name]() for name in track]
    return Several([JsonLines(run / "metrics.jsonl"), *beside])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}


def _missing(extra: str) -> UserError:
    return UserError(
        f"Setting track (train.track) asks for {extra}. Install the extra: pip install 'ltrec-jax[{extra}]'."
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a `metrics.jsonl`; a last line cut short by a kill is left out, any other damage is a `UserError`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is damaged: {error}.") from error
    return rows
