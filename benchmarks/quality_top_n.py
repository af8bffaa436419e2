"""Top-N protocols: ratings of at least 4, a fifth of the items cold, 80/20 per user; nDCG@20 on warm, tail and cold.

Warm and tail targets are ranked among warm items, cold ones among cold. Settings are chosen once (`choose`), on the
training parts cut again in the same way; the final models learn from the whole training parts and are scored once.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
from quality import TUNED, Outcome, item_texts_of, likes_only, texts_of, validation_as_test

from ltrec_jax.baselines import registry
from ltrec_jax.baselines.item_texts import ItemTexts
from ltrec_jax.baselines.training import training
from ltrec_jax.config import WholeDataConfig
from ltrec_jax.data import sources, splits
from ltrec_jax.data.dataset import Dataset, Split
from ltrec_jax.data.popularity import popularity
from ltrec_jax.evaluation import report
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.solve import anchored_model, cold_start
from ltrec_jax.types import Recommender

OURS = "anchored"
K = 20
SUM = "sum"
PARTS = {"warm": "warm among warm", "tail": "tail among warm", "cold": "cold among cold", SUM: SUM}
BETA = 0.1
SETTINGS = {
    "movielens-100k": WholeDataConfig(),
    "movielens-1m": WholeDataConfig(alternations=3),
}
"""Chosen by `choose` on validation."""
BASELINES = ("popularity", "itemknn", "ease", "ease-text", "ials", "bpr", "text-knn", "tfidf-knn")
Fit = Callable[[Split, np.ndarray], Recommender]


@dataclasses.dataclass(frozen=True)
class Ranker(Vectors):
    """Vectors whose scores are no ratings."""

    predicts_ratings = False


def anchored(settings: WholeDataConfig, *, tail_power: float = 0.0, shuffle: bool = False) -> Fit:
    """Our model: fits a split on text vectors [I, E]. `shuffle`: the control whose texts belong to other items."""

    def fit(split: Split, features_IxE: np.ndarray) -> Recommender:
        if shuffle:
            features_IxE = np.random.default_rng(0).permutation(features_IxE)
        train, num_users = split.train, split.dataset.num_users
        anchors = anchored_model.text_anchors(features_IxE, settings)
        model = anchored_model.fit(train.user, train.item, anchors, num_users=num_users, settings=settings)
        counts = np.bincount(train.item, minlength=len(features_IxE))
        items = cold_start.dialled(model.item_vectors, counts, tail_power=tail_power, cold_gain=1.0)
        none = np.zeros(num_users, np.float32), np.zeros(len(items), np.float32)
        return Ranker(0.0, model.user_vectors, none[0], items, none[1])

    return fit


def models_of(name: str) -> dict[str, Fit]:
    """Ours, its control and dial, and what it is compared with."""
    settings = SETTINGS[name]
    return {
        OURS: anchored(settings),
        f"{OURS}, beta {BETA}": anchored(settings, tail_power=BETA),
        f"{OURS}, shuffled texts": anchored(settings, shuffle=True),
        **{baseline: tuned(baseline, name) for baseline in BASELINES},
    }


def tuned(baseline: str, name: str) -> Fit:
    """A baseline with the settings that `tune_baselines.py` found on this dataset (else its default ones)."""
    path = TUNED / f"{name}.toml"
    settings = registry.read_settings(path).get(baseline) if path.is_file() else None

    def fit(split: Split, features_IxE: np.ndarray) -> Recommender:
        texts = ItemTexts(lambda: features_IxE, lambda: item_texts_of(split.dataset).word_vectors)
        return registry.fit(baseline, training(split, 4.0, texts), settings)

    return fit


def movielens_100k(quick: bool) -> Outcome:
    return _protocol("movielens-100k", "ml100k", quick)


def movielens_1m(quick: bool) -> Outcome:
    return _protocol("movielens-1m", "ml1m", quick)


def split_of(name: str, seed: int) -> Split:
    """One of the protocol's splits: everything that is not test may be learnt from."""
    return _cut(likes_only(sources.load(name), 4.0), seed)


def validation_split(name: str, seed: int) -> Split:
    """`split_of` with its training part cut once more in the same way, into training and validation.

    Settings are chosen on it: nothing of the test is in either.
    """
    outer = split_of(name, seed)
    inner = _cut(dataclasses.replace(outer.dataset, interactions=outer.train), seed)
    rows = outer.train_rows
    return dataclasses.replace(outer, train_rows=rows[inner.train_rows], validation_rows=rows[inner.test_rows])


def _cut(dataset: Dataset, seed: int) -> Split:
    return splits.cold_items(dataset, share=0.2, test=0.2, validation=0.0, seed=seed, per_user=True)


def figures(models: Mapping[str, Recommender], split: Split) -> report.Report:
    """The report of fitted models on a split's test part."""
    counts = popularity(split.train.item, split.dataset.num_items)
    return report.evaluate(
        models, split, counts.masks(), counts.counts, primary=next(iter(models)), ks=(K,), positive_rating=4.0
    )


def scores(found: report.Report, name: str) -> dict[str, float]:
    """nDCG@20 of a model on the parts of the table (0 where a part is empty)."""
    groups = found.models[name].groups
    return {short: groups[part][f"ndcg@{K}"].value or 0.0 for short, part in PARTS.items() if part in groups}


def choose(name: str, trials: int = 10, seeds: tuple[int, ...] = (0,)) -> list[tuple[float, WholeDataConfig]]:
    """Settings tried on validation, best first, by the sum of the three figures. The first trial is SETTINGS."""
    features = texts_of(sources.load(name)).features_IxE
    grid = itertools.product((0.3, 0.4, 0.6), (0.05, 0.1, 0.2), (0.01, 0.03, 0.06), (0.0, 0.15, 0.3))
    drawn = np.random.default_rng(0).permutation(list(grid))[: trials - 1]
    settings = [SETTINGS[name]] + [
        dataclasses.replace(SETTINGS[name], anchor_scale=s, unobserved_weight=a, l2=l2, propensity_power=rho)
        for s, a, l2, rho in drawn.tolist()
    ]
    asked = [validation_as_test(validation_split(name, seed)) for seed in seeds]
    tried = []
    for each in settings:
        fit = anchored(each)
        found = [scores(figures({OURS: fit(split, features)}, split), OURS) for split in asked]
        means = {part: float(np.mean([one[part] for one in found])) for part in PARTS}
        print(each, means, file=sys.stderr, flush=True)
        tried.append((means[SUM], each))
    return sorted(tried, key=lambda pair: -pair[0])


def _protocol(name: str, short: str, quick: bool) -> Outcome:
    features = texts_of(sources.load(name)).features_IxE
    found: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in (0,) if quick else (0, 1, 2):
        split = split_of(name, seed)
        fitted = {}
        for model, fit in models_of(name).items():
            began = time.perf_counter()
            fitted[model] = fit(split, features)
            seconds.setdefault(model, []).append(time.perf_counter() - began)
        results = figures(fitted, split)
        for model in fitted:
            found.setdefault(model, []).append(scores(results, model))
    means = {m: {part: float(np.mean([one[part] for one in each])) for part in PARTS} for m, each in found.items()}
    table = tuple(
        (f"{short} {model}", "  ".join(f"{part} {value:.4f}" for part, value in figure.items()))
        for model, figure in means.items()
    )
    headline = {f"{short}_{part}_ndcg": round(value, 4) for part, value in means[OURS].items()}
    headline[f"{short}_solve_seconds"] = round(float(np.median(seconds[OURS])), 1)
    details = {"settings": dataclasses.asdict(SETTINGS[name]), "seeds": found, "means": means, "seconds": seconds}
    return Outcome(headline, details, table)
