"""One experiment as the command line and Python see it: open data, split, fit, evaluate against baselines, report."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import page, parallel, plain_settings, storage
from ltrec_jax.baselines import biases, registry
from ltrec_jax.baselines.item_texts import item_texts
from ltrec_jax.baselines.registry import Fitted
from ltrec_jax.baselines.training import training
from ltrec_jax.bundle import Bundle, load_vectors
from ltrec_jax.config import Config
from ltrec_jax.data import columns, sources, splits
from ltrec_jax.data.dataset import Dataset, Split
from ltrec_jax.data.popularity import popularity
from ltrec_jax.errors import UserError
from ltrec_jax.evaluation import report
from ltrec_jax.evaluation.report import Report
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.serve.service import Recommendation, recommend
from ltrec_jax.solve.cold_start import dialled
from ltrec_jax.text import corpus
from ltrec_jax.text.corpus import Corpus
from ltrec_jax.train.fit import FROZEN_TEXT, REFIT, fit, load_run_config
from ltrec_jax.train.plan import Plan, make_plan
from ltrec_jax.train.tracking import read_rows
from ltrec_jax.types import Recommender

OURS, FROZEN, BIASES = "ltrec", "frozen text", "biases only"
_TAIL_POWERS = (0.0, 0.05, 0.1, 0.2, 0.3)


def load(name: str | os.PathLike[str]) -> Dataset:
    """A dataset by the name of a known source (fetched and cached), or from a dataset directory."""
    return Dataset.load(Path(name)) if _is_place(name) else sources.load(str(name))


def load_texts(name: str | os.PathLike[str], template: str = "") -> Corpus:
    """The item texts of what `load` opens, read from disk piece by piece, however many there are."""
    return corpus.from_directory(Path(name) if _is_place(name) else sources.locate(str(name)), template)


def _is_place(name: str | os.PathLike[str]) -> bool:
    return Path(name).is_dir() or len(Path(name).parts) > 1


def split_of(dataset: Dataset, config: Config) -> Split:
    """The split that a configuration asks for."""
    data = config.data
    asked: dict[str, Any] = {
        "fold": data.fold,
        "test": data.test,
        "validation": data.validation,
        "share": data.cold_share,
        "validation_share": data.cold_validation,
        "per_user": data.per_user,
        "seed": config.seed,
    }
    known = splits.options_of(data.split)
    return splits.make(dataset, data.split, **{name: value for name, value in asked.items() if name in known})


def train(config: Config, out: Path, *, resume: bool = False, profile: int = 0) -> Bundle:
    """Fit the configured model on the configured data into a run directory; `profile` steps of it are traced."""
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    parallel.warn_about_unused_accelerator()
    return fit(split_of(load(config.data.dataset), config), config, out, resume=resume, profile=profile)


def plan(config: Config) -> Plan:
    """What `train` would need, without training."""
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    return make_plan(split_of(load(config.data.dataset), config), config)


def open_run(run: Path) -> tuple[Config, Bundle]:
    """Configuration and bundle of a finished run."""
    run = Path(run)
    config = load_run_config(run)
    if not (run / "bundle").is_dir():
        raise UserError(f"{run} has no bundle: its training has not finished. Go on with `ltrec train --resume`.")
    return config, Bundle.load(run / "bundle")


def evaluate(
    models: Recommender | Mapping[str, Recommender],
    split: Split,
    config: Config | None = None,
    *,
    seconds: Mapping[str, Mapping[str, float]] | None = None,
) -> Report:
    """Score one model, or several by name, on the split's test part, beside biases fitted on the same training part.

    The first model is the report's primary: every other one is compared with it. If it is a bundle, lists are also
    judged by how far its texts lie apart, and its tail dial is turned. `seconds`: model -> stage -> s, for the report.
    """
    config = config or Config()
    named = dict(models) if isinstance(models, Mapping) else {OURS: models}
    primary = next(iter(named))
    first = named[primary]
    vectors = first.vectors if isinstance(first, Bundle) else first
    events, dataset = split.train, split.dataset
    counts = popularity(events.item, dataset.num_items)
    return report.evaluate(
        {**named, BIASES: biases.fit(events, dataset.num_users, dataset.num_items)},
        split,
        counts.masks(),
        counts.counts,
        primary=primary,
        ks=config.evaluation.cutoffs,
        positive_rating=config.evaluation.positive_rating or dataset.info.get("positive_rating") or 0.0,
        seed=config.seed,
        seconds=seconds,
        imputed_by=BIASES,
        item_vectors=first.text_vectors if isinstance(first, Bundle) else None,
        dials={primary: _turned(vectors, counts.counts)} if isinstance(vectors, Vectors) else None,
    )


def compare(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Report:
    """Evaluate finished runs side by side on the test part that they share, beside biases; the first is the primary.

    Differences are paired over users and Holm-corrected. With `out`, `report.json` and `report.html` are written there.
    Fewer than two runs, one run twice, an unfinished run, or runs of different splits are a `UserError`.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise UserError("Name at least two different run directories to compare.")
    opened = [open_run(path) for path in paths]
    split = _shared_split(paths, [config for config, _ in opened])
    short = [path.resolve().name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    found = evaluate({name: bundle for name, (_, bundle) in zip(names, opened, strict=True)}, split, opened[0][0])
    if out is not None:
        settings = {name: plain_settings.to_dict(config) for name, (config, _) in zip(names, opened, strict=True)}
        report.write_report(found, Path(out), settings=settings, hardware=parallel.describe_hardware())
    return found


def evaluate_run(
    run: Path, baselines: Sequence[str] = (), settings: Path | None = None
) -> tuple[Report, list[Recommendation]]:
    """Evaluate a finished run on its test part, once, and write `report.json` and `report.html` into it.

    Beside the model stand the frozen-text model of the same run, biases only and `fit_baselines`, all trained on the
    same rows. Also returned: ten recommendations for one user, which the page shows.
    """
    run = Path(run)
    config, bundle = open_run(run)
    split = _split_of_run(config)
    models: dict[str, Recommender] = {OURS: bundle}
    if (run / FROZEN_TEXT).is_file():
        models[FROZEN] = load_vectors(run / FROZEN_TEXT)
    fitted = fit_baselines(bundle, split, config, baselines, settings)
    found = evaluate(models | fitted.models, split, config, seconds=fitted.seconds)
    user = example_user(bundle)
    examples = recommend(bundle, user, 10)
    report.write_report(
        found,
        run,
        curve=[row for row in read_rows(run / "metrics.jsonl") if not row["phase"].startswith(REFIT)],
        examples={user: examples},
        settings=plain_settings.to_dict(config),
        hardware=parallel.describe_hardware(),
    )
    return found, examples


def fit_baselines(
    model: Recommender, split: Split, config: Config, names: Sequence[str] = (), settings: Path | None = None
) -> Fitted:
    """What a model is compared with, fitted on the split's training part.

    `names` (else `evaluation.baselines`, else for a model that ranks the usual ones that this catalogue is small enough
    for, and none for one that predicts ratings); `settings` (else `evaluation.baseline_settings`): a TOML file as
    `ltrec tune` writes it. Unknown names, and a library or texts that are missing, are a `UserError`.
    """
    dataset, path = split.dataset, settings or config.evaluation.baseline_settings
    positive = config.evaluation.positive_rating or dataset.info.get("positive_rating") or 0.0
    learnt_from = training(split, positive, item_texts(dataset, config), config.seed)
    wanted = list(names or config.evaluation.baselines)
    if not wanted and not getattr(model, "predicts_ratings", True):
        wanted = registry.affordable(registry.USUAL, learnt_from)
    return registry.fit_all(wanted, learnt_from, registry.read_settings(Path(path)) if path else None)


def _split_of_run(config: Config) -> Split:
    """The split whose training part the run's final model has seen."""
    split = split_of(load(config.data.dataset), config)
    return split.with_validation_in_train() if config.refit else split


def _shared_split(runs: Sequence[Path], configs: Sequence[Config]) -> Split:
    first = _split_of_run(configs[0])
    for run, config in zip(runs[1:], configs[1:], strict=True):
        other = _split_of_run(config)
        same_rows = all(
            np.array_equal(getattr(first, part), getattr(other, part)) for part in ("train_rows", "test_rows")
        )
        if not same_rows or first.dataset.fingerprint != other.dataset.fingerprint:
            raise UserError(
                f"{run} and {runs[0]} have different splits ({_what_differs(configs[0], config)}): their figures "
                "cannot be compared. Train one of them with the other's [data] section, seed and refit."
            )
    return first


def _what_differs(one: Config, two: Config) -> str:
    """The settings that choose the rows and are not the same, with both values."""
    first, second = (
        dict(page.flattened({"seed": c.seed, "refit": c.refit, "data": dataclasses.asdict(c.data)})) for c in (one, two)
    )
    changed = [f"{name} is {second[name]}, not {value}" for name, value in first.items() if second[name] != value]
    return "; ".join(changed) or "the data have changed between them"


def _turned(vectors: Vectors, counts_I: np.ndarray) -> dict[float, Recommender]:
    """The model at each place of its tail dial."""
    return {
        power: dataclasses.replace(
            vectors, item_vectors=dialled(vectors.item_vectors, counts_I, tail_power=power, cold_gain=1.0)
        )
        for power in _TAIL_POWERS
    }


def example_user(bundle: Bundle) -> str:
    """The user shown as an example: the one with the median number of training events, lowest id first."""
    counts = bundle.history.counts
    order = counts.argsort(kind="stable")
    order = order[counts[order] > 0]
    return str(bundle.users[columns.USER_ID].iloc[int(order[len(order) // 2])])
