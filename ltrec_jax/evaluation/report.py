"""From models and a split to a report: score everything once, cut it into groups, put intervals on it, write it down.

It knows a model only by its scores. Out of scope: what each metric is (its own module says), how the page looks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import storage, topk
from ltrec_jax.data import columns
from ltrec_jax.data.dataset import Split
from ltrec_jax.evaluation import contrasts, counterfactual, dial, html, measure, significance
from ltrec_jax.evaluation.exam import Answers, Exam, answer, exam
from ltrec_jax.evaluation.results import (
    BETTER,
    CATALOGUE,
    GROUP,
    OVERALL,
    SIGNIFICANT,
    SUM,
    SUMMED,
    UNCLEAR,
    WORSE,
    Comparison,
    Contrast,
    ModelResult,
    PopularityBin,
    Report,
    lower_is_better,
)
from ltrec_jax.evaluation.significance import NOTHING, Bootstrap, Estimate
from ltrec_jax.evaluation.slices import POPULARITY, USER_GROUPS, USERS, Slice, popularity_bins, slices
from ltrec_jax.evaluation.terminal import print_report
from ltrec_jax.types import Recommender
from ltrec_jax.version import __version__

__all__ = ["Report", "evaluate", "print_report", "write_report"]


def evaluate(
    models: Mapping[str, Recommender],
    split: Split,
    groups: Mapping[str, np.ndarray],
    train_counts: np.ndarray,
    *,
    primary: str,
    ks: Sequence[int] = (10, 20),
    positive_rating: float,
    block_users: int | None = None,
    seed: int = 0,
    rating: bool = True,
    seconds: Mapping[str, Mapping[str, float]] | None = None,
    imputed_by: str | None = None,
    item_vectors: np.ndarray | None = None,
    dials: Mapping[str, Mapping[float, Recommender]] | None = None,
    told: Mapping[str, str] | None = None,
) -> Report:
    """Score the models on the split's test part, overall and per group, with 95% intervals, and compare them.

    Rating metrics (RMSE, MAE) are over all test pairs; a model with the attribute `predicts_ratings = False`, or every
    model under `rating=False`, has none. AUC is within users whose test ratings lie on both sides of
    `positive_rating`, log-loss is for ratings that are 0 and 1. Ranking metrics (each at every k of `ks`) are over
    users with a test rating of at least `positive_rating`; lists are made from the whole catalogue without the user's
    training and validation items. On a group (`groups`: name -> bool [I]) only targets in the group count: pairs whose
    item is in it, users with a target in it. Where the test has targets on both, "warm among warm" and "cold among
    cold" (and head, mid, tail, few among warm) are ranked within the warm or the cold items, and "sum" adds warm, tail
    and cold nDCG of these. `train_counts` int [I] are training events per item. The first k is the one of the
    catalogue figures, comparisons and headlines.

    `block_users` users are scored at a time (None: as many as 32 MB of scores hold, at most 256): memory follows the
    number of items or of users, never their product. `seconds` (model -> stage -> s) stands in the report beside the
    time that scoring took. `imputed_by` names the model whose ratings the doubly robust estimate imputes;
    `item_vectors` [I, E], such as text vectors, are what intra-list diversity is measured in; `dials` (model -> place
    -> the model turned to it) gives the curve of tail against warm accuracy. Without them these figures have no value.
    `told`: further lines of `protocol`, about choices that were made outside.
    No data gives value None and n 0, never NaN. An empty test part is a `UserError`.
    """
    _check(models, split, groups, train_counts, primary, ks, imputed_by, item_vectors)
    block_users = block_users or topk.users_per_block(split.dataset.num_items)
    train_counts, cutoffs = np.asarray(train_counts), tuple(dict.fromkeys(ks))
    asked = exam(split, positive_rating, cutoffs, groups, train_counts)
    imputed = models[imputed_by] if imputed_by else None
    answers = {
        name: answer(model, asked, block_users=block_users, rate=rating, name=name, imputed=imputed)
        for name, model in models.items()
    }
    parts = slices(asked, groups)
    tail_I = np.asarray(groups[measure.TAIL], bool) if measure.TAIL in groups else None
    imputed_P = answers[imputed_by].scored if imputed_by else None
    sample = significance.bootstrap(
        measure.sums(asked, answers, parts, tail_I, imputed_P, item_vectors), len(asked.users), seed=seed
    )
    headlines = ("auc" if asked.is_clicks else "rmse", f"ndcg@{cutoffs[0]}")
    for name in models:
        summed = [(name, GROUP, part, headlines[1]) for part in SUMMED]
        sample = sample.with_sum((name, GROUP, SUM, headlines[1]), summed)
    found = Report(
        dataset=split.dataset.name,
        split=split.name,
        primary=primary,
        models={
            name: _result(sample, asked, given, name, parts, (seconds or {}).get(name, {}))
            for name, given in answers.items()
        },
        comparisons=_comparisons(sample, primary, list(models), parts, headlines),
        groups={name: _size(np.asarray(mask, bool), train_counts) for name, mask in groups.items()},
        protocol=_protocol(asked, split, headlines, seed, imputed_by) | dict(told or {}),
        dials={
            name: dial.curve(places, asked, parts, block_users=block_users, name=name)
            for name, places in (dials or {}).items()
        },
    )
    return dataclasses.replace(found, contrasts=_contrasts(found, asked, answers, split, tail_I))


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
    imputed_by: str | None,
    item_vectors: np.ndarray | None,
) -> None:
    for role, name in (("primary", primary), ("imputing", imputed_by)):
        if name is not None and name not in models:
            raise ValueError(f"the {role} model {name!r} is not one of {list(models)}")
    if imputed_by is not None and not getattr(models[imputed_by], "predicts_ratings", True):
        raise ValueError(f"the imputing model {imputed_by!r} predicts no ratings")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers above 0, not {ks}")
    expected = (split.dataset.num_items,)
    for name, values in {**groups, "train_counts": train_counts}.items():
        if np.shape(values) != expected:
            raise ValueError(f"{name!r} has shape {np.shape(values)}, not {expected}")
    if item_vectors is not None and (item_vectors.ndim != 2 or item_vectors.shape[:1] != expected):
        raise ValueError(f"item_vectors have shape {item_vectors.shape}, not ({expected[0]}, width)")


def _result(
    sample: Bootstrap, asked: Exam, given: Answers, name: str, parts: Sequence[Slice], seconds: Mapping[str, float]
) -> ModelResult:
    """Every metric of every part; one that the model does not have is there, without a value."""

    def estimates(kind: str, part: str) -> dict[str, Estimate]:
        metrics = measure.names(kind, asked.cutoffs)
        return {metric: sample.estimates.get((name, kind, part, metric), NOTHING) for metric in metrics}

    groups = {part.name: estimates(GROUP, part.name) for part in parts if part.kind == GROUP}
    summed = f"ndcg@{asked.cutoffs[0]}"
    if (name, GROUP, SUM, summed) in sample.estimates:
        groups[SUM] = {summed: sample.estimates[name, GROUP, SUM, summed]}
    listed = len(asked.wanted.users)
    whole = {
        metric: NOTHING if value is None else Estimate(value, None, listed)
        for metric, value in measure.whole(asked, given).items()
    }
    bins = [
        (first, last, estimates(POPULARITY, f"{first}-{last}")) for first, last in popularity_bins(asked.train_count_I)
    ]
    return ModelResult(
        overall=estimates(OVERALL, OVERALL),
        groups=groups,
        users={part: estimates(USERS, part) for part in USER_GROUPS},
        popularity=tuple(PopularityBin(*one) for one in bins if any(each.n for each in one[2].values())),
        catalogue=estimates(CATALOGUE, CATALOGUE) | whole,
        seconds=dict(seconds) | dict(given.seconds),
    )


def _protocol(
    asked: Exam, split: Split, headlines: tuple[str, ...], seed: int, imputed_by: str | None
) -> dict[str, Any]:
    return {
        "cutoffs": list(asked.cutoffs),
        "headlines": list(headlines),
        "positive_rating": float(asked.positive_rating),
        "candidates": "every item outside the user's training and validation events",
        "test_pairs": len(asked.test),
        "test_users": len(asked.users),
        "users_with_a_target": len(asked.wanted.users),
        "targets": len(asked.wanted.item_N),
        "targets_left_out_as_seen": asked.wanted.repeats,
        "items": asked.num_items,
        "training_events": len(split.train_rows),
        "propensity": "power of the training count (Yang et al. 2018), floored at 1/1000 of the largest; estimates by "
        "propensity (IPS, SNIPS, doubly robust) leave items without training events out",
        "effective_pairs": round(counterfactual.effective_size(asked.propensity_I[asked.test.item]), 1),
        "imputed_by": imputed_by,
        "resamples": significance.RESAMPLES,
        "seed": seed,
        "split_settings": dict(split.settings),
        "version": __version__,
    }


def _comparisons(
    sample: Bootstrap, primary: str, models: list[str], parts: Sequence[Slice], metrics: tuple[str, ...]
) -> tuple[Comparison, ...]:
    found: list[Comparison] = []
    wanted = [(part.kind, part.name) for part in parts if part.kind in (OVERALL, GROUP)] + [(GROUP, SUM)]
    for metric in metrics:
        pairs = [(kind, part, other) for other in models if other != primary for kind, part in wanted]
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


def _contrasts(
    found: Report, asked: Exam, answers: Mapping[str, Answers], split: Split, tail_I: np.ndarray | None
) -> tuple[Contrast, ...]:
    """Tail items that the primary finds and the strongest other model misses, and the reverse."""
    other = found.strongest_other
    if other is None or tail_I is None:
        return ()
    users = split.dataset.users[columns.USER_ID].astype(str).tolist()
    items = contrasts.readable(split.dataset.items)
    return tuple(
        one
        for found_by, missed_by in ((found.primary, other), (other, found.primary))
        for one in contrasts.contrasts(asked, answers, found_by, missed_by, tail_I, users, items)
    )


def _size(mask_I: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
    total = int(train_counts.sum())
    return {"items": int(mask_I.sum()), "training_share": float(train_counts[mask_I].sum() / total) if total else 0.0}
