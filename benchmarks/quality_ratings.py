"""Rating protocols: RMSE of the Bayesian factorisation beside biases, by popularity group, with its controls.

Settings are `SETTINGS`, and the defaults of `side_information`; they were decided on validation parts of the training
data (`choose`). The final models learn from training and validation and are scored on test once.
"""

import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from quality import Outcome, item_texts_of, validation_as_test

from ltrec_jax.baselines import biases
from ltrec_jax.baselines.item_texts import ItemTexts
from ltrec_jax.config import BayesConfig
from ltrec_jax.data import sources, splits
from ltrec_jax.data.dataset import Split
from ltrec_jax.data.popularity import popularity
from ltrec_jax.evaluation import rating
from ltrec_jax.evaluation.significance import Bootstrap, UserSums, bootstrap
from ltrec_jax.solve import bayes, side_information
from ltrec_jax.types import Recommender

BIASES = "biases"
GROUPS = ("all", "head", "mid", "tail", "few", "cold")
# A fifth of u1.base held out, three times, Gibbs with factor_sd 0.2 and 240 sweeps, 0.8 and 240, 0.8 and 700: 0.8798,
# 0.8777, 0.8769; VB with 0.2 and 0.8: 0.8793, 0.8789. MovieTweetings, a fifth held out twice, Gibbs with 0.2 and 0.8:
# 1.5097, 1.5120.
SETTINGS = {
    "movielens-100k": BayesConfig(sweeps=600, burn_in=60),
    "movielens-1m": BayesConfig(factor_sd=0.2),
    "movietweetings-100k": BayesConfig(factor_sd=0.2),
}
ATTRIBUTES = {"items": ("year", "genres"), "users": ("age", "gender", "occupation")}
Fit = Callable[[Split, ItemTexts], Recommender]
Measured = dict[str, dict[str, Any]]
"""Model -> seconds, and per group RMSE and relative gain over biases, with intervals."""


def ours(
    method: str,
    *,
    seed: int = 0,
    settings: BayesConfig | None = None,
    texts: str = "encoder",
    leave_out: Sequence[str] = (),
) -> Fit:
    """Our model by `gibbs` or `vb`. texts: by the "encoder", or the controls "words", "shuffled", "none"."""
    solve = {"gibbs": bayes.fit_gibbs, "vb": bayes.fit_vb}[method]

    def fit(split: Split, item_texts: ItemTexts) -> Recommender:
        train, dataset = split.train, split.dataset
        if texts == "shuffled":
            item_texts = item_texts.permuted(0)
        vectors = {"words": lambda: item_texts.word_vectors, "none": lambda: None}.get(
            texts, lambda: item_texts.vectors
        )
        users, items = side_information.of_ratings(
            train.user,
            train.item,
            dataset.num_users,
            dataset.num_items,
            text_IxE=vectors(),
            item_attributes=_attributes(dataset.items, "items", leave_out),
            user_attributes=_attributes(dataset.users, "users", leave_out),
        )
        key = jax.random.key(seed)
        return solve(train.user, train.item, train.rating, users, items, settings=settings, key=key).vectors

    return fit


def _attributes(table: pd.DataFrame, side: str, leave_out: Sequence[str]) -> dict[str, pd.Series]:
    return {name: table[name] for name in ATTRIBUTES[side] if name in table and name not in leave_out}


def fit_biases(split: Split, item_texts: ItemTexts) -> Recommender:
    """The baseline of every rating protocol."""
    return biases.fit(split.train, split.dataset.num_users, split.dataset.num_items)


def movielens_100k(quick: bool) -> Outcome:
    """u1.base/u1.test with controls and three seeds, then the mean over u1..u5."""
    dataset = sources.load("movielens-100k")
    item_texts = item_texts_of(dataset)
    settings = _settings(dataset.name, quick)
    models = {BIASES: fit_biases, "vb": ours("vb", settings=settings)}
    models |= {f"gibbs, seed {seed}": ours("gibbs", seed=seed, settings=settings) for seed in range(1 if quick else 3)}
    if not quick:
        models |= _controls(settings)
    first = _measure(splits.official(dataset, "u1").with_validation_in_train(), item_texts, models)
    folds = {"u1": {name: first[name] for name in (BIASES, "vb", "gibbs, seed 0")}}
    for fold in () if quick else ("u2", "u3", "u4", "u5"):
        split = splits.official(dataset, fold).with_validation_in_train()
        chosen = {name: models[name] for name in folds["u1"]}
        folds[fold] = _measure(split, item_texts, chosen)
    mean = {
        name: float(np.mean([fold[name]["rmse"]["all"]["value"] for fold in folds.values()])) for name in folds["u1"]
    }
    gibbs = _seed_mean(first)
    headline = {
        "ml100k_u1_rmse_gibbs": gibbs,
        "ml100k_u1_rmse_vb": first["vb"]["rmse"]["all"]["value"],
        "ml100k_5fold_rmse": mean["gibbs, seed 0"],
        "ml100k_vb_seconds": first["vb"]["seconds"],
        "ml100k_gibbs_seconds": float(np.median([one["seconds"] for name, one in first.items() if "seed" in name])),
    }
    rows = [
        *_rows("MovieLens-100K u1", first),
        *((f"MovieLens-100K, mean of folds, {n}", f"{v:.4f}") for n, v in mean.items()),
    ]
    return Outcome(_rounded(headline), {"u1": first, "folds": folds, "mean": mean}, tuple(rows))


def movielens_1m(quick: bool) -> Outcome:
    """Random 90/10, three seeds of the split and of the sampler."""
    return _random_splits("movielens-1m", "ml1m", 0.1, range(1 if quick else 3), quick, controls=False)


def movietweetings(quick: bool) -> Outcome:
    """Random 80/20, five seeds, paired over users."""
    return _random_splits("movietweetings-100k", "mt", 0.2, range(1 if quick else 5), quick, controls=True)


def choose(variants: Mapping[str, Fit], name: str = "movielens-100k", rule: str = "official") -> dict[str, float]:
    """Validation RMSE of variants: where decisions are made. The test is not touched."""
    dataset = sources.load(name)
    split = validation_as_test(splits.make(dataset, rule))
    found = _measure(split, item_texts_of(dataset), dict(variants))
    return {name: one["rmse"]["all"]["value"] for name, one in found.items()}


def _controls(settings: BayesConfig) -> dict[str, Fit]:
    """What texts add: without the genre columns, which say the same; by words instead; of other items; none at all."""
    return {
        f"vb without genres, texts: {texts}": ours("vb", texts=texts, settings=settings, leave_out=("genres",))
        for texts in ("encoder", "words", "shuffled", "none")
    }


def _random_splits(name: str, short: str, test: float, seeds: Sequence[int], quick: bool, *, controls: bool) -> Outcome:
    settings = _settings(name, quick)
    found = [measure_split(name, test, seed, settings, controls=controls and seed == 0) for seed in seeds]
    return summary(name, short, found)


def measure_split(name: str, test: float, seed: int, settings: BayesConfig, *, controls: bool) -> Measured:
    """Biases, Gibbs and perhaps the controls on one random split."""
    dataset = sources.load(name)
    split = splits.random(dataset, test=test, validation=0.0, seed=seed)
    models = {BIASES: fit_biases, "gibbs": ours("gibbs", seed=seed, settings=settings)}
    if controls:
        models |= {"vb": ours("vb", settings=settings), **_controls(settings)}
    return _measure(split, item_texts_of(dataset), models)


def summary(name: str, short: str, found: Sequence[Measured]) -> Outcome:
    """Means over the random splits of a dataset."""

    def mean(of: Callable[[dict[str, Any]], float]) -> float:
        return float(np.mean([of(one) for one in found]))

    headline = {
        f"{short}_rmse": mean(lambda one: one["gibbs"]["rmse"]["all"]["value"]),
        f"{short}_biases_rmse": mean(lambda one: one[BIASES]["rmse"]["all"]["value"]),
        f"{short}_gain": mean(lambda one: one["gibbs"]["gain"]["all"]["value"]),
        f"{short}_gibbs_seconds": mean(lambda one: one["gibbs"]["seconds"]),
    }
    if all("cold" in one["gibbs"]["gain"] for one in found):
        headline[f"{short}_unseen_gain"] = mean(lambda one: one["gibbs"]["gain"]["cold"]["value"])
    rows = list(itertools.chain.from_iterable(_rows(f"{name}, seed {n}", one) for n, one in enumerate(found)))
    return Outcome(_rounded(headline), {"splits": found}, tuple(rows))


def _measure(split: Split, item_texts: ItemTexts, models: Mapping[str, Fit]) -> Measured:
    """Every model fitted and scored on the test part, all on the same resamples of users."""
    test, counts = split.test, popularity(split.train.item, split.dataset.num_items)
    masks = {"all": np.ones(split.dataset.num_items, bool), **counts.masks()}
    sums: list[tuple[Hashable, UserSums]] = []
    seconds = {}
    _ = item_texts.vectors
    for name, fit in models.items():
        began = time.perf_counter()
        model = fit(split, item_texts)
        seconds[name] = round(time.perf_counter() - began, 2)
        predicted = rating.predictions(model.score_pairs, test.user, test.item, name=name)
        for group in GROUPS:
            of = masks[group][test.item]
            loss = rating.rmse(predicted[of], test.rating[of], test.user[of], split.dataset.num_users)
            sums.append(((name, group), loss))
        print(f"{name}: RMSE {np.sqrt(np.mean((predicted - test.rating) ** 2)):.4f}, {seconds[name]} s", flush=True)
    found = bootstrap(sums, split.dataset.num_users, seed=0)
    return {
        name: {
            "seconds": seconds[name],
            "rmse": {g: _estimate(found, (name, g)) for g in GROUPS if found.estimates[name, g].n},
            "gain": {
                g: _gain(found, (name, g), (BIASES, g))
                for g in GROUPS
                if BIASES in models and found.estimates[name, g].n
            },
        }
        for name in models
    }


def _estimate(found: Bootstrap, key: Hashable) -> dict[str, Any]:
    estimate = found.estimates[key]
    return {"value": estimate.value, "ci95": estimate.ci95, "n": estimate.n}


def _gain(found: Bootstrap, key: Hashable, base: Hashable) -> dict[str, Any]:
    low, high = np.nanpercentile(1.0 - found.replicates[key] / found.replicates[base], [2.5, 97.5])
    value, reference = found.estimates[key].value, found.estimates[base].value
    return {"value": 1.0 - (value or 0.0) / (reference or 1.0), "ci95": (float(low), float(high))}


def _seed_mean(found: Measured) -> float:
    return float(np.mean([one["rmse"]["all"]["value"] for name, one in found.items() if "seed" in name]))


def _rows(title: str, found: Measured) -> list[tuple[str, str]]:
    def line(one: dict[str, Any]) -> str:
        groups = "  ".join(f"{group} {estimate['value']:.4f}" for group, estimate in one["rmse"].items())
        return f"{groups}  ({one['seconds']} s)"

    return [(f"{title}, {name}", line(one)) for name, one in found.items()]


def _settings(name: str, quick: bool) -> BayesConfig:
    return BayesConfig(iterations=10, sweeps=20, burn_in=10) if quick else SETTINGS[name]


def _rounded(headline: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in headline.items()}
