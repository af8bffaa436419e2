"""When a loss counts as exploded (what else a meter tells is tested with the loop)."""

import types

import pytest

from ltrec_jax.train.meter import Figures, Meter
from ltrec_jax.train.tracking import Nowhere

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
