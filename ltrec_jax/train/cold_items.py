"""What an encoder is worth for items nobody has rated: a frozen-text head on a cold-items split, for two encoders.

A random start is no encoder to compare with: from scratch, the pretrained one stands alone.

The encoder learns nothing here. Both heads have the same split, seed and settings; epochs are chosen on items that are
cold too, other ones than those of the test. Texts of cold items may have been pretrained on: a catalogue knows its
texts before its ratings.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import processes
from ltrec_jax.config import Config, DataConfig, EncoderSection, ScheduleConfig, TrainConfig
from ltrec_jax.data import splits
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.data.likes import positive_rating
from ltrec_jax.data.popularity import popularity
from ltrec_jax.evaluation import report
from ltrec_jax.evaluation.results import Report
from ltrec_jax.train.fit import fit
from ltrec_jax.train.pretrain_config import PretrainConfig
from ltrec_jax.types import Recommender

PRETRAINED, ORIGINAL = "pretrained", "original"
METRICS = ("rmse", "ndcg@10")
_EPOCHS, _PATIENCE = 12, 3


def compare(dataset: Dataset, original: str | None, run: Path, config: PretrainConfig) -> dict[str, Any]:
    """RMSE and nDCG@10 (with 95% intervals) on cold items by each encoder, and the paired difference with its verdict.

    The pretrained one is `run / "encoder"`. Without an `original` its figures and the difference are None. What was
    fitted is gone in the end; a run that is resumed goes on with it.

    A fifth of the items is cold in test, a tenth of the others in validation. `validation_rmse` is the error on those:
    settings of the pretraining are to be chosen by it, never by the figures of the test.
    """
    split = splits.cold_items(dataset, share=0.2, test=0.0, validation=0.0, validation_share=0.1, seed=config.seed)
    base = Config(
        seed=config.seed,
        refit=False,
        data=DataConfig(template=config.template, max_length=config.max_length),
        # The head alone: between solves the encoder would learn.
        schedule=ScheduleConfig(steps="gradient"),
        train=dataclasses.replace(
            TrainConfig(), trainable="none", head_epochs=_EPOCHS, patience=_PATIENCE, row_length=config.row_length
        ),
    )
    place = run / "cold_items"
    models = {}
    for name, where in ((PRETRAINED, str(run / "encoder")), (ORIGINAL, original)):
        if where is None:
            continue
        (begun,) = processes.anywhere((place / name / "config.toml").is_file())
        asked = dataclasses.replace(base, encoder=EncoderSection(where, config.precision, config.attention))
        models[name] = fit(split, asked, place / name, resume=begun)
    processes.first_does(lambda: shutil.rmtree(place))
    counts = popularity(split.train.item, dataset.num_items)
    found = report.evaluate(
        models,
        split,
        counts.masks(),
        counts.counts,
        primary=PRETRAINED,
        ks=(10,),
        positive_rating=positive_rating(dataset),
        seed=config.seed,
    )
    return {
        "items": int(found.groups["cold"]["items"]),
        "split": split.name,
        "protocol": "frozen-text head; a fifth of the items has no training rating; all of the catalogue is ranked",
        ORIGINAL: None,
        **{
            name: _figures(found, name) | {"validation_rmse": _rmse(model, split.validation)}
            for name, model in models.items()
        },
        "difference": {
            one.metric: {"value": one.difference, "ci95": list(one.ci95), "verdict": one.verdict}
            for one in found.comparisons
            if one.group == "cold"
        }
        or None,
    }


def _rmse(model: Recommender, events: Interactions) -> float:
    scores = np.asarray(model.score_pairs(events.user, events.item), np.float64)
    return float(np.sqrt(np.mean((scores - events.rating) ** 2)))


def _figures(found: Report, model: str) -> dict[str, Any]:
    group = found.models[model].groups["cold"]
    return {
        metric: {"value": group[metric].value, "ci95": group[metric].ci95, "n": group[metric].n} for metric in METRICS
    }
