"""The contrast of two views of each text: by hand, on devices as on one, and what cannot be asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.errors import UserError
from ltrec_jax.train import phases
from ltrec_jax.train.batches import Batch
from ltrec_jax.train.contrast_loss import with_contrast
from ltrec_jax.train.problem import load_problem


def test_the_contrast_is_the_formula_over_distinct_items():
    """Items 4 and 1 stand in slots, 4 twice, beside padding: two texts, each against the other's second view."""
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(4, 3)) for _ in range(2)]
    batch = Batch(
        item=np.array([4, 1, 4, 5]),  # there are five items: the last slot is padding
        gate=np.zeros(4),
        pair_user=np.zeros(3, int),
        pair_item=np.zeros(3, int),
        target=np.zeros(3),
        weight=np.array([1.0, 0.5, 0.0]),
        token_ids=None,
        token_slot=None,
        token_position=None,
    )
    seen = []

    def pooled(params, batch, words, key):
        seen.append(jax.random.key_data(key).tolist())
        return jnp.asarray(views[len(seen) - 1])

    def make(given):
        return lambda params, rows, batch, key: (given(params, batch, None, key).sum(), {"loss": 1.0})

    loss = with_contrast(make, pooled, weight=0.2, temperature=0.5, num_items=5, axis=None)
    found, sums = loss({"head": None}, {}, batch, jax.random.key(0))
    assert seen[0] != seen[1]
    a, b = (view[:2] / np.linalg.norm(view[:2], axis=1, keepdims=True) for view in views)
    scores = a @ b.T / 0.5
    own = np.diag(scores)
    by_hand = np.mean([np.log(np.exp(s).sum(axis=1)) - own for s in (scores, scores.T)])
    assert float(found) == pytest.approx(views[0].sum() + 0.2 * by_hand * 1.5, rel=1e-5)
    assert sums == {"loss": 1.0}


@pytest.fixture(scope="module")
def problem(small_split, small_config):
    train = dataclasses.replace(
        small_config.train, encoder_dropout=True, contrast_weight=1.0, trainable="top:1", cache_layers=False
    )
    config = dataclasses.replace(small_config, train=train)
    return load_problem(small_split, config, spread=parallel.choose("jit"))


@pytest.mark.slow
def test_two_devices_take_the_step_of_one_and_the_contrast_moves_it(problem, run_steps):
    def step(mode, count, weight):
        train = dataclasses.replace(problem.config.train, contrast_weight=weight)
        config, spread = dataclasses.replace(problem.config, train=train), parallel.choose(mode, count=count)
        asked = dataclasses.replace(problem, config=config, spread=spread)
        _, (row,) = run_steps(asked, "encoder", steps=1)
        return row

    one, many, without = step("jit", None, 1.0), step("pmap", 2, 1.0), step("jit", None, 0.0)
    np.testing.assert_allclose(many["gradient_norm"], one["gradient_norm"], rtol=1e-3)
    np.testing.assert_allclose(many["squared_error"], one["squared_error"], rtol=1e-4)
    assert abs(one["gradient_norm"] - without["gradient_norm"]) > 0.01 * without["gradient_norm"]


@pytest.mark.slow
def test_texts_of_users_and_learning_words_stand_beside_it(small_split, problem):
    """Rows of the users' words follow those of the items' in a step."""
    config = problem.config
    train = dataclasses.replace(config.train, trainable="all")
    schedule = dataclasses.replace(config.schedule, steps="gradient")
    data = dataclasses.replace(config.data, user_template="the {user_id}")
    asked = load_problem(
        small_split, dataclasses.replace(config, train=train, schedule=schedule, data=data), spread=problem.spread
    )
    prepared = phases.prepare_encoder(asked, 1, patience=0, start=None)
    batch = prepared.source.batch(0, 0)
    assert batch.user_texts is not None
    _, row = prepared.step(prepared.state, asked.spread.shard(batch), asked.spread.replicate(jax.random.key(0)))
    assert np.isfinite(jax.device_get(row)["gradient_norm"])


@pytest.mark.parametrize(
    ("changes", "schedule", "told"),
    [
        ({"encoder_dropout": False}, {}, r"train\.encoder_dropout"),
        ({"accumulate": 2}, {}, r"train\.accumulate"),
        ({"trainable": "none"}, {}, "trainable is none"),
        ({"contrast_temperature": 0.0}, {}, "above 0"),
        ({"contrast_weight": -1.0}, {}, r"train\.contrast_weight"),
        ({}, {"steps": "solve"}, r"schedule\.tune_on"),
    ],
)
def test_what_cannot_be_asked_for(small_config, changes, schedule, told):
    asked = {"contrast_weight": 0.1, "encoder_dropout": True} | changes
    with pytest.raises(UserError, match=told):
        dataclasses.replace(
            small_config,
            train=dataclasses.replace(small_config.train, **asked),
            schedule=dataclasses.replace(small_config.schedule, **schedule),
        )
