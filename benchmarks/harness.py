"""What every benchmark shares: a child process whose memory is its own, medians, and one JSON file per benchmark.

Out of scope: what is measured.
"""

import argparse
import contextlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltrec_jax import memory, storage
from ltrec_jax.parallel import describe_hardware

GIB = float(1 << 30)


def arguments(description: str, *, torch: bool = False, one_heap: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark has. Called first: it sets the process up as the command line does.

    `torch`: also where PyTorch is, which need not be in this environment. `one_heap`: false as `ltrec encode` has it.
    """
    memory.keep_freed(one_heap=one_heap)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw numbers here")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--task", nargs=2, metavar=("NAME", "SETTINGS"), help="one measurement, in this process")
    if torch:
        parser.add_argument("--torch-python", help="interpreter with torch and transformers; default: this one")
    return parser


def ran_task(given: argparse.Namespace, tasks: Mapping[str, Callable[..., dict[str, Any]]]) -> bool:
    """Whether this process is one that `in_child` started: then the task it was given has run."""
    if given.task is None:
        return False
    name, settings = given.task
    finish_child(tasks[name](**json.loads(settings)))
    return True


def peak_gib() -> float:
    """The largest resident memory of this process so far (Linux: VmHWM, which an exec starts anew)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def in_child(script: str, task: str, **settings: Any) -> dict[str, Any]:
    """Run `python script --task TASK SETTINGS` and give the dict it prints last, with `peak_gib` of that process."""
    command = [sys.executable, script, "--task", task, json.dumps(settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def finish_child(result: dict[str, Any]) -> None:
    """Print what `in_child` reads."""
    print(json.dumps(result | {"peak_gib": peak_gib(), "cpu_seconds": time.process_time()}), flush=True)


def median_seconds(work: Callable[[], Any], repeats: int, warmup: int = 1) -> tuple[float, list[float]]:
    """Median and all times of `repeats` calls after `warmup` unmeasured ones; `work` must block until it is done."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), times


def report(
    path: Path | None, name: str, headline: dict[str, float], details: dict[str, Any], rows: Sequence[tuple[str, str]]
) -> None:
    """Show a table, and write `{"benchmark", "hardware", "code", "headline", "details"}` if a file was named."""
    hardware = describe_hardware()
    width = max(len(label) for label, _ in rows)
    print(f"\n{name} on {hardware['processor']}, {hardware['cores']} cores, {hardware['platform']}")
    for label, value in rows:
        print(f"  {label:<{width}}  {value}")
    if path is not None:
        found = {"benchmark": name, "hardware": hardware, "code": code(), "headline": headline, "details": details}
        storage.write_json(path, found)


def code() -> dict[str, Any]:
    """What was measured: the commit (and whether files differ from it), and the versions of what it stands on.

    PyTorch's is that of this environment; a benchmark whose rival runs in another one has it in its details.
    """
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "scipy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain")), "versions": versions}


def _git(*asked: str) -> str | None:
    """What git says of this checkout; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", *asked], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
