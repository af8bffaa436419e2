"""What the progress bar and the rows tell, and when a loss counts as exploded (the rest is tested with the loop)."""

import re
import types

import pytest

from ltrec_jax.train import meter as meter_module
from ltrec_jax.train.meter import Figures, Meter
from ltrec_jax.train.pair_loss import RMSE
from ltrec_jax.train.tracking import JsonLines, Nowhere, read_rows

SOURCE = types.SimpleNamespace(steps_per_epoch=4, units_per_epoch=4, tokens_per_epoch=0, user_encodings_per_epoch=0)
BATCH = types.SimpleNamespace(token_places=0)


@pytest.mark.parametrize(("usual", "first_bad"), [(0.0, 2), (1.0, 3)])
def test_a_first_loss_near_zero_is_no_measure_where_a_usual_one_is_known(usual, first_bad):
    figures = Figures(lambda sums: {"loss": sums["loss"] / sums["weight"]}, "items", "", usual=usual)
    meter = Meter("phase", figures, SOURCE, Nowhere(), start=0, total=3)
    found = []
    for step, loss in enumerate((1e-6, 0.5, 200.0), 1):
        meter.add(step, BATCH, {"loss": loss, "weight": 1.0, "gradient_norm": 0.0})
        found.append(meter.flush())
    meter.close()
    assert next(bad.step for bad in found if bad) == first_bad


@pytest.mark.parametrize("encodes", [True, False])
def test_bar_and_rows_tell_loss_pairs_texts_tokens_and_padding(tmp_path, monkeypatch, capsys, encodes):
    """Four steps of two seconds in all: 40 pairs each, 30 of an epoch's 60 texts (10 of them of users), 300 of 600
    tokens in 400 places."""
    seconds = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr(meter_module, "time", types.SimpleNamespace(perf_counter=lambda: next(seconds)))
    source = types.SimpleNamespace(
        steps_per_epoch=8,
        units_per_epoch=50,
        user_encodings_per_epoch=10,
        tokens_per_epoch=600 if encodes else 0,
    )
    batch = types.SimpleNamespace(token_places=100 if encodes else 0)
    writer = JsonLines(tmp_path / "m.jsonl")
    meter = Meter("encoder", RMSE, source, writer, start=0, total=8, learning_rate=lambda step: 0.5)
    for step in range(1, 5):
        meter.add(step, batch, {"squared_error": 10.0, "weight": 40.0, "gradient_norm": 3.0})
    assert meter.flush() is None
    meter.close()
    writer.close()
    texts = {"texts_encoded": 30, "tokens_encoded": 300, "padding": 0.25}
    assert read_rows(tmp_path / "m.jsonl")[1] == {
        "step": 4,
        "phase": "encoder",
        "epoch": 0.5,
        "train_rmse": 0.5,
        "gradient_norm": 3.0,
        "pairs_seen": 160,
        **(texts if encodes else dict.fromkeys(texts, 0)),
        "seconds": 2.0,
        "learning_rate": 0.5,
    }
    shown = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r"encoder: +50%.*4/8 \[\d\d:\d\d<\d\d:\d\d", shown)  # the time left
    assert "rmse 0.5000, 80 pairs/s" in shown
    assert ("15 texts/s, 150 tokens/s, padding 25%" in shown) == encodes
