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
from ltrec_jax.data.likes import likes_from, positive_rating
from ltrec_jax.data.popularity import popularity
from ltrec_jax.errors import UserError
from ltrec_jax.evaluation import report
from ltrec_jax.evaluation.report import Report
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.serve.service import Recommendation, recommend
from ltrec_jax.solve.cold_start import dialled, popularity_discount
from ltrec_jax.text import corpus
from ltrec_jax.text.corpus import Corpus
from ltrec_jax.train.fit import FROZEN_TEXT, REFIT, fit, load_run_config
from ltrec_jax.train.plan import Plan, make_plan
from ltrec_jax.train.tracking import read_rows
from ltrec_jax.types import Recommender

OURS, FROZEN, BIASES = "ltrec", "frozen text", "biases only"
_BASELINES = "baselines"
"""In the settings of a run's report: those of the baselines beside the model."""
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
    judged by how far its texts lie apart. The tail dials of the primary and of all bundles are turned. `seconds`: model
    -> stage -> s, for the report.
    """
    config = config or Config()
    named = dict(models) if isinstance(models, Mapping) else {OURS: models}
    primary = next(iter(named))
    first = named[primary]
    events, dataset = split.train, split.dataset
    counts = popularity(events.item, dataset.num_items)
    turned, spread = _with_dials(named, primary), float(events.rating.std())
    likes = likes_from(dataset, config.evaluation.positive_rating)
    return report.evaluate(
        {**named, BIASES: biases.fit(events, dataset.num_users, dataset.num_items)},
        split,
        counts.masks(),
        counts.counts,
        primary=primary,
        ks=config.evaluation.cutoffs,
        positive_rating=likes.rating,
        seed=config.seed,
        seconds=seconds,
        imputed_by=BIASES,
        item_vectors=first.text_vectors if isinstance(first, Bundle) else None,
        dials={name: _turned(vectors, counts.counts, spread) for name, vectors in turned.items()},
        told={"positive_rating_is": likes.reason} | ({"dial": _dial_is(turned[primary])} if primary in turned else {}),
    )


def compare(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Report:
    """Evaluate finished runs side by side on the test part that they share; the first is the primary.

    Beside them stand biases, and the baselines that the reports of all runs have with the same settings, fitted anew on
    the rows that the runs were trained on; a run that `evaluate_run` has not seen has none. Every model is scored once
    (and at the other places of its dial, if it is a run). Differences are paired over users and Holm-corrected. With
    `out`, `report.json` and `report.html` are written there. Fewer than two runs, one run twice, an unfinished run, or
    runs of different splits are a `UserError`.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise UserError("Name at least two different run directories to compare.")
    opened = [open_run(path) for path in paths]
    split = _shared_split(paths, [config for config, _ in opened])
    short = [path.resolve().name for path in paths]
    distinct = len({*short, *registry.BASELINES, BIASES}) == len(short) + len(registry.BASELINES) + 1
    names = short if distinct else [str(path.resolve()) for path in paths]
    models: dict[str, Recommender] = {name: bundle for name, (_, bundle) in zip(names, opened, strict=True)}
    seconds: Mapping[str, Mapping[str, float]] = {}
    if common := _common_baselines(paths, [config for config, _ in opened]):
        fitted = fit_baselines(opened[0][1], split, opened[0][0], list(common), common)
        models, seconds = models | fitted.models, fitted.seconds
    found = evaluate(models, split, opened[0][0], seconds=seconds)
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
        settings=plain_settings.to_dict(config) | {_BASELINES: _plain(fitted.settings)},
        hardware=parallel.describe_hardware(),
    )
    return found, examples


def fit_baselines(
    model: Recommender,
    split: Split,
    config: Config,
    names: Sequence[str] = (),
    settings: Path | Mapping[str, Any] | None = None,
) -> Fitted:
    """What a model is compared with, fitted on the split's training part.

    `names` (else `evaluation.baselines`, else for a model that ranks the usual ones that this catalogue is small enough
    for, and for one that predicts ratings popularity, since biases are no opponent in ranking); `settings` (else
    `evaluation.baseline_settings`): a TOML file as `ltrec tune` writes it, or settings by name. Unknown names, and a
    library or texts that are missing, are a `UserError`.
    """
    dataset, path = split.dataset, settings or config.evaluation.baseline_settings
    positive = positive_rating(dataset, config.evaluation.positive_rating)
    learnt_from = training(split, positive, item_texts(dataset, config), config.seed)
    wanted = list(names or config.evaluation.baselines)
    if not wanted:
        rates = getattr(model, "predicts_ratings", True)
        wanted = ["popularity"] if rates else registry.affordable(registry.USUAL, learnt_from)
    if isinstance(path, Mapping):
        return registry.fit_all(wanted, learnt_from, path)
    return registry.fit_all(wanted, learnt_from, registry.read_settings(Path(path)) if path else None)


def _common_baselines(runs: Sequence[Path], configs: Sequence[Config]) -> dict[str, Any]:
    """Settings by name of the baselines that every run's report has with the same ones, learnt from the same.

    What counts as a like must be the same, and for those that read texts the `[data]` and `[encoder]` sections too.
    """
    tables = [_reported_baselines(run) for run in runs]
    liked = {config.evaluation.positive_rating for config in configs}
    read = {(config.data, config.encoder) for config in configs}
    return {
        name: plain_settings.from_dict(values, registry.find(name).settings, where=f"{_BASELINES}.{name}.")
        for name, values in tables[0].items()
        if all(table.get(name) == values for table in tables)
        and len(liked) == 1
        and (len(read) == 1 or not registry.find(name).texts)
    }


def _reported_baselines(run: Path) -> dict[str, dict[str, Any]]:
    """The baselines in a run's report with their settings; none without a report, or in one of an earlier version."""
    path = Path(run) / "report.json"
    found = storage.read_json(path).get("settings", {}).get(_BASELINES, {}) if path.is_file() else {}
    return {name: values for name, values in found.items() if name in registry.BASELINES}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain_settings.to_dict(each) for name, each in settings.items()}


def _with_dials(models: Mapping[str, Recommender], primary: str) -> dict[str, Vectors]:
    """The vectors whose tail dial is turned: of the primary, and of all other bundles."""
    vectors = {
        name: model.vectors if isinstance(model, Bundle) else model
        for name, model in models.items()
        if isinstance(model, Bundle) or name == primary
    }
    return {name: found for name, found in vectors.items() if isinstance(found, Vectors)}


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


def _turned(vectors: Vectors, counts_I: np.ndarray, spread: float) -> dict[float, Recommender]:
    """The model at each place of its tail dial; `spread` is the standard deviation of the training ratings."""

    def at(power: float) -> Vectors:
        if vectors.predicts_ratings:
            taken_I = spread * popularity_discount(counts_I, tail_power=power)
            return dataclasses.replace(vectors, item_biases=(vectors.item_biases - taken_I).astype(np.float32))
        items = dialled(vectors.item_vectors, counts_I, tail_power=power, cold_gain=1.0)
        return dataclasses.replace(vectors, item_vectors=items)

    return {power: at(power) for power in _TAIL_POWERS}


def _dial_is(vectors: Vectors) -> str:
    """What the numbers on a dial's curve do, for the reader of the report."""
    if vectors.predicts_ratings:
        return "the score of an item with n training events loses β log n standard deviations of the ratings"
    served = ", as ltrec recommend --tail β does" if vectors.only_products else ""
    return f"the vector of an item with n training events is multiplied by n^−β{served}"


def example_user(bundle: Bundle) -> str:
    """The user shown as an example: the one with the median number of training events, lowest id first."""
    counts = bundle.history.counts
    order = counts.argsort(kind="stable")
    order = order[counts[order] > 0]
    return str(bundle.users[columns.USER_ID].iloc[int(order[len(order) // 2])])
