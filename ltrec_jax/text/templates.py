"""Columns of a table to one text per row: "{title} ({year}). {genres}", with missing values left out cleanly.

Out of scope: tokens (`tokenizer`), choosing which rows or users (the caller), rewriting what a column says.
"""

import dataclasses
import functools
import itertools
import math
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ltrec_jax.data import columns
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.errors import UserError, unknown_name

_DELIMITER = re.compile(r"\s*\n\s*|\s*[.!?;,](?=\s|$)\s*|\s+[-–—|/•·](?=\s|$)\s*|\s*\|\s*|[。，；、！？]\s*")
_BRACKETS = {"(": ")", "[": "]", "（": "）", "【": "】", "《": "》", "「": "」", "“": "”"}
_NAMED = (
    (columns.TEXT,),
    (
        "title",
        "name",
        "headline",
        "item_name",
        "movie_title",
        "product_title",
        "artist",
        "artist_name",
        "track",
        "book",
    ),
    ("year", "release_year", "movie_release_year", "publication_year", "original_publication_year"),
    ("genres", "genre", "class", "categories", "category", "main_category", "subcategory", "tags", "authors", "author"),
    ("description", "abstract", "overview", "plot", "summary", "features"),
)
_LONGEST_KEPT = 64
_NEVER_TEXT = {columns.USER_ID, columns.ITEM_ID, columns.USER, columns.ITEM, columns.RATING, columns.TIMESTAMP}


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str


@dataclasses.dataclass(frozen=True)
class _Group:
    """A bracket with what it holds; it vanishes when every field inside is missing."""

    opening: str
    inside: "_Sequence"
    closing: str


_Piece = str | _Field | _Group


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """Clauses parted by punctuation: `delimiters[c]` stands after clause c (the last may be empty)."""

    clauses: tuple[tuple[_Piece, ...], ...]
    delimiters: tuple[str, ...]


def render(template: str, frame: pd.DataFrame) -> list[str]:
    """One text per row of `frame`: every `{column}` of the template is replaced by the row's value.

    A missing value (NaN, None, an empty string or list) takes its brackets, its label and its punctuation with it:
    "{title} ({year}). {genres}" gives "Toy Story. Animation" where the year is missing, and "" where everything is.
    1995.0 prints as 1995, lists as "a, b", dates as 2020-01-31. `{{` and `}}` are literal braces. Fields are column
    names and nothing else: conversions, format specifications and attribute access are a `UserError`, as is an
    unknown column.
    """
    parts = _parse(template)
    names = field_names(template)
    for name in names:
        if name not in frame.columns:
            raise unknown_name("column in the text template", name, [str(column) for column in frame.columns])
    tree = _sequence(parts)
    before_dot = {
        part.name
        for part, after in itertools.pairwise(parts)
        if isinstance(part, _Field) and isinstance(after, str) and after.startswith(".")
    }
    cells = [
        _cells(frame[name], drop_dot=name in before_dot) for name in tqdm(names, desc="reading text columns", delay=1.0)
    ]
    missing = np.array([[not cell for cell in column] for column in cells], dtype=bool).reshape(len(names), len(frame))
    texts = [""] * len(frame)
    patterns, pattern_of_row = np.unique(missing, axis=1, return_inverse=True)
    for number in tqdm(range(patterns.shape[1]), desc="writing texts", delay=1.0):
        gone = frozenset(name for name, absent in zip(names, patterns[:, number], strict=True) if absent)
        rows = np.flatnonzero(pattern_of_row.ravel() == number)
        for row, text in zip(rows.tolist(), _fill(tree, gone, names, cells, rows), strict=True):
            texts[row] = text
    return texts


def field_names(template: str) -> list[str]:
    """The columns that a template names, in its order, each once."""
    return list(dict.fromkeys(part.name for part in _parse(template) if isinstance(part, _Field)))


def default_template(frame: pd.DataFrame) -> str:
    """A template from the column names: a rendered text, else title, year, genres and description, else every string.

    A frame without any usable column is a `UserError`.
    """
    by_lower = {str(column).lower(): str(column) for column in frame.columns}
    text, title, year, kinds, prose = (
        next((by_lower[name] for name in family if name in by_lower), None) for family in _NAMED
    )
    if text:
        return _field(text)
    if title:
        tail = "".join(f". {_field(name)}" for name in (kinds, prose) if name)
        return _field(title) + (f" ({_field(year)})" if year else "") + tail
    strings = [
        str(column)
        for column in frame.columns
        if str(column).lower() not in _NEVER_TEXT and not pd.api.types.is_numeric_dtype(frame[column])
    ]
    if not strings:
        raise UserError(
            f"No column to make a text from among {', '.join(map(str, frame.columns)) or 'none at all'}. "
            "Name the columns in a template, such as '{title} ({year})'."
        )
    return ". ".join(_field(name) for name in strings)


def profile_texts(
    interactions: Interactions,
    item_texts: Sequence[str],
    num_users: int,
    *,
    min_rating: float = 4.0,
    max_items: int = 10,
    attributes: Sequence[str] | None = None,
) -> list[str]:
    """One text per user: attributes if given (one text per user), then "Likes: A; B; C" of the latest liked items.

    Liked means rating >= `min_rating`; latest by timestamp, then by row. Give training interactions only, or the
    profile tells what is to be predicted. A user who likes nothing has the attributes alone, or "". Item texts that
    are empty are left out.
    """
    if attributes is not None and len(attributes) != num_users:
        raise ValueError(f"{len(attributes)} attribute texts for {num_users} users")
    spoken = np.array([bool(text) for text in item_texts], dtype=bool)
    liked = np.flatnonzero((interactions.rating >= min_rating) & spoken[interactions.item])
    user = interactions.user[liked]
    latest_first = np.lexsort((-liked, -interactions.timestamp[liked], user))
    user, item = user[latest_first], interactions.item[liked][latest_first]
    rank = np.arange(len(user)) - np.searchsorted(user, user)
    user, item = user[rank < max_items], item[rank < max_items]
    edges = np.searchsorted(user, np.arange(num_users + 1))
    texts = list(attributes) if attributes is not None else [""] * num_users
    for u in np.unique(user).tolist():
        likes = "Likes: " + "; ".join(item_texts[i] for i in item[edges[u] : edges[u + 1]].tolist())
        texts[u] = f"{texts[u]} {likes}" if texts[u] else likes
    return texts


def _field(name: str) -> str:
    return "{" + name + "}"


def _parse(template: str) -> list[str | _Field]:
    parts: list[str | _Field] = []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"The text template {template!r} is not well formed: {error}.") from error
    for literal, name, specification, conversion in parsed:
        if literal:
            parts.append(literal)
        if name is None:
            continue
        if specification or conversion or not name or "{" in name:
            raise UserError(
                f"The text template {template!r} may hold plain column names in braces only, such as '{{title}}'."
            )
        parts.append(_Field(name))
    if not any(isinstance(part, _Field) for part in parts):
        raise UserError(f"The text template {template!r} names no column. Write one in braces, such as '{{title}}'.")
    return parts


def _sequence(parts: Iterable[str | _Field]) -> _Sequence:
    symbols: list[str | _Field] = []
    for part in parts:
        symbols.extend([part] if isinstance(part, _Field) else re.split(r"([()\[\]（）【】《》「」“”])", part))
    symbols = [symbol for symbol in symbols if symbol != ""]
    return _descend(symbols, _partners(symbols), 0, len(symbols))


def _partners(symbols: list[str | _Field]) -> dict[int, int]:
    """Where the bracket opened at a place is closed. Brackets that cross or stay alone are ordinary characters."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for at, symbol in enumerate(symbols):
        if symbol in _BRACKETS:
            opened.append(at)
            continue
        fitting = [depth for depth, start in enumerate(opened) if _BRACKETS[str(symbols[start])] == symbol]
        if fitting:
            found[opened[fitting[-1]]] = at
            del opened[fitting[-1] :]
    return found


def _descend(symbols: list[str | _Field], partners: dict[int, int], at: int, end: int) -> _Sequence:
    """The symbols from `at` to before `end`, with brackets as groups."""
    clauses: list[list[_Piece]] = [[]]
    delimiters: list[str] = []
    while at < end:
        symbol = symbols[at]
        if isinstance(symbol, _Field):
            clauses[-1].append(symbol)
        elif at in partners:
            inside = _descend(symbols, partners, at + 1, partners[at])
            clauses[-1].append(_Group(symbol, inside, _BRACKETS[symbol]))
            at = partners[at]
        else:
            start = 0
            for match in _DELIMITER.finditer(symbol):
                if match.start() > start:
                    clauses[-1].append(symbol[start : match.start()])
                delimiters.append(match.group())
                clauses.append([])
                start = match.end()
            if start < len(symbol):
                clauses[-1].append(symbol[start:])
        at += 1
    return _Sequence(tuple(map(tuple, clauses)), (*delimiters, ""))


def _fields(piece: _Piece) -> list[str]:
    if isinstance(piece, _Field):
        return [piece.name]
    if isinstance(piece, _Group):
        return [name for clause in piece.inside.clauses for inner in clause for name in _fields(inner)]
    return []


def _without(tree: _Sequence, gone: frozenset[str]) -> list[str | _Field]:
    """The sequence as flat pieces once the fields in `gone` are missing. A clause left without field goes whole."""
    flat: list[str | _Field] = []
    pending = ""
    for clause, delimiter in zip(tree.clauses, tree.delimiters, strict=True):
        names = [name for piece in clause for name in _fields(piece)]
        if names and all(name in gone for name in names):
            # The delimiter before a lost clause goes with it, the one after it takes its place:
            # "a. {lost}, b" is "a, b".
            pending = delimiter
            continue
        if not clause:
            # The empty clause at the end of a template that closes with punctuation.
            continue
        if flat:
            flat.append(pending)
        flat.extend(_clause_without(clause, gone))
        pending = delimiter
    if flat and not tree.clauses[-1] and len(tree.clauses) > 1:
        flat.append(tree.delimiters[-2])
    return flat


def _clause_without(clause: tuple[_Piece, ...], gone: frozenset[str]) -> list[str | _Field]:
    """A clause that keeps a field: a missing one takes the words before it (its label) or, if first, those after it."""
    kept: list[_Piece] = []
    seen_field = False
    swallow = False
    for piece in clause:
        names = _fields(piece)
        if names and all(name in gone for name in names):
            while kept and isinstance(kept[-1], str) and not (isinstance(piece, _Group) and kept[-1].strip()):
                kept.pop()
            swallow = not seen_field
        elif isinstance(piece, str):
            if not swallow:
                kept.append(piece)
        else:
            swallow = False
            seen_field = seen_field or bool(names)
            kept.append(piece)
    flat: list[str | _Field] = []
    for piece in kept:
        # Opened up only now: as characters, a closing bracket would pass for words before a missing value.
        if isinstance(piece, _Group):
            flat.extend([piece.opening, *_without(piece.inside, gone), piece.closing])
        else:
            flat.append(piece)
    return flat


def _fill(
    tree: _Sequence, gone: frozenset[str], names: list[str], cells: list[list[str]], rows: np.ndarray
) -> list[str]:
    """Texts of the rows whose missing fields are exactly `gone`."""
    if len(gone) == len(names):
        return [""] * len(rows)
    flat = _without(tree, gone)
    pattern = "".join("%s" if isinstance(piece, _Field) else piece.replace("%", "%%") for piece in flat)
    chosen = [cells[names.index(piece.name)] for piece in flat if isinstance(piece, _Field)]
    return [(pattern % tuple(column[row] for column in chosen)).strip() for row in rows.tolist()]


def _cells(column: pd.Series, *, drop_dot: bool) -> list[str]:
    """Every value as text; "" where it is missing. `drop_dot`: the template sets its own full stop after it."""
    texts = [_cached_cell(value) if _may_recur(value) else _cell(value) for value in column.tolist()]
    if drop_dot:
        texts = [text[:-1] if text.endswith(".") and not text.endswith("..") else text for text in texts]
    return texts


def _may_recur(value: Any) -> bool:
    """Few distinct values (years, genres) are formatted once each. A long text is its own: kept, it costs memory."""
    return len(value) <= _LONGEST_KEPT if isinstance(value, str) else isinstance(value, (int, float))


@functools.lru_cache(maxsize=65536, typed=True)
def _cached_cell(value: str | float) -> str:
    return _cell(value)


def _cell(value: Any) -> str:
    if value is None or value is pd.NaT or value is pd.NA:
        return ""
    if isinstance(value, str):
        # A lone surrogate cannot be written as UTF-8, and the tokenizer refuses it.
        return " ".join(value.encode("utf-8", "replace").decode().split())
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(text for text in map(_cell, value) if text)
    if isinstance(value, pd.Timestamp):
        return value.date().isoformat() if value == value.normalize() else value.isoformat(sep=" ")
    if isinstance(value, np.generic):
        return _cell(value.item())
    return " ".join(str(value).split())
