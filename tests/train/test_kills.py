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
from ltrec_jax.bundle import Bundle, load_tensors
from ltrec_jax.config import BayesConfig, ScheduleConfig
from ltrec_jax.train import item_phase, phases, solves
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.tracking import read_rows

KILLS = {"gradient": 14, "schedule": 8}
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
data, cache = map(Path, sys.argv[1:])
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
for line in sys.stdin:
    child = os.fork()
    if not child:
        out = Path(line.strip())
        split = splits.random(Dataset.load(data), test=0.2, validation=0.1, seed=0)
        settings = Path(f"{out.parent.name}.toml").read_text()
        fit(split, from_toml(settings), out, resume=(out / "config.toml").exists())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(params=KILLS)
def world(request, small_config, small_dataset, tmp_path):
    """(a place whose name is that of the settings, the settings)."""
    train = dataclasses.replace(small_config.train, head_epochs=40, epochs=6, log_every=1, checkpoints=1, patience=0)
    config = dataclasses.replace(small_config, train=train)
    if request.param == "schedule":
        bayes = BayesConfig(factors=2, iterations=40)
        schedule = ScheduleConfig(goal="explicit", trainable="top:1", epochs=20, batch_items=16)
        config = dataclasses.replace(config, schedule=schedule, bayes=bayes)
    small_dataset.save(tmp_path / "data")
    (tmp_path / f"{request.param}.toml").write_text(plain_settings.to_toml(config))
    return tmp_path / request.param, config


@pytest.fixture
def server(world, tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TOKENIZERS_PARALLELISM": "false",
        "LTREC_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "server.py", "data", "compiled"]
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


def phases_of(out):
    """(name, folder of checkpoints) of the phases that have begun to save."""
    return [(place.name, place) for place in sorted((out / "checkpoints").glob("*/*")) if place.is_dir()]


def saved(out):
    """The newest finished checkpoint of each phase, and the solves that were done."""
    steps = {name: max(steps_in(place), default=0) for name, place in phases_of(out)}
    return steps | {place.name: 1 for place in (out / "checkpoints").glob("*/*.safetensors")}


def steps_in(place):
    return [int(p.name) for p in place.glob("*") if p.name.isdecimal()]


def check_what_is_left(out, states, before):
    """All that is finished loads, nothing of it was lost, and one interval (epoch) at most comes after the newest."""
    rows = read_rows(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []
    newest = saved(out)
    assert all(newest.get(name, 0) >= step for name, step in before.items())
    for place in (out / "checkpoints").glob("*/*.safetensors"):
        load_tensors(place)
    for name, (_, per_epoch) in states.items():
        reached = max((row["step"] for row in rows if row["phase"] == name), default=0)
        assert reached - newest.get(name, 0) <= per_epoch
    for name, place in phases_of(out):
        with Checkpoints(place, keep=9) as kept:
            for step in kept.steps:
                assert int(kept.restore(states[name][0], step).state.step) == step
    return newest


def wait_for_a_moment(out, moments):
    """Some time into the start of a run, or after it has saved anew."""
    if moments.random() < 0.25:
        time.sleep(moments.uniform(0.0, 1.5))
        return
    known, deadline = saved(out), time.monotonic() + 60
    while saved(out) == known and not (out / "bundle").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(moments.uniform(0.0, 0.5))


def states_of(problem):
    """(first state, steps per epoch) of each phase."""
    train = problem.config.train
    if problem.config.schedule.steps == "gradient":
        prepared = {
            "head": phases.prepare_head(problem, train.head_epochs, patience=0),
            "encoder": phases.prepare_encoder(problem, train.epochs, patience=0, start=None),
        }
    else:
        solved = solves.solve(problem, problem.features_IxE)
        prepared = {"items": item_phase.prepare(problem, solved.anchors, solved.item_rows, solved.counts)}
    return {name: (each.state, each.source.steps_per_epoch) for name, each in prepared.items()}


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(server, world, small_split, tmp_path):
    place, config = world
    start(server, place / "whole")
    assert ended(server) == 0, (tmp_path / "stderr").read_text()[-2000:]
    states = states_of(load_problem(small_split, config, spread=parallel.choose("jit")))
    moments = random.Random(0)
    kills, finished, out, before = 0, [], place / "run0", {}
    while kills < KILLS[place.name] or out.exists():
        child = start(server, out)
        if kills < KILLS[place.name]:
            wait_for_a_moment(out, moments)
            # It may have ended by itself in this very moment.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = ended(server)
        assert status in (0, signal.SIGKILL), (tmp_path / "stderr").read_text()[-2000:]
        if status == 0:
            finished.append(out)
            out, before = place / f"run{len(finished)}", {}
            continue
        kills += 1
        before = check_what_is_left(out, states, before)
    expected = Bundle.load(place / "whole" / "bundle").vectors
    for out in finished:
        found = Bundle.load(out / "bundle").vectors
        np.testing.assert_array_equal(found.item_vectors, expected.item_vectors)
        np.testing.assert_array_equal(found.user_vectors, expected.user_vectors)
        assert measured(out) == measured(place / "whole")
    assert finished


def measured(out):
    """The rows of a run without what depends on the clock."""
    rows = [row for row in read_rows(out / "metrics.jsonl") if "matmul_peak" not in row]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
