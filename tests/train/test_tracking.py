import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.train.tracking import JsonLines, open_writer, read_rows


def test_rows_come_back_and_what_is_not_finite_is_null(tmp_path):
    writer = JsonLines(tmp_path / "m.jsonl")
    writer.write(1, {"phase": "head", "loss": 0.5})
    writer.write(2, {"phase": "head", "loss": float("nan")})
    writer.close()
    assert read_rows(tmp_path / "m.jsonl") == [
        {"step": 1, "phase": "head", "loss": 0.5},
        {"step": 2, "phase": "head", "loss": None},
    ]


def test_rewinding_forgets_one_phase_after_a_step_and_half_a_line(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [{"step": s, "phase": p} for p in ("head", "encoder") for s in (1, 2, 3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 4, "ph')
    writer = JsonLines(path)
    writer.rewind("encoder", 1)
    writer.write(2, {"phase": "encoder"})
    writer.close()
    assert read_rows(path) == [*rows[:4], {"step": 2, "phase": "encoder"}]


def test_damage_inside_the_file_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_rows(tmp_path / "m.jsonl")


def test_tensorboard_has_what_the_lines_have(tmp_path, scalars):
    writer = open_writer(tmp_path, ("tensorboard",), {})
    writer.rewind("refit head", 0)
    writer.write(1, {"phase": "refit head", "loss": 0.5, "note": "no number"})
    writer.write(2, {"phase": "refit head", "loss": 0.25, "norm": float("inf")})
    writer.close()
    again = open_writer(tmp_path, ("tensorboard",), {})
    again.rewind("refit head", 1)
    again.write(2, {"phase": "refit head", "loss": 0.125})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [(1, 0.5), (2, 0.125)]
    found, purged = scalars(tmp_path / "tensorboard" / "refit_head")
    assert found == {("loss", 1): [0.5], ("loss", 2): [0.25, 0.125]}
    assert purged == [2]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'ltrec-jax\[{name}\]'"):
        open_writer(tmp_path, (name,), {})


OFFLINE = """
import pathlib, sys
from ltrec_jax.train.tracking import open_writer
run = pathlib.Path(sys.argv[1])
writer = open_writer(run, ("wandb",), {"seed": 3, "train": {"epochs": 2}})
writer.rewind("refit head", 0)
writer.write(1, {"phase": "refit head", "loss": 0.5, "note": "no number"})
writer.write(2, {"phase": "refit head", "loss": float("nan")})
writer.close()
"""


@pytest.mark.slow
def test_wandb_offline_keeps_a_run(tmp_path):
    """In a process of its own: its threads, and what it and its dependencies warn of, are none of ours."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed (pip install -e '.[wandb]')")
    run = tmp_path / "mine"
    run.mkdir()
    own = {f"WANDB_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    for place in own.values():
        Path(place).mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | own
    environment |= {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONSOLE": "off",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", OFFLINE, str(run)]
    told = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert told.returncode == 0, told.stderr
    assert [(row["step"], row["loss"]) for row in read_rows(run / "metrics.jsonl")] == [(1, 0.5), (2, None)]
    [stored] = run.glob("wandb/offline-run-*/*.wandb")
    # Its service writes on for a moment. Records are stored as they are, their strings among them.
    until = time.monotonic() + 20
    while b"refit head/loss" not in (data := stored.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert b"refit head/loss" in data
    assert b"refit head/step" in data
    assert b"refit head/note" not in data
    assert b"epochs" in data
