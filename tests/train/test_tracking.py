import json

import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.train.tracking import JsonLines, read_rows


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
