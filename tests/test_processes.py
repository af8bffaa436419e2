"""Several processes on one machine: how they meet, decide together, train as one process does, stop and resume."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ltrec_jax import config as configuration
from ltrec_jax import plain_settings, processes
from ltrec_jax.bundle import Bundle
from ltrec_jax.config import BayesConfig, ScheduleConfig
from ltrec_jax.errors import UserError
from ltrec_jax.train.tracking import read_rows


def test_without_a_coordinator_a_process_is_alone():
    processes.connect()
    assert processes.number() == 1
    assert processes.is_first()
    assert processes.anywhere(False, True) == (False, True)
    assert processes.of_first(0.1) == 0.1


def test_alone_the_first_does_it_here_and_now():
    done = []
    processes.first_does(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(UserError, match="no room"):
        processes.first_does(lambda: (_ for _ in ()).throw(UserError("no room")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("", 2, None), "need a coordinator"),
        (("host:1", None, None), "needs --num-processes N and --process-id I"),
        (("host:1", 2, 2), "0 <= I < N"),
    ],
)
def test_half_of_the_settings_is_one_clear_line(given, message):
    with pytest.raises(UserError, match=message):
        processes.connect(*given)


def test_the_environment_stands_for_the_settings(monkeypatch):
    monkeypatch.setenv(processes.COORDINATOR, "host:1")
    monkeypatch.setenv(processes.COUNT, "2")
    monkeypatch.setenv(processes.INDEX, "5")
    with pytest.raises(UserError, match="N = 2 and I = 5"):
        processes.connect()
    monkeypatch.setenv(processes.INDEX, "first")
    with pytest.raises(UserError, match="LTREC_PROCESS_ID must be a number, not 'first'"):
        processes.connect()


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory, small_dataset, small_config):
    place = tmp_path_factory.mktemp("processes")
    small_dataset.save(place / "data")
    data = dataclasses.replace(small_config.data, dataset=str(place / "data"), split="random")
    train = dataclasses.replace(small_config.train, parallel="auto", head_epochs=6, epochs=1, save_minutes=1e-6)
    config = dataclasses.replace(small_config, data=data, train=train)
    (place / "c.toml").write_text(plain_settings.to_toml(config))
    return place


def start(world, out, *flags, devices=1, config="c.toml"):
    return start_command(world, "train", "--config", config, "--out", out, *flags, devices=devices)


def start_command(world, *arguments, devices=1):
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "LTREC_CACHE": str(world / "cache"),
    }
    command = [sys.executable, "-m", "ltrec_jax.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=world, env=environment, **pipes)


def start_two(world, out, *flags, config="c.toml"):
    return start_two_of(world, "train", "--config", config, "--out", out, *flags)


def start_two_of(world, *arguments):
    together = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id"]
    return [start_command(world, *arguments, *together, str(index)) for index in range(2)]


def wait(started):
    """(exit codes, outputs, errors) of processes."""
    told = [process.communicate(timeout=300) for process in started]
    return [process.returncode for process in started], *zip(*told, strict=True)


@pytest.mark.slow
def test_two_processes_stop_resume_and_train_as_one_with_two_devices(world):
    one = start(world, "one", devices=2)
    two = start_two(world, "two")
    deadline = time.monotonic() + 200
    place = world / "two" / "checkpoints" / "choose" / "head"
    while not any(p.name.isdecimal() for p in place.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    # The second is asked; both must stop at one step.
    two[1].send_signal(signal.SIGTERM)
    codes, outputs, errors = wait(two)
    assert codes == [130, 130], errors
    assert all("--resume" in each for each in errors)
    assert not any(outputs)
    codes, outputs, errors = wait(start_two(world, "two", "--resume"))
    assert codes == [0, 0], errors
    assert outputs == ("The model is two/bundle. Next: ltrec evaluate two\n", "")
    codes, _, errors = wait([one])
    assert codes == [0], errors
    ours, theirs = (Bundle.load(world / name / "bundle").vectors for name in ("two", "one"))
    np.testing.assert_allclose(ours.user_vectors, theirs.user_vectors, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(ours.item_vectors, theirs.item_vectors, rtol=2e-3, atol=2e-4)
    # What one process refuses, all refuse.
    codes, _, errors = wait(start_two(world, "two"))
    assert codes == [2, 2]
    assert all("two is not empty" in each for each in errors)


@pytest.mark.slow
def test_two_processes_with_half_of_the_rows_each_train_as_one_with_all(world):
    head = ("--train.epochs", "0")
    whole = start(world, "whole", *head)
    codes, _, errors = wait([whole, *start_two(world, "halves", *head, "--train.shard-tables")])
    assert codes == [0, 0, 0], errors
    ours, theirs = (Bundle.load(world / name / "bundle").vectors for name in ("halves", "whole"))
    np.testing.assert_allclose(ours.user_vectors, theirs.user_vectors, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(ours.item_vectors, theirs.item_vectors, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["explicit", "whole_data"])
def test_two_processes_solve_tune_and_solve_as_one_with_two_devices(world, goal):
    config = configuration.from_toml((world / "c.toml").read_text())
    schedule = ScheduleConfig(goal=goal, trainable="top:1", epochs=2, batch_items=16)
    config = dataclasses.replace(config, schedule=schedule, bayes=BayesConfig(factors=2, iterations=10))
    (world / f"{goal}.toml").write_text(plain_settings.to_toml(config))
    one = start(world, f"{goal}-one", devices=2, config=f"{goal}.toml")
    codes, _, errors = wait([one, *start_two(world, f"{goal}-two", config=f"{goal}.toml")])
    assert codes == [0, 0, 0], errors
    ours, theirs = (Bundle.load(world / f"{goal}-{name}" / "bundle").vectors for name in ("two", "one"))
    np.testing.assert_allclose(ours.user_vectors, theirs.user_vectors, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(ours.item_vectors, theirs.item_vectors, rtol=2e-3, atol=2e-4)


@pytest.fixture
def pretraining(world, tiny_encoder):
    """`ltrec pretrain` on sentences of which every word tells the next."""
    words = ["rocket", "planet", "orbit", "comet", "lunar"]
    lines = [
        " ".join(["the", *(words[(at + step) % 5] for at in range(n)), "and"])
        for step in range(5)
        for n in range(1, 20)
    ]
    (world / "lines.txt").write_text("\n".join(lines))
    settings = ["--encoder", str(tiny_encoder), "--precision", "float32", "--epochs", "12", "--held-out", "0.2"]
    return [
        "pretrain",
        "--texts",
        "lines.txt",
        *settings,
        "--max-length",
        "24",
        "--batch-tokens",
        "200",
        "--log-every",
        "1",
    ]


@pytest.mark.slow
def test_two_processes_stop_resume_and_pretrain_as_one_with_two_devices(world, pretraining):
    one = start_command(world, *pretraining, "--out", "words-one", devices=2)
    two = start_two_of(world, *pretraining, "--out", "words-two")
    deadline = time.monotonic() + 200
    place = world / "words-two" / "checkpoints" / "pretrain"
    while not any(p.name.isdecimal() for p in place.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    two[1].send_signal(signal.SIGTERM)
    codes, outputs, errors = wait(two)
    assert codes == [130, 130], errors
    assert not any(outputs)
    codes, outputs, errors = wait(start_two_of(world, *pretraining, "--out", "words-two", "--resume"))
    assert codes == [0, 0], errors
    assert "Next: ltrec train --encoder.name words-two/encoder" in outputs[0]
    assert not outputs[1]
    codes, _, errors = wait([one])
    assert codes == [0], errors
    ours, theirs = (
        safetensors.numpy.load_file(world / f"words-{name}/encoder/model.safetensors") for name in ("two", "one")
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=2e-4, err_msg=name)
    ours, theirs = (json.loads((world / f"words-{name}/report.json").read_text()) for name in ("two", "one"))
    for name, figures in theirs["held_out"].items():
        assert ours["held_out"][name] == pytest.approx(figures, rel=1e-3)
    rows = read_rows(world / "words-two" / "metrics.jsonl")
    assert len({(row["phase"], row["step"], "validation_loss" in row) for row in rows}) == len(rows)


TOLD = """
import json, sys
from ltrec_jax import processes
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.train.pretrain_config import PretrainConfig
from ltrec_jax.train.pretraining import pretrain
processes.connect(sys.argv[1], 2, int(sys.argv[2]))
settings = PretrainConfig(
    from_scratch=True, layers=1, hidden_size=16, heads=2, vocabulary=120, max_length=16, epochs=1, precision="float32"
)
report = pretrain(Dataset.load("data"), settings, "told", cold=True).report
print(json.dumps({name: report[name] for name in ("held_out", "below_head_only", "vector_cosine", "cold_items")}))
"""


@pytest.mark.slow
def test_from_scratch_and_on_cold_items_two_processes_end_with_the_same_figures(world):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_NUM_CPU_DEVICES": "1"}
    coordinator = f"127.0.0.1:{free_port()}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-c", TOLD, coordinator, str(index)], cwd=world, env=environment, **pipes)
        for index in range(2)
    ]
    codes, outputs, errors = wait(started)
    assert codes == [0, 0], errors
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["cold_items"]["pretrained"]["rmse"]["value"] > 0
    assert not (world / "told" / "cold_items").exists()
