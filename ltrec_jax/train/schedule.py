"""Solve, fine-tune, solve: exact solves of the head around the learning of the encoder, as `[schedule]` says.

Each solve takes text vectors and training events and gives finished vectors; between two of them the encoder learns,
towards the solved item vectors or on rating pairs, and the texts are encoded anew. Lists may do without the second one
(`solve_again`): what the encoder learnt then moves cold items and later texts, and nothing else. Out of scope: gradient
training from start to end (`gradient`), the run directory (`fit`).
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ltrec_jax import processes
from ltrec_jax.config import Config, ModelConfig, TrainConfig
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.solve.anchored_model import Anchors
from ltrec_jax.train import gradient, item_phase, kept_solves, phases, stopping
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.item_phase import ITEMS
from ltrec_jax.train.problem import Problem
from ltrec_jax.train.solves import Solved, distinct_likes, solve, with_cold_items
from ltrec_jax.types import MetricWriter, PyTree

FIRST, SECOND = "solve", "solve again"
_FILES = {FIRST: "solve.safetensors", SECOND: "solve_again.safetensors"}
WORSE = 1.001
"""Times the validation RMSE before fine-tuning: beyond that it is given up. Less is chance."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a bundle needs. `frozen_text`: the vectors before the encoder learnt, None where it did not."""

    solved: Solved
    params: PyTree
    features_IxE: np.ndarray
    frozen_text: Vectors | None


def run(
    problem: Problem, checkpoints: Path, writer: MetricWriter, *, trace: tuple[Path, int] | None = None
) -> Finished:
    """The whole schedule on the problem's training part. Deterministic, and resumed from `checkpoints`, where the
    solves around a fine-tuning are kept too.

    What a solve took, and its validation RMSE where it predicts ratings, are rows of the metrics; where fine-tuning
    made that worse, the first solve is the outcome. `trace`: a directory, and how many steps of the fine-tuning are
    traced into it.
    """
    schedule = problem.config.schedule
    _warn_of_equal_ratings(problem)
    _warn_of_settings_that_are_not_read(problem.config)
    alone = schedule.steps == "solve" or schedule.epochs == 0
    place = None if alone else checkpoints
    first, before = _solve(problem, FIRST, 0, problem.features_IxE, None, place, writer)
    frozen = Finished(first, problem.encoder.params, problem.features_IxE, None)
    if alone:
        return frozen
    if schedule.tune_on == "items":
        with Checkpoints(checkpoints / ITEMS, keep=problem.config.train.checkpoints) as kept:
            tuned = item_phase.tune(problem, first.anchors, first.item_rows, first.counts, kept, writer, trace=trace)
        params, features, anchors = tuned.params, tuned.features_IxE, tuned.anchors
    else:
        params, features = _tune_on_pairs(problem, checkpoints, writer, trace)
        anchors = None
    if not schedule.solve_again:
        return Finished(with_cold_items(problem, first, features, anchors), params, features, first.vectors)
    second, after = _solve(problem, SECOND, schedule.epochs, features, anchors, place, writer)
    if before is not None and after is not None and after > WORSE * before:
        if processes.is_first():
            print(f"Fine-tuning is not kept: validation RMSE {before:.4f} before, {after:.4f} after.", file=sys.stderr)
        return frozen
    return Finished(second, params, features, first.vectors)


def again(problem: Problem, found: Finished) -> Finished:
    """The solves of a finished schedule for ratings on another training part, with the encoder as it was left."""
    solved = solve(problem, found.features_IxE)
    if found.frozen_text is None:
        return dataclasses.replace(found, solved=solved)
    return dataclasses.replace(found, solved=solved, frozen_text=solve(problem, problem.features_IxE).vectors)


def on_pairs(problem: Problem) -> Problem:
    """The problem whose gradient training is this schedule's fine-tuning on pairs."""
    config, schedule = problem.config, problem.config.schedule
    model, train = config.model, dataclasses.replace(config.train, trainable=schedule.trainable, epochs=schedule.epochs)
    if config.solves_on_pairs:
        model, train = _as_solved(problem, train)
    return dataclasses.replace(problem, config=dataclasses.replace(config, model=model, train=train))


def _as_solved(problem: Problem, train: TrainConfig) -> tuple[ModelConfig, TrainConfig]:
    """Settings under which pairs are learnt from as the solves of whole data do: their objective, weights, penalties.

    What a solve adds in penalties, lam (n_u + a0 |I|) |p_u|^2 and its like for items, is spread evenly over the N
    likes: lam (1 + a0 |U| |I| / N) of each.
    """
    whole = problem.config.whole_data
    user, item = distinct_likes(problem)
    pairs = len(np.unique(user)) * len(np.unique(item))
    l2 = whole.l2 * (1.0 + whole.unobserved_weight * pairs / max(len(user), 1))
    train = dataclasses.replace(
        train, objective="whole_data", propensity_power=whole.propensity_power, propensity_clip=0.0
    )
    model = dataclasses.replace(problem.config.model, user_l2=l2, item_l2=l2, bias_l2=l2, embedding_dropout=0.0)
    return model, train


def _solve(
    problem: Problem,
    name: str,
    epoch: int,
    features_IxE: np.ndarray,
    anchors: Anchors | None,
    place: Path | None,
    writer: MetricWriter,
) -> tuple[Solved, float | None]:
    """A solve, or what an earlier one left at `place`, and its validation RMSE, if it has one.

    The same for all processes.
    """
    key = b"" if place is None else kept_solves.key(problem, features_IxE, anchors)
    if place is not None and (found := kept_solves.read(place / _FILES[name], key, problem)):
        return found, _validation_rmse(problem, found)
    began = time.perf_counter()
    solved = solve(problem, features_IxE, anchors)
    row: dict[str, Any] = {"phase": name, "epoch": float(epoch), "seconds": time.perf_counter() - began}
    if (error := _validation_rmse(problem, solved)) is not None:
        row["validation_rmse"] = error
    writer.rewind(name, -1)
    # Before it is kept: a resumed run that finds it has the row too.
    writer.write(0, row)
    if place is not None:
        kept_solves.keep(place / _FILES[name], key, solved)
    stopping.check()
    return solved, error


def _validation_rmse(problem: Problem, solved: Solved) -> float | None:
    validation = problem.split.validation
    if not solved.vectors.predicts_ratings or not len(validation):
        return None
    error = solved.vectors.score_pairs(validation.user, validation.item) - validation.rating
    return processes.of_first(float(np.sqrt(np.mean(error.astype(np.float64) ** 2))))


def _tune_on_pairs(
    problem: Problem, checkpoints: Path, writer: MetricWriter, trace: tuple[Path, int] | None
) -> tuple[PyTree, np.ndarray]:
    """Gradient training of head and encoder on the rating pairs; kept are the encoder and its text vectors."""
    problem = on_pairs(problem)
    train = problem.config.train
    epochs = {phases.HEAD: train.head_epochs, phases.ENCODER: train.epochs}
    finished = gradient.run(problem, epochs, train.patience, checkpoints, writer, trace=trace)
    prepared, outcome = finished[phases.ENCODER]
    params = jax.tree.map(np.asarray, phases.parameters(problem, outcome.state)["encoder"])
    features = prepared.pooled(outcome.state, np.arange(problem.dataset.num_items))
    return params, np.asarray(features)


def _warn_of_equal_ratings(problem: Problem) -> None:
    ratings = problem.split.train.rating
    if problem.config.schedule.goal == "explicit" and ratings.min() == ratings.max() and processes.is_first():
        print(
            f"All training ratings are {ratings[0]:g}: as ratings they tell nothing apart. For clicks and the like "
            "solve for top-N lists: --schedule.goal whole_data.",
            file=sys.stderr,
        )


def _warn_of_settings_that_are_not_read(config: Config) -> None:
    """Those of [train] that somebody has changed, and whose namesakes in [schedule] count."""
    usual, schedule = TrainConfig(), config.schedule
    unread = ["trainable", "epochs"]
    if schedule.steps == "solve" or schedule.tune_on == "items":
        unread += ["batch_items", "learning_rate", "head_learning_rate"]
    changed = [f"train.{name}" for name in unread if getattr(config.train, name) != getattr(usual, name)]
    if changed and processes.is_first():
        remedy = (
            "A solve alone has no steps; set schedule.steps to gradient to train by them."
            if schedule.steps == "solve"
            else "Set those of the same names in [schedule], or schedule.steps to gradient."
        )
        print(f"Not read: {', '.join(changed)}. {remedy}", file=sys.stderr)
