"""What `prepare` can be told: which columns mean what, and what becomes of the rows. Plain values, no file access."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from ltrec_jax.errors import UserError, unknown_name

Duplicates = Literal["last", "mean", "first"]
EngineName = Literal["duckdb", "spark"]


@dataclasses.dataclass(frozen=True)
class ColumnMap:
    """Names of the columns in the user's files. What is left out is guessed from the usual names."""

    user: Annotated[
        str | None, Doc("user id in the interactions; guessed: user_id, userId, user, uid, reviewer_id, ...")
    ] = None
    item: Annotated[
        str | None, Doc("item id in the interactions; guessed: item_id, movieId, asin, product_id, ...")
    ] = None
    rating: Annotated[str | None, Doc("rating; guessed: rating, score, stars, ...; '' = none, every event is 1.0")] = (
        None
    )
    timestamp: Annotated[
        str | None, Doc("time; guessed: timestamp, time, ts, date, ...; '' = none, every time is 0")
    ] = None
    item_key: Annotated[str | None, Doc("item id in the table of items; guessed like `item`, or id")] = None
    user_key: Annotated[str | None, Doc("user id in the table of users; guessed like `user`, or id")] = None
    item_columns: Annotated[
        tuple[str, ...], Doc("text and attribute columns of the items to keep; none named = all")
    ] = ()
    user_columns: Annotated[tuple[str, ...], Doc("attribute columns of the users to keep; none named = all")] = ()


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What becomes of the rows, and the means for it. Bad values are a `UserError` that names the field."""

    name: Annotated[str, Doc("name of the dataset; empty = the name of the output directory")] = ""
    min_user_interactions: Annotated[int, Doc("drop users with fewer interactions, repeatedly (k-core)")] = 1
    min_item_interactions: Annotated[int, Doc("drop interactions of items with fewer, repeatedly (k-core)")] = 1
    duplicates: Annotated[
        Duplicates, Doc("a user's several events on one item: keep the last, the first, or their mean")
    ] = "last"
    implicit_threshold: Annotated[float | None, Doc("ratings from here on become 1.0, lower ones are dropped")] = None
    scale: Annotated[tuple[float, float] | None, Doc("lowest and highest rating; others are rejected")] = None
    start: Annotated[int | None, Doc("drop interactions before this time (unix seconds)")] = None
    end: Annotated[int | None, Doc("drop interactions at or after this time (unix seconds)")] = None
    template: Annotated[str | None, Doc("text of an item, such as '{title} ({year})'; recorded in the dataset")] = None
    positive_rating: Annotated[
        float | None, Doc("least rating of a like; recorded; left out: the top quarter of the scale")
    ] = None
    max_rejected: Annotated[float, Doc("stop if more than this share of a table's rows cannot be used")] = 0.05
    strict: Annotated[bool, Doc("refuse interactions whose item is missing from the table of items")] = False
    delimiter: Annotated[str | None, Doc("between the columns of a text file; detected if left out")] = None
    header: Annotated[bool | None, Doc("whether text files begin with the column names; detected if left out")] = None
    encoding: Annotated[Literal["utf-8", "latin-1", "utf-16"], Doc("of text files")] = "utf-8"
    memory_gib: Annotated[float, Doc("memory to stay within; more is spilled to the disk of the output")] = 4.0
    threads: Annotated[int | None, Doc("threads; all cores if left out")] = None
    engine: Annotated[EngineName, Doc("duckdb: this machine, out of core; spark: a Spark session (extra: spark)")] = (
        "duckdb"
    )

    def __post_init__(self) -> None:
        for field in ("min_user_interactions", "min_item_interactions"):
            _require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        _require(self.duplicates in typing.get_args(Duplicates), "duplicates", self.duplicates, "last, mean or first")
        _require(self.engine in typing.get_args(EngineName), "engine", self.engine, "duckdb or spark")
        _require(self.encoding in ("utf-8", "latin-1", "utf-16"), "encoding", self.encoding, "utf-8, latin-1 or utf-16")
        _require(0.0 <= self.max_rejected <= 1.0, "max_rejected", self.max_rejected, "a share between 0 and 1")
        _require(self.memory_gib >= 0.5, "memory_gib", self.memory_gib, "at least 0.5")
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")
        _require(self.template is None or isinstance(self.template, str), "template", self.template, "a text")
        _require(
            self.delimiter is None or 1 <= len(self.delimiter) <= 4, "delimiter", self.delimiter, "1 to 4 characters"
        )
        _require(
            self.scale is None or self.scale[0] < self.scale[1], "scale", self.scale, "two numbers, the lower first"
        )
        _require(None in (self.start, self.end) or self.start < self.end, "start", self.start, "before `end`")  # type: ignore[operator]


def options_from_dict(settings: Mapping[str, Any]) -> tuple[ColumnMap, PrepareOptions]:
    """The two from a dict such as a small TOML file gives: `{"columns": {"user": ...}, "scale": [1, 5], ...}`.

    An unknown key or a value of the wrong type is a `UserError` that names it.
    """
    table = settings.get("columns", {})
    if not isinstance(table, Mapping):
        raise UserError(f'[columns] must be a table such as user = "userId", not {table!r}.')
    rest = {key: value for key, value in settings.items() if key != "columns"}
    return _build(ColumnMap, table, "columns."), _build(PrepareOptions, rest, "")


def _build(kind: Any, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise unknown_name("setting", f"{prefix}{key}", [f"{prefix}{name}" for name in hints])
        if not _fits(value, hints[key]):
            raise UserError(f"{prefix}{key} = {value!r} must be {_words(hints[key])}.")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        each = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
        return len(value) == len(each) and all(map(_fits, value, each))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(part) for part in parts if part is not types.NoneType)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is tuple:
        return "a list of texts" if parts[1:] == (Ellipsis,) else f"a list of {len(parts)} numbers"
    return {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}[hint]


def _require(holds: bool, field: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"{field} must be {rule}, not {value!r}.")
