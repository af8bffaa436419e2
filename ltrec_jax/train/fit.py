"""Training from end to end: a split and a config in, a run directory and its deployable bundle out."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from ltrec_jax import config as configuration
from ltrec_jax import plain_settings, processes, storage
from ltrec_jax.bundle import Bundle, save_vectors
from ltrec_jax.config import Config
from ltrec_jax.data import columns
from ltrec_jax.data.dataset import Split
from ltrec_jax.data.history import history
from ltrec_jax.data.likes import positive_rating
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.model.words import Words
from ltrec_jax.solve.fold_in import UserPrior
from ltrec_jax.train import gradient, phases, schedule, stopping
from ltrec_jax.train.phases import ENCODER, HEAD
from ltrec_jax.train.problem import Problem, load_problem
from ltrec_jax.train.tracking import Nowhere, open_writer
from ltrec_jax.types import MetricWriter, PyTree

REFIT = "refit "
"""Before the name of a phase in the metrics: the final fit on training and validation together."""
FROZEN_TEXT = "frozen_text.safetensors"
"""In a run directory: the vectors before the encoder learnt anything (of the first solve, or of the head phase)."""


def fit(
    split: Split, config: Config | None = None, out: Path | None = None, *, resume: bool = False, profile: int = 0
) -> Bundle:
    """Train on the split's training part as `config.schedule` says, and return the bundle.

    With `out` the run directory is kept: `config.toml`, `metrics.jsonl`, `checkpoints/`, `bundle/` and the frozen-text
    vectors. `resume` goes on from its newest checkpoints and ends with the same bits as an uninterrupted run; a
    directory made with another configuration is refused. The validation part chooses epochs (by gradient), or whether
    fine-tuning is kept (between solves for ratings); with `config.refit` what it chose is trained, or solved, once more
    on training and validation together. Solves for lists learn from both at once. `profile` traces so many steps of
    the last phase into `profile/`. SIGINT and SIGTERM raise `StoppedError`: from between steps, saved, where there are
    steps, and else at once; nothing half written stays.
    """
    config = config or Config()
    if profile and config.schedule.steps == "solve":
        raise UserError("A profile traces steps of training, and the schedule solve has none: take another.")
    if out is None:
        if processes.number() > 1:
            raise UserError("Several processes share one run directory: name it (out).")
        with tempfile.TemporaryDirectory(prefix="ltrec-") as temporary:
            try:
                return fit(split, config, Path(temporary) / "run", profile=profile)
            except StoppedError as stopped:
                raise StoppedError(f"{str(stopped).split(';')[0]}; without a run directory nothing is kept.") from None
    out = Path(out)
    with stopping.at_once(f"; what had been finished is saved in {out}. {stopping.RESUME}"):
        with stopping.deferred():
            processes.first_makes(lambda: _open_run(out, config, resume=resume), out / "config.toml")
        return _fit(split, config, out, profile)


def _fit(split: Split, config: Config, out: Path, profile: int) -> Bundle:
    problem = load_problem(split, config)
    stopping.check()
    first = processes.is_first()
    writer = open_writer(out, config.train.track, plain_settings.to_dict(config)) if first else Nowhere()
    trace = (out / "profile", profile if first else 0)
    with contextlib.closing(writer):
        if config.schedule.steps == "gradient":
            bundle, frozen_text = _by_gradient(problem, out, writer, trace)
        else:
            bundle, frozen_text = _by_schedule(problem, out, writer, trace)
    if frozen_text is not None:
        processes.first_does(lambda: save_vectors(frozen_text, out / FROZEN_TEXT))
    processes.first_does(lambda: bundle.save(out / "bundle", replace=True))
    return bundle


def _by_schedule(
    problem: Problem, out: Path, writer: MetricWriter, trace: tuple[Path, int]
) -> tuple[Bundle, Vectors | None]:
    """Of ratings, validation tells whether fine-tuning is kept; under `refit` all is solved once more with those rows.

    Of lists it tells nothing: under `refit` they are learnt from at once.
    """
    place, config = out / "checkpoints" / "schedule", problem.config
    whole = problem.on(problem.split.with_validation_in_train()) if config.refit else problem
    if config.schedule.goal == "explicit" and config.schedule.steps == "solve_tune_solve":
        found = schedule.run(problem, place, writer, trace=trace)
        if config.refit and len(problem.split.validation_rows):
            found = schedule.again(whole, found)
    else:
        found = schedule.run(whole, place, writer, trace=trace)
    solved, params = found.solved, {"encoder": found.params, "head": dict(found.solved.head)}
    bundle = _bundle(whole, solved.vectors, params, found.features_IxE, solved.prior, solved.words)
    return bundle, found.frozen_text


def _by_gradient(
    problem: Problem, out: Path, writer: MetricWriter, trace: tuple[Path, int]
) -> tuple[Bundle, Vectors | None]:
    config, split = problem.config, problem.split
    train = config.train
    epochs = {HEAD: train.head_epochs, ENCODER: 0 if train.trainable == "none" else train.epochs}
    finished = gradient.run(problem, epochs, train.patience, out / "checkpoints" / "choose", writer, trace=trace)
    if config.refit and len(split.validation_rows):
        chosen = {name: outcome.epoch for name, (_, outcome) in finished.items()}
        problem = problem.on(split.with_validation_in_train())
        finished = gradient.run(problem, chosen, 0, out / "checkpoints" / "refit", writer, label=REFIT)
    frozen_text = None
    if HEAD in finished and ENCODER in finished:
        prepared, outcome = finished[HEAD]
        frozen_text, _ = phases.finished_vectors(problem, prepared, outcome.state)
    prepared, outcome = list(finished.values())[-1]
    vectors, text_vectors = phases.finished_vectors(problem, prepared, outcome.state)
    bundle = _bundle(problem, vectors, phases.parameters(problem, outcome.state), text_vectors, None)
    of_texts = phases.user_text_rows(problem, prepared, outcome.state)
    return dataclasses.replace(bundle, user_text_rows=of_texts), frozen_text


def load_run_config(run: Path) -> Config:
    """The configuration a run directory was made with; anything else than a run directory is a `UserError`."""
    path = Path(run) / "config.toml"
    if not path.is_file():
        raise UserError(f"{run} is not a run directory: it has no config.toml. `ltrec train --out {run}` makes one.")
    return configuration.from_toml(path.read_text(encoding="utf-8"), str(path))


def _open_run(out: Path, config: Config, *, resume: bool) -> None:
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty. Choose another directory with --out, or go on in it with --resume.")
        storage.write_text(out / "config.toml", plain_settings.to_toml(config))
    elif load_run_config(out) != config:
        raise UserError(f"{out} was started with another configuration (see its config.toml); it cannot be resumed.")


def _bundle(
    problem: Problem,
    vectors: Vectors,
    params: PyTree,
    text_vectors: np.ndarray,
    prior: UserPrior | None,
    words: Words | None = None,
) -> Bundle:
    """The bundle of finished vectors; `params` is {"encoder": ..., "head": ...}."""
    dataset, train = problem.dataset, problem.split.train
    params = jax.tree.map(np.asarray, params)
    scale = dataset.info.get("scale") or [float(train.rating.min()), float(train.rating.max())]
    # What serving needs to weigh a new user's ratings as training did; solves weigh by their own.
    by_rating = problem.rating_weights() if prior is None else None
    weights = {} if by_rating is None else {"rating_weights": [part.tolist() for part in by_rating]}
    items: pd.DataFrame = dataset.items.assign(**{columns.TEXT: problem.texts})
    return Bundle(
        config=problem.config,
        about={
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
            "split": problem.split.name,
            "texts": {
                "count": len(problem.texts),
                "tokens": len(problem.tokens.values),
                "truncated": problem.tokens.truncated,
            },
            "scale": scale,
            "positive_rating": positive_rating(dataset),
            **weights,
        },
        vectors=vectors,
        text_vectors=text_vectors.astype(np.float16),
        users=dataset.users[[columns.USER_ID]],
        items=items,
        history=history(train, dataset.num_users),
        counts=problem.popularity.counts,
        group=problem.popularity.group,
        encoder=problem.encoder.with_params(params["encoder"]),
        head=params["head"],
        prior=prior,
        words=words and dataclasses.replace(words, vectors=words.vectors.astype(np.float16)),
    )
