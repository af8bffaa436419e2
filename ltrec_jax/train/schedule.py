"""Solve, fine-tune, solve: exact solves of the head around the learning of the encoder, as `[schedule]` says.

Each solve takes text vectors and training events and gives finished vectors; between two of them the encoder learns,
towards the solved item vectors or on rating pairs, and the texts are encoded anew. Out of scope: gradient training from
start to end (`gradient`), the run directory (`fit`).
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.train import gradient, item_phase, phases
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.item_phase import ITEMS
from ltrec_jax.train.problem import Problem
from ltrec_jax.train.solves import Solved, solve
from ltrec_jax.types import MetricWriter, PyTree


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a bundle needs. `frozen_text`: the vectors before the encoder learnt, None where it did not."""

    solved: Solved
    params: PyTree
    features_IxE: np.ndarray
    frozen_text: Vectors | None


def run(problem: Problem, checkpoints: Path, writer: MetricWriter) -> Finished:
    """The whole schedule on the problem's training part. Deterministic, and resumed from `checkpoints`."""
    schedule = problem.config.schedule
    first = solve(problem, problem.features_IxE)
    if schedule.steps == "solve" or schedule.epochs == 0:
        return Finished(first, problem.encoder.params, problem.features_IxE, None)
    if schedule.tune_on == "items":
        with Checkpoints(checkpoints / ITEMS, keep=problem.config.train.checkpoints) as kept:
            tuned = item_phase.tune(problem, first.anchors, first.item_rows, first.counts, kept, writer)
        params, features, anchors = tuned.params, tuned.features_IxE, tuned.anchors
    else:
        params, features = _tune_on_pairs(problem, checkpoints, writer)
        anchors = None
    return Finished(solve(problem, features, anchors), params, features, first.vectors)


def _tune_on_pairs(problem: Problem, checkpoints: Path, writer: MetricWriter) -> tuple[PyTree, np.ndarray]:
    """Gradient training of head and encoder on the rating pairs; kept are the encoder and its text vectors."""
    schedule, train = problem.config.schedule, problem.config.train
    train = dataclasses.replace(train, trainable=schedule.trainable, epochs=schedule.epochs)
    problem = dataclasses.replace(problem, config=dataclasses.replace(problem.config, train=train))
    epochs = {phases.HEAD: train.head_epochs, phases.ENCODER: schedule.epochs}
    finished = gradient.run(problem, epochs, train.patience, checkpoints, writer)
    prepared, outcome = finished[phases.ENCODER]
    params = jax.tree.map(np.asarray, phases.parameters(problem, outcome.state)["encoder"])
    features = prepared.pooled(outcome.state, np.arange(problem.dataset.num_items))
    return params, np.asarray(features)
