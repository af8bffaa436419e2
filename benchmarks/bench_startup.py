"""Seconds from the start of `ltrec train` until its first step is done, at the quickstart's size (MovieLens-100K).

    python benchmarks/bench_startup.py --json benchmarks/results/bench_startup.json

Downloads are done. *cold*: nothing else is kept; *warm*: compiled programs, tokens and hidden states are, as in every
run but the first on a machine. The first step is the first row of `metrics.jsonl` in a phase that learns; the run is
stopped there. `gradient` trains from start to end; `solve_tune_solve`, the default, solves before it fine-tunes: its
solve is told apart.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments, report

from ltrec_jax import storage
from ltrec_jax.data import sources
from ltrec_jax.encoder.weights import load_encoder

SCHEDULES = ("gradient", "solve_tune_solve")
KEPT_DOWNLOADS = ("artifacts", "datasets")
GIVEN_UP = 300.0


def until_first_step(schedule: str, cache: Path) -> dict[str, float]:
    """Seconds until the first step, and of the solve before it, of one run with this cache directory."""
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as name:
        metrics = Path(name) / "run" / "metrics.jsonl"
        command = [sys.executable, "-m", "ltrec_jax.cli", "train", "--out", str(metrics.parent)]
        command += ["--schedule.steps", schedule, "--train.log-every", "1"]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=os.environ | {"LTREC_CACHE": str(cache)}, stderr=subprocess.PIPE)
        try:
            while (found := _first_step(metrics)) is None:
                if process.poll() is not None or time.perf_counter() - start > GIVEN_UP:
                    raise SystemExit(f"{' '.join(command)} made no step: {process.communicate()[1].decode()[-2000:]}")
                time.sleep(0.02)
            return {"seconds": time.perf_counter() - start, "solve_seconds": found}
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def _first_step(metrics: Path) -> float | None:
    """Seconds of solving before the first step that has a row; None while there is none."""
    if not metrics.is_file():
        return None
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    if not any("gradient_norm" in row for row in rows):
        return None
    return float(sum(row["seconds"] for row in rows if row["phase"].startswith("solve")))


def main() -> None:
    given = arguments(str(__doc__).splitlines()[0]).parse_args()
    sources.load("movielens-100k")
    load_encoder("all-MiniLM-L6-v2")
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(1 if given.quick else 3):
        for schedule in SCHEDULES:
            with tempfile.TemporaryDirectory(prefix="bench-startup-cache-") as name:
                cache = Path(name)
                for kept in KEPT_DOWNLOADS:
                    shutil.copytree(storage.cache_directory() / kept, cache / kept)
                for state in ("cold", "warm"):
                    runs.setdefault(f"{schedule}, {state}", []).append(until_first_step(schedule, cache))
    headline: dict[str, float] = {}
    details: dict[str, Any] = {"runs": runs}
    for label, found in runs.items():
        key = label.replace(", ", "_")
        headline[f"startup_{key}"] = statistics.median(run["seconds"] for run in found)
        if any(run["solve_seconds"] for run in found):
            headline[f"startup_{key}_solve"] = statistics.median(run["solve_seconds"] for run in found)
    report(given.json, "startup", headline, details, [(label, f"{value:.1f} s") for label, value in headline.items()])


if __name__ == "__main__":
    main()
