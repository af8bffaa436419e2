"""What protocols of `bench_quality` share: their outcome, item texts, and validation in the place of the test."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax.baselines.item_texts import ItemTexts, item_texts
from ltrec_jax.config import Config, EncoderSection
from ltrec_jax.data.dataset import Dataset, Split

ENCODER = "all-MiniLM-L6-v2"
TUNED = Path(__file__).parent / "settings"
"""Tuned settings of the baselines, one file per dataset, written by `tune_baselines.py`."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Figures for the headline, everything for the record, and rows of a table."""

    headline: Mapping[str, float]
    details: Mapping[str, Any]
    rows: tuple[tuple[str, str], ...]


def item_texts_of(dataset: Dataset) -> ItemTexts:
    """Titles, years and genres (the dataset's own template), by the frozen encoder and by words."""
    return item_texts(dataset, Config(encoder=EncoderSection(ENCODER, precision="float32")))


def likes_only(dataset: Dataset, positive_rating: float) -> Dataset:
    """The dataset's events with at least this rating."""
    rows = np.flatnonzero(np.asarray(dataset.interactions.rating) >= positive_rating)
    return dataclasses.replace(dataset, interactions=dataset.interactions.take(rows))


def validation_as_test(split: Split) -> Split:
    """The same training part, scored on validation: where settings are chosen."""
    return dataclasses.replace(split, test_rows=split.validation_rows, validation_rows=np.zeros(0, np.int64))
