"""Fine-tuning towards solved item vectors: the loss is the formula, it falls, and only what may learn has moved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.config import ScheduleConfig
from ltrec_jax.encoder.catalogue import encode_catalogue
from ltrec_jax.solve import anchored_model
from ltrec_jax.train import item_phase
from ltrec_jax.train.batches import Batch
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.tracking import Nowhere


def test_the_loss_is_the_weighted_distance_by_hand():
    rng = np.random.default_rng(0)
    pooled, targets = rng.normal(size=(3, 4)), rng.normal(size=(5, 2))
    head = {
        "start": rng.normal(size=(4, 2)),
        "projection": rng.normal(size=(4, 2)),
        "center": rng.normal(size=4),
        "targets": targets,
    }
    batch = Batch(
        item=np.array([4, 1, 5]),  # the last slot is padding: there are five items
        gate=np.zeros(3),
        pair_user=np.zeros(3, int),
        pair_item=np.array([0, 1, 0]),
        target=np.array([0.5, 2.0, 9.0]),
        weight=np.array([1.0, 1.0, 0.0]),
        token_ids=None,
        token_slot=None,
        token_position=None,
    )
    loss = item_phase.item_loss(lambda params, batch, words, key: jnp.asarray(pooled))
    found, sums = loss({"head": jax.tree.map(jnp.asarray, head)}, {}, batch, jax.random.key(0))
    shifted = pooled - head["center"]
    x = shifted / np.linalg.norm(shifted, axis=1, keepdims=True) @ (head["start"] + head["projection"])
    by_hand = 0.5 * ((x[0] - targets[4]) ** 2).sum() + 2.0 * ((x[1] - targets[1]) ** 2).sum()
    assert float(found) == pytest.approx(by_hand, rel=1e-5)
    assert float(sums["squared_distance"]) == float(found)


@pytest.mark.slow
def test_anchors_move_towards_the_warm_items(small_split, small_config, tmp_path):
    schedule = ScheduleConfig(trainable="top:1", epochs=6, batch_items=16, learning_rate=3e-3, head_learning_rate=3e-3)
    problem = load_problem(small_split, dataclasses.replace(small_config, schedule=schedule))
    anchors = anchored_model.text_anchors(problem.features_IxE, small_config.whole_data)
    wanted = np.roll(anchors.vectors, 1, axis=1)
    with Checkpoints(tmp_path / "items", keep=1) as kept:
        tuned = item_phase.tune(problem, anchors, wanted, problem.popularity.counts, kept, Nowhere())
    warm = problem.popularity.counts > 0

    def distance(found):
        return float(((found.vectors - wanted)[warm] ** 2).sum(axis=1).mean())

    assert distance(tuned.anchors) < 0.8 * distance(anchors)
    before, after = problem.encoder.params["encoder"]["layer"], tuned.params["encoder"]["layer"]
    same = jax.tree.map(np.array_equal, before, after)
    assert all(jax.tree.leaves(same["0"]))
    assert not all(jax.tree.leaves(same["1"]))
    np.testing.assert_array_equal(tuned.anchors.center_E, anchors.center_E)


@pytest.mark.slow
def test_all_of_the_encoder_learns_its_words_too(small_split, small_config, tmp_path):
    schedule = ScheduleConfig(trainable="all", epochs=3, batch_items=16, learning_rate=3e-3, head_learning_rate=3e-3)
    problem = load_problem(small_split, dataclasses.replace(small_config, schedule=schedule))
    anchors = anchored_model.text_anchors(problem.features_IxE, small_config.whole_data)
    wanted = np.roll(anchors.vectors, 1, axis=1)
    with Checkpoints(tmp_path / "items", keep=1) as kept:
        tuned = item_phase.tune(problem, anchors, wanted, problem.popularity.counts, kept, Nowhere())
    assert jax.tree.structure(tuned.params) == jax.tree.structure(problem.encoder.params)
    words, learnt = (p["embeddings"]["word_embeddings"]["embedding"] for p in (problem.encoder.params, tuned.params))
    warm = np.flatnonzero(problem.popularity.counts)
    used = np.unique(problem.tokens.take(warm).values)
    unused = np.setdiff1d(np.arange(len(words)), [*used, problem.encoder.config.pad_token_id])
    assert len(unused)
    np.testing.assert_array_equal(learnt[unused], words[unused])
    assert (learnt[used] != words[used]).any(axis=1).all()
    for layer in "01":
        kernel = ("output", "dense", "kernel")
        before, after = (p["encoder"]["layer"][layer] for p in (problem.encoder.params, tuned.params))
        for name in kernel:
            before, after = before[name], after[name]
        assert not np.array_equal(before, after)
    # The vectors are those of the encoder as it is left, words included.
    left = dataclasses.replace(problem.encoder, params=tuned.params)
    again = encode_catalogue(left, problem.tokens, policy="float32", progress=False)
    np.testing.assert_allclose(tuned.features_IxE, again, atol=1e-5)
