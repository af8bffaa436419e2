"""What protocols of `bench_quality` share: their outcome, text vectors, and validation in the place of the test."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import storage
from ltrec_jax.baselines.item_texts import ItemTexts, item_texts
from ltrec_jax.config import Config, EncoderSection
from ltrec_jax.data.dataset import Dataset, Split
from ltrec_jax.encoder import catalogue
from ltrec_jax.encoder.weights import Encoder, load_encoder
from ltrec_jax.text import templates
from ltrec_jax.text.store import TokenStore, build_store
from ltrec_jax.text.tokenizer import load_tokenizer

ENCODER = "all-MiniLM-L6-v2"
TUNED = Path(__file__).parent / "settings"
"""Tuned settings of the baselines, one file per dataset, written by `tune_baselines.py`."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Figures for the headline, everything for the record, and rows of a table."""

    headline: Mapping[str, float]
    details: Mapping[str, Any]
    rows: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Texts:
    """The item texts of a dataset as tokens and as vectors [I, E] of the frozen encoder."""

    encoder: Encoder
    tokens: TokenStore
    features_IxE: np.ndarray


def texts_of(dataset: Dataset) -> Texts:
    """Titles, years and genres (the dataset's own template), encoded once."""
    encoder = load_encoder(ENCODER)
    template = str(dataset.info.get("template") or templates.default_template(dataset.items))
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    tokens = build_store(templates.render(template, dataset.items), tokenizer, 64, storage.cache_directory() / "tokens")
    return Texts(encoder, tokens, np.asarray(catalogue.encode_catalogue(encoder, tokens, policy="float32"), np.float32))


def item_texts_of(dataset: Dataset) -> ItemTexts:
    """The same texts as the baselines take them: by the frozen encoder and by words."""
    return item_texts(dataset, Config(encoder=EncoderSection(ENCODER, precision="float32")))


def likes_only(dataset: Dataset, positive_rating: float) -> Dataset:
    """The dataset's events with at least this rating."""
    rows = np.flatnonzero(np.asarray(dataset.interactions.rating) >= positive_rating)
    return dataclasses.replace(dataset, interactions=dataset.interactions.take(rows))


def validation_as_test(split: Split) -> Split:
    """The same training part, scored on validation: where settings are chosen."""
    return dataclasses.replace(split, test_rows=split.validation_rows, validation_rows=np.zeros(0, np.int64))
