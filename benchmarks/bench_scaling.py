"""The same training step on 1 to 8 devices and in two processes: are the parameters equal, what does meeting cost.

    python benchmarks/bench_scaling.py --json benchmarks/results/bench_scaling.json

All layers of MiniLM, head and tables on MovieLens-100K; one global batch, dealt to the devices. On a CPU the devices
are virtual and share the cores, so that seconds say what more devices cost there, never what they would gain; with
`--real` the devices are those that JAX finds (GPU, TPU), and the seconds are a scaling curve. *collectives*: the mean
of the dense gradient and the gathering of the touched rows and their gradients, alone.
"""

import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, finish_child, report

RELATIVE, ABSOLUTE = 2e-3, 2e-4
"""Adam divides by the root of tiny second moments, so that last bits of a gradient show at this scale of a weight."""


def task(folder: str, name: str, steps: int, devices: int, split: bool, together: tuple[str, int, int] | None) -> None:
    """Train so many steps and write what became of the parameters and how long it took."""
    from ltrec_jax import processes

    if together is not None:
        processes.connect(*together)
    import jax
    import two_tower

    from ltrec_jax import parallel
    from ltrec_jax.train import phases

    config = two_tower.configuration(precision="float32", shard_tables=split)
    problem = two_tower.problem_of(config)
    spread = (
        parallel.choose_for_run("auto")
        if together
        else parallel.choose("shard_map" if split else "auto", count=devices)
    )
    problem = dataclasses.replace(problem, spread=spread)
    prepared = phases.prepare_encoder(problem, 1, patience=0, start=None)
    state, key = prepared.state, spread.replicate(phases.stream(problem, "encoder"))
    seconds = []
    for number in range(steps):
        batch = jax.block_until_ready(spread.shard(prepared.source.batch(0, number)))
        start = time.perf_counter()
        state, metrics = prepared.step(state, batch, key)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    meeting = collectives(spread, state, batch, steps)
    vectors, _ = phases.finished_vectors(problem, prepared, state)
    if processes.is_first():
        np.savez(Path(folder) / f"{name}.npz", **{f: getattr(vectors, f) for f in ("user_vectors", "item_vectors")})
    finish_child({"seconds": seconds[2:], "collectives": meeting, "mode": spread.mode})


def collectives(spread: Any, state: Any, batch: Any, steps: int) -> list[float]:
    """Seconds of what the devices tell each other in a step, without the step."""
    import jax
    import jax.numpy as jnp

    from ltrec_jax import parallel
    from ltrec_jax.train import pair_loss

    def body(dense: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        ids = pair_loss.row_ids(batch)
        widths = {"users": 65, "items": 65, "words": 384}
        rows = {name: (each, jnp.ones((each.shape[0], widths[name]))) for name, each in ids.items()}
        met = parallel.gather_over_devices(rows, spread.axis)
        return parallel.mean_over_devices(dense, spread.axis), {name: each[1].sum() for name, each in met.items()}

    run, key = spread.compile(body, donate=False), spread.replicate(jax.random.key(0))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(run(state.trainable, batch, key))
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def start(folder: Path, name: str, devices: int, *, virtual: bool, **settings: Any) -> subprocess.Popen[str]:
    """A child that runs `task`."""
    environment = os.environ | ({"JAX_NUM_CPU_DEVICES": str(devices)} if virtual else {})
    asked = {"folder": str(folder), "name": name, "devices": devices, "split": False, "together": None} | settings
    command = [sys.executable, __file__, "--task", "train", json.dumps(asked)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a child ended with exit code {process.returncode}")
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def difference(folder: Path, name: str) -> float:
    """The largest difference from one device, in units of what is allowed."""
    ours, one = np.load(folder / f"{name}.npz"), np.load(folder / "1 device.npz")
    return max(float((np.abs(ours[f] - one[f]) / (ABSOLUTE + RELATIVE * np.abs(one[f]))).max()) for f in one.files)


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--real", action="store_true", help="the devices that are there, not virtual CPU devices")
    given = parser.parse_args()
    if given.task:
        task(**json.loads(given.task[1]))
        return
    counts = [1, 2] if given.quick else [1, 2, 4, 8]
    steps = 4 if given.quick else 8
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as name:
        folder = Path(name)
        for count in counts:
            label = f"{count} device{'s' if count > 1 else ''}"
            runs[label] = result_of(start(folder, label, count, virtual=not given.real, steps=steps))
        split = f"{counts[-1]} devices, split tables"
        runs[split] = result_of(start(folder, split, counts[-1], virtual=not given.real, steps=steps, split=True))
        if not given.real:
            address, both = f"127.0.0.1:{free_port()}", "2 processes"
            pair = [
                start(folder, both, 1, virtual=True, steps=steps, together=(address, 2, index)) for index in range(2)
            ]
            runs[both], _ = (result_of(each) for each in pair)
        for label, run in runs.items():
            run["difference"] = difference(folder, label)
    if (worst := max(run["difference"] for run in runs.values())) > 1:
        raise SystemExit(f"parameters differ by {worst:.1f} times what reduction order explains")
    middle = {label: statistics.median(run["seconds"]) for label, run in runs.items()}
    meeting = {label: statistics.median(run["collectives"]) for label, run in runs.items()}
    most = f"{counts[-1]} devices"
    headline = {
        "scaling_largest_difference": worst,
        f"scaling_step_{counts[-1]}_vs_1": middle[most] / middle["1 device"],
        f"scaling_collectives_{counts[-1]}_share": meeting[most] / middle[most],
    }
    if "2 processes" in runs:
        headline["scaling_2_processes_vs_2_devices"] = middle["2 processes"] / middle["2 devices"]
    rows = [
        (
            label,
            f"step {middle[label] * 1e3:.0f} ms, collectives alone {meeting[label] * 1e3:.0f} ms, "
            f"differs by {runs[label]['difference']:.1e} of what is allowed ({runs[label]['mode']})",
        )
        for label in runs
    ]
    rows += [(label, f"{value:.3g}") for label, value in headline.items()]
    report(given.json, "scaling", headline, {"runs": runs}, rows)


if __name__ == "__main__":
    main()
