import json
import sys
import time

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_a_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "mine").mkdir()
    writer = open_writer(tmp_path / "mine", ("wandb",), {"seed": 3})
    writer.rewind("head", 0)
    writer.write(1, {"phase": "head", "loss": 0.5})
    writer.close()
    [stored] = (tmp_path / "mine").glob("wandb/offline-run-*/*.wandb")
    # Its service writes on for a moment.
    until = time.monotonic() + 20
    while b"head/loss" not in (data := stored.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert b"head/loss" in data
