"""k-anonymity: columns are made coarser step by step until at least k rows share every combination of values.

The greedy algorithm is Datafly (Sweeney, "Achieving k-anonymity privacy protection using generalization and
suppression", IJUFKS 10(5), 2002): the column with the most different values goes one step coarser, until few enough
rows are left in small groups; these lose their values. Out of scope: ids and events (`anonymise`).
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from tqdm import tqdm

from ltrec_jax.errors import UserError

OTHER = "other"
_CODES = ("zip", "postal", "postcode", "post_code", "plz")
_FINEST_BINS = 20
_LARGEST = 1e300  # sums of numbers up to here do not overflow


@dataclasses.dataclass(frozen=True)
class Protected:
    """The coarser table, what happened to each column in words, rows that lost their values, the smallest group."""

    frame: pd.DataFrame
    levels: Mapping[str, str]
    suppressed: int
    smallest: int


@dataclasses.dataclass(frozen=True)
class _Level:
    words: str
    values: pd.Series


def k_anonymous(frame: pd.DataFrame, *, k: int, max_suppressed: float = 0.05) -> Protected:
    """Every combination of values in the result belongs to at least k rows; missing values are values too.

    Numbers become ranges of growing width, columns named like a zip or postal code lose digits from the end, dates
    become months, years and decades, other values that are rare become "other". Rows that lose their values form a
    group of at least k as well. A frame without columns has nothing to protect. Fewer than k rows: `UserError`.
    """
    if k < 1:
        raise UserError(f"k = {k} must be at least 1.")
    if not 0.0 <= max_suppressed <= 1.0:
        raise UserError(f"max_suppressed = {max_suppressed} is not a share between 0 and 1.")
    if frame.shape[1] == 0 or k == 1:
        return Protected(frame, dict.fromkeys(map(str, frame.columns), "as it is"), 0, len(frame))
    if len(frame) < k:
        raise UserError(f"{len(frame)} users cannot hide among {k}. Choose a smaller k or drop the columns.")
    columns = tqdm(list(frame.columns), desc="coarser values of each column", delay=1.0)
    ladders = {name: _ladder(frame[name], k) for name in columns}
    step = dict.fromkeys(frame.columns, 0)
    most = sum(len(ladder) - 1 for ladder in ladders.values())
    with tqdm(total=most, desc="generalising (steps, at most)", delay=1.0) as bar:
        while True:
            current = pd.DataFrame({name: ladders[name][step[name]].values for name in frame.columns})
            group = _groups(current)
            size = np.bincount(group)
            if (size[group] < k).sum() <= max_suppressed * len(frame):
                break
            coarser = [name for name in frame.columns if step[name] + 1 < len(ladders[name])]
            if not coarser:
                break
            different = current.nunique(dropna=False).to_dict()
            widest = max(coarser, key=lambda name: different[name])
            step[widest] += 1
            bar.update()
    gone = _suppressed(current, group, size, k)
    # Whole columns are rebuilt, so that no categorical keeps the words of a value that is gone.
    result = pd.DataFrame({name: _blank(current[name], gone) for name in frame.columns})
    words = {str(name): ladders[name][step[name]].words for name in frame.columns}
    return Protected(result, words, int(gone.sum()), int(np.bincount(_groups(result)).min()))


def _groups(frame: pd.DataFrame) -> np.ndarray:
    """The number of each row's combination of values, int64[rows] in 0..groups-1."""
    combined = np.zeros(len(frame), np.int64)
    for name in frame.columns:
        codes, values = pd.factorize(frame[name], use_na_sentinel=True)
        _, combined = np.unique(combined * (len(values) + 1) + codes + 1, return_inverse=True)
    return combined.ravel()


def _suppressed(frame: pd.DataFrame, group: np.ndarray, size: np.ndarray, k: int) -> np.ndarray:
    """Rows that lose their values: those in small groups, and of further groups, the smallest first, enough for k."""
    blank = frame.isna().all(axis=1).to_numpy()
    gone = size[group] < k
    if not gone.any():
        return gone
    for smallest in np.argsort(size, kind="stable"):
        if (gone | blank).sum() >= k:
            break
        gone |= group == smallest
    return gone & ~blank


def _blank(column: pd.Series, gone: np.ndarray) -> pd.Series:
    return column.where(~gone) if gone.any() else column


def _ladder(column: pd.Series, k: int) -> list[_Level]:
    """The column from as it is to removed, each step coarser than the one before."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    kind = column.dtype
    if str(column.name).lower().startswith(_CODES):
        between = _shorter_codes(column)
    elif pd.api.types.is_datetime64_any_dtype(kind):
        between = _coarser_dates(column)
    elif pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind):
        between = _ranges(column)
    else:
        column = column.map(str, na_action="ignore")
        between = _rarer_values(column, k)
    removed = _Level("removed", pd.Series([None] * len(column), index=column.index, dtype=object))
    return [_Level("as it is", column), *between, removed]


def _ranges(column: pd.Series) -> list[_Level]:
    numbers = column.astype("Float64").to_numpy(np.float64, na_value=np.nan)
    known = ~np.isnan(numbers)
    found = np.clip(numbers[known], -_LARGEST, _LARGEST)
    span = float(np.ptp(found)) if len(found) else 0.0
    if span < 1 / _LARGEST:
        return []
    whole = bool((found == np.floor(found)).all())
    width = _round_up(span / _FINEST_BINS)
    if whole:
        width = max(2.0, width)
    levels = []
    while True:
        starts, bins = np.unique(np.floor(found / width), return_inverse=True)
        labels = np.array([_label(start * width, width, whole) for start in starts], dtype=object)
        values = np.full(len(column), None, dtype=object)
        values[known] = labels[bins]
        levels.append(_Level(f"ranges of width {width:g}", pd.Series(values, index=column.index)))
        if len(starts) <= 2:
            return levels
        width *= 2


def _round_up(width: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= width * (1 - 1e-9))


def _label(low: float, width: float, whole: bool) -> str:
    high = low + width - 1 if whole else low + width
    return f"{low:.0f}-{high:.0f}" if whole and low >= 0 else f"{low:g} to {high:g}"


def _shorter_codes(column: pd.Series) -> list[_Level]:
    texts = column.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value), na_action="ignore")
    length = int(texts.str.len().max()) if texts.notna().any() else 0
    if pd.api.types.is_numeric_dtype(column.dtype):
        texts = texts.str.zfill(length)  # a number has lost its leading zeros
    return [
        _Level(f"without the last {cut}", texts.map(lambda text, cut=cut: _cut(text, cut), na_action="ignore"))
        for cut in range(1, length)
    ]


def _cut(text: str, cut: int) -> str:
    return text[: max(0, len(text) - cut)] + "*" * cut


def _coarser_dates(column: pd.Series) -> list[_Level]:
    years = column.dt.year.map(lambda year: f"{year:.0f}", na_action="ignore")
    decades = years.map(lambda year: f"{year[:-1]}0s", na_action="ignore")
    months = column.dt.strftime("%Y-%m")
    return [_Level("month", months), _Level("year", years), _Level("decade", decades)]


def _rarer_values(column: pd.Series, k: int) -> list[_Level]:
    """Values of fewer than k, 2 k, 4 k, ... rows become "other", while that changes something and leaves something."""
    counts = column.map(column.value_counts())
    levels: list[_Level] = []
    least, most = k, counts.max()
    while least <= most:
        rare = counts < least
        if rare.any() and (not levels or not levels[-1].values[rare].eq(OTHER).all()):
            words = f"values of fewer than {least} users are {OTHER!r}"
            levels.append(_Level(words, column.where(~rare, OTHER)))
        least *= 2
    return levels
