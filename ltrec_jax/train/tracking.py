"""Where a run's numbers go: one JSON object per line in `metrics.jsonl`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltrec_jax import storage
from ltrec_jax.errors import UserError


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


class Nowhere:
    """The `MetricWriter` of processes beside the first one."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def rewind(self, phase: str, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


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
