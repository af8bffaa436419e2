"""Nothing lost: a run is killed at random moments, time and again, and ends as if nothing had happened."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ltrec_jax import parallel, plain_settings
from ltrec_jax.bundle import Bundle
from ltrec_jax.train import phases
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.tracking import read_rows

KILLS = 20
# Imports once, then forks a child for each run: a start costs no imports, and programs come from the cache on disk.
SERVER = """
import os, sys
from pathlib import Path
import jax
import optax, orbax.checkpoint, pandas, transformers
from ltrec_jax.config import from_toml
from ltrec_jax.data import splits
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.train.fit import fit
data, settings, cache = map(Path, sys.argv[1:])
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
for line in sys.stdin:
    child = os.fork()
    if not child:
        out = Path(line.strip())
        split = splits.random(Dataset.load(data), test=0.2, validation=0.1, seed=0)
        fit(split, from_toml(settings.read_text()), out, resume=(out / "config.toml").exists())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def config(small_config):
    train = dataclasses.replace(small_config.train, head_epochs=40, epochs=6, log_every=1, checkpoints=1, patience=0)
    return dataclasses.replace(small_config, train=train)


@pytest.fixture
def server(small_dataset, config, tmp_path):
    small_dataset.save(tmp_path / "data")
    (tmp_path / "c.toml").write_text(plain_settings.to_toml(config))
    (tmp_path / "server.py").write_text(SERVER)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TOKENIZERS_PARALLELISM": "false",
        "LTREC_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "server.py", "data", "c.toml", "compiled"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        (tmp_path / "stderr").open("w") as errors,
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=errors, **pipes) as process,
    ):
        yield process
        process.stdin.close()


def start(server, out):
    server.stdin.write(f"{out}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def ended(server):
    """The exit status of the child, as `waitpid` tells it: the number of the signal for one that was killed."""
    return int(server.stdout.readline())


def saved(out):
    """The newest finished checkpoint of each phase."""
    return [newest(out / "checkpoints" / "choose" / phase) for phase in ("encoder", "head")]


def newest(place):
    return max(steps_in(place), default=0)


def steps_in(place):
    return [int(p.name) for p in place.glob("*") if p.name.isdecimal()]


def check_what_is_left(out, states):
    """Every finished checkpoint loads; at most two intervals (epochs) come after the newest one.

    One interval, and the time a save takes, for the next begins only when it is done. Here that may be one more:
    an epoch takes some 20 ms.
    """
    rows = read_rows(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []
    for phase, (state, per_epoch) in states.items():
        place = out / "checkpoints" / "choose" / phase
        if place.exists():
            with Checkpoints(place, keep=9) as kept:
                for step in kept.steps:
                    assert int(kept.restore(state, step).state.step) == step
            reached = max((row["step"] for row in rows if row["phase"] == phase), default=0)
            assert reached - newest(place) <= 2 * per_epoch


def wait_for_a_moment(out, moments):
    """Some time into the start of a run, or after it has saved anew."""
    if moments.random() < 0.25:
        time.sleep(moments.uniform(0.0, 1.5))
        return
    known, deadline = saved(out), time.monotonic() + 60
    while saved(out) <= known and not (out / "bundle").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(moments.uniform(0.0, 0.5))


@pytest.mark.slow
def test_twenty_kills_change_nothing(server, small_split, config, tmp_path):
    start(server, tmp_path / "whole")
    assert ended(server) == 0, (tmp_path / "stderr").read_text()[-2000:]
    problem = load_problem(small_split, config, spread=parallel.choose("jit"))
    prepared = {
        "head": phases.prepare_head(problem, config.train.head_epochs, patience=0),
        "encoder": phases.prepare_encoder(problem, config.train.epochs, patience=0, start=None),
    }
    states = {name: (each.state, each.source.steps_per_epoch) for name, each in prepared.items()}
    moments = random.Random(0)
    kills, finished, out, before = 0, [], tmp_path / "run0", [0, 0]
    while kills < KILLS or out.exists():
        child = start(server, out)
        if kills < KILLS:
            wait_for_a_moment(out, moments)
            # It may have ended by itself in this very moment.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = ended(server)
        assert status in (0, signal.SIGKILL), (tmp_path / "stderr").read_text()[-2000:]
        if status == 0:
            finished.append(out)
            out, before = tmp_path / f"run{len(finished)}", [0, 0]
            continue
        kills += 1
        check_what_is_left(out, states)
        assert saved(out) >= before
        before = saved(out)
    expected = Bundle.load(tmp_path / "whole" / "bundle").vectors
    for out in finished:
        found = Bundle.load(out / "bundle").vectors
        np.testing.assert_array_equal(found.item_vectors, expected.item_vectors)
        np.testing.assert_array_equal(found.user_vectors, expected.user_vectors)
        assert measured(out) == measured(tmp_path / "whole")
    assert finished


def measured(out):
    """The rows of a run without what depends on the clock."""
    rows = [row for row in read_rows(out / "metrics.jsonl") if "matmul_peak" not in row]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
