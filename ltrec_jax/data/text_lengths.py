"""Lengths of the texts of a table, in characters and words, and the summary of any counts.

Out of scope: tokens (`text.tokenizer`), making one text of several columns (`text.templates`).
"""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from ltrec_jax.data import columns

_PIECE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Spread:
    """Smallest, median, mean, 95th percentile and largest of some counts; all 0 without any."""

    smallest: float
    median: float
    mean: float
    p95: float
    largest: float


@dataclasses.dataclass(frozen=True)
class TextColumn:
    """Lengths of one text column of the items, over the items that have it. `missing` counts the others.

    `percentiles` float64[101]: at most so many characters have 0%, 1%, ..., 100% of the texts.
    """

    name: str
    missing: int
    characters: Spread
    words: Spread
    percentiles: np.ndarray


def text_columns(items: pd.DataFrame) -> list[str]:
    """The columns of an item table that hold texts: strings, or lists of strings."""
    names = []
    for name in items.columns:
        known = items[name].dropna().head(100)
        if name != columns.ITEM_ID and len(known) and all(isinstance(x, (str, list, tuple, np.ndarray)) for x in known):
            names.append(str(name))
    return names


def spread(values: np.ndarray) -> Spread:
    """The summary of some counts."""
    if len(values) == 0:
        return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    low, middle, high95, high = np.quantile(values, [0.0, 0.5, 0.95, 1.0])
    return Spread(float(low), float(middle), float(values.mean()), float(high95), float(high))


def measure(name: str, column: pd.Series) -> TextColumn:
    """The lengths of one column, a piece at a time; what is missing or blank has none."""
    characters, words = [], []
    for start in tqdm(range(0, len(column), _PIECE), desc=f"reading {name}", delay=1.0):
        texts = pa.array([plain(value) for value in column.iloc[start : start + _PIECE]], pa.string())
        characters.append(pc.utf8_length(texts).to_numpy())
        words.append(pc.count_substring_regex(texts, r"\S+").to_numpy())
    length, count = np.concatenate(characters), np.concatenate(words)
    there = count > 0
    known = length[there]
    percentiles = np.quantile(known, np.linspace(0, 1, 101)) if len(known) else np.zeros(101)
    return TextColumn(name, int((~there).sum()), spread(known), spread(count[there]), percentiles)


def plain(value: Any) -> str:
    """A cell as text; "" for a missing one. A lone surrogate has no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(plain(part) for part in value)
    return "" if pd.isna(value) else str(value)
