"""From models and a split to a report: score everything once, cut it into groups, put intervals on it, write it down.

It knows a model only by its scores. Out of scope: what each metric is (its own module says), how the page looks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import storage, topk
from ltrec_jax.data.dataset import Split
from ltrec_jax.evaluation import accuracy, html, measure, significance
from ltrec_jax.evaluation import rating as rating_metrics
from ltrec_jax.evaluation.results import (
    BETTER,
    GROUP,
    OVERALL,
    SIGNIFICANT,
    UNCLEAR,
    WORSE,
    Comparison,
    Estimates,
    ModelResult,
    PopularityBin,
    Report,
    lower_is_better,
)
from ltrec_jax.evaluation.significance import NOTHING, Bootstrap
from ltrec_jax.evaluation.slices import ACTIVITY, ACTIVITY_NAMES, POPULARITY, popularity_bins, slices
from ltrec_jax.evaluation.terminal import print_report
from ltrec_jax.types import Recommender
from ltrec_jax.version import __version__

__all__ = ["Report", "evaluate", "print_report", "write_report"]

TAIL = "tail"
"""The item group that APLT counts."""


def evaluate(
    models: Mapping[str, Recommender],
    split: Split,
    groups: Mapping[str, np.ndarray],
    train_counts: np.ndarray,
    *,
    primary: str,
    ks: Sequence[int] = (10, 20),
    positive_rating: float,
    block_users: int = topk.BLOCK_USERS,
    seed: int = 0,
    rating: bool = True,
    seconds: Mapping[str, Mapping[str, float]] | None = None,
) -> Report:
    """Score the models on the split's test part, overall and per group, with 95% intervals, and compare them.

    Rating metrics (RMSE, MAE) are over all test pairs; a model with the attribute `predicts_ratings = False`, or every
    model under `rating=False`, has none. Ranking metrics (each at every k of `ks`) are over users with a test rating
    of at least `positive_rating`; lists are made from the whole catalogue without the user's training and validation
    items. On a group (`groups`: name -> bool [I]) only targets in the group count: pairs whose item is in it, users
    with a target in it. `train_counts` int [I] are training events per item. The first k is the one of the catalogue
    figures, comparisons and headlines. `seconds` (model -> stage -> s) stands in the report beside the time that
    scoring took. No data gives value None and n 0, never NaN. An empty test part is a `UserError`.
    """
    _check(models, split, groups, train_counts, primary, ks)
    train_counts = np.asarray(train_counts)
    asked = measure.exam(split, positive_rating, tuple(dict.fromkeys(ks)))
    answers = {
        name: measure.answer(model, asked, block_users=block_users, rate=rating, name=name)
        for name, model in models.items()
    }
    events_U = np.bincount(split.train.user, minlength=split.dataset.num_users)[asked.users]
    parts = slices(groups, train_counts, events_U)
    sample = significance.bootstrap(measure.sums(asked, answers, parts), len(asked.users), seed=seed)
    tail_I = np.asarray(groups[TAIL], bool) if TAIL in groups else np.zeros(asked.num_items, bool)
    results = {
        name: ModelResult(
            overall=_estimates(sample, name, OVERALL, OVERALL, asked.cutoffs),
            groups={group: _estimates(sample, name, GROUP, group, asked.cutoffs) for group in groups},
            activity={part: _estimates(sample, name, ACTIVITY, part, asked.cutoffs[:1]) for part in ACTIVITY_NAMES},
            popularity=_popularity(sample, name, train_counts, asked.cutoffs[:1]),
            catalogue=measure.catalogue(asked, given, train_counts, tail_I),
            seconds=dict((seconds or {}).get(name, {})) | dict(given.seconds),
        )
        for name, given in answers.items()
    }
    return Report(
        dataset=split.dataset.name,
        split=split.name,
        primary=primary,
        models=results,
        comparisons=_comparisons(sample, primary, list(models), list(groups), ("rmse", f"ndcg@{asked.cutoffs[0]}")),
        groups={name: _size(np.asarray(mask, bool), train_counts) for name, mask in groups.items()},
        protocol={
            "cutoffs": list(asked.cutoffs),
            "positive_rating": float(positive_rating),
            "candidates": "every item outside the user's training and validation events",
            "test_pairs": len(asked.test),
            "test_users": len(asked.users),
            "users_with_a_target": len(asked.wanted.users),
            "targets": len(asked.wanted.item_N),
            "targets_left_out_as_seen": asked.wanted.repeats,
            "items": asked.num_items,
            "training_events": len(split.train_rows),
            "resamples": significance.RESAMPLES,
            "seed": seed,
            "split_settings": dict(split.settings),
            "version": __version__,
        },
    )


def write_report(
    report: Report,
    directory: Path,
    *,
    curve: Sequence[Mapping[str, Any]] | None = None,
    examples: Mapping[str, Sequence[html.Example]] | None = None,
    settings: Mapping[str, Any] | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.json` and `report.html` into a directory, each whole or not at all; returns the page's path.

    `curve`: rows of `metrics.jsonl` (step, epoch, train_rmse, validation_rmse, ...); `examples`: user -> recommended
    items; `settings`, `hardware`: nested plain values, shown and stored as they are.
    """
    directory = Path(directory)
    page = html.render(
        report, curve=curve or (), examples=examples or {}, settings=settings or {}, hardware=hardware or {}
    )
    content = report.to_dict() | {"settings": dict(settings or {}), "hardware": dict(hardware or {})}
    storage.write_json(directory / "report.json", content)
    storage.write_text(directory / "report.html", page)
    return directory / "report.html"


def _check(
    models: Mapping[str, Recommender],
    split: Split,
    groups: Mapping[str, np.ndarray],
    train_counts: np.ndarray,
    primary: str,
    ks: Sequence[int],
) -> None:
    if primary not in models:
        raise ValueError(f"the primary model {primary!r} is not one of {list(models)}")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers above 0, not {ks}")
    expected = (split.dataset.num_items,)
    for name, values in {**groups, "train_counts": train_counts}.items():
        if np.shape(values) != expected:
            raise ValueError(f"{name!r} has shape {np.shape(values)}, not {expected}")


def _estimates(sample: Bootstrap, model: str, kind: str, part: str, cutoffs: Sequence[int]) -> Estimates:
    """Every metric of a part; one that the model does not have is there, without a value."""
    full = kind in (OVERALL, GROUP)
    names = list(rating_metrics.METRICS) if full else ["rmse"]
    names += [f"{name}@{k}" for name in (accuracy.METRICS if full else ("ndcg",)) for k in cutoffs]
    return {metric: sample.estimates.get((model, kind, part, metric), NOTHING) for metric in names}


def _popularity(
    sample: Bootstrap, model: str, train_counts: np.ndarray, cutoffs: Sequence[int]
) -> tuple[PopularityBin, ...]:
    bins = []
    for first, last in popularity_bins(train_counts):
        found = _estimates(sample, model, POPULARITY, f"{first}-{last}", cutoffs)
        if any(estimate.n for estimate in found.values()):
            bins.append(PopularityBin(first, last, found))
    return tuple(bins)


def _comparisons(
    sample: Bootstrap, primary: str, models: list[str], groups: list[str], metrics: tuple[str, ...]
) -> tuple[Comparison, ...]:
    found: list[Comparison] = []
    parts = [(OVERALL, OVERALL), *((GROUP, group) for group in groups)]
    for metric in metrics:
        pairs = [(kind, part, other) for other in models if other != primary for kind, part in parts]
        tested = []
        for kind, part, other in pairs:
            difference = sample.difference((primary, kind, part, metric), (other, kind, part, metric))
            if difference is not None:
                base = sample.estimates[other, kind, part, metric].value
                tested.append((part, other, difference, difference.value / base if base else None))
        corrected = significance.holm([difference.p for _, _, difference, _ in tested])
        for (part, other, difference, relative), p_holm in zip(tested, corrected, strict=True):
            improved = (difference.value < 0) == lower_is_better(metric)
            verdict = UNCLEAR if p_holm >= SIGNIFICANT else BETTER if improved else WORSE
            found.append(
                Comparison(
                    metric, part, other, difference.value, relative, difference.ci95, difference.p, p_holm, verdict
                )
            )
    return tuple(found)


def _size(mask_I: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
    total = int(train_counts.sum())
    return {"items": int(mask_I.sum()), "training_share": float(train_counts[mask_I].sum() / total) if total else 0.0}
