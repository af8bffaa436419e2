"""Users' own tables: where the files are, how they are written, which columns they have. Nothing is read in full.

Out of scope: reading them (`loading`), what the values mean (`validate`), public data sets (`sources`).
"""

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltrec_jax.data.prepare_options import PrepareOptions
from ltrec_jax.data.sources.reading import run, text
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

Kind = Literal["csv", "jsonl", "parquet", "frame"]
_KINDS: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".inter": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PACKED = {".gz", ".zst"}
# A byte that text files do not hold: each line of JSON is then one column.
_NO_DELIMITER = "\x01"
IS_OBJECT = "coalesce(CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' END, false)"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a text file is written; `skip` lines come before the header, lines that begin with `comment` say nothing."""

    delimiter: str
    quote: str = ""
    escape: str = ""
    comment: str = ""
    skip: int = 0
    header: bool = False
    encoding: str = "utf-8"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a table is written: its files, its columns with their DuckDB types, for text files the dialect."""

    what: str
    kind: Kind
    files: tuple[Path, ...]
    columns: Mapping[str, str]
    reader: str
    """The DuckDB table function call (or name) that reads it; for JSON one column `line`."""
    dialect: Dialect | None = None

    @property
    def is_text(self) -> bool:
        return self.kind in ("csv", "jsonl")

    def place(self, number: int) -> str:
        """The file's name for messages."""
        return str(self.files[number]) if self.files else self.what


def locate(source: str | Path, what: str) -> tuple[Path, ...]:
    """The files of a path, a glob or a folder (all files in it of the commonest known kind), in order of their names.

    Nothing found, an unknown kind or several kinds is a `UserError`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p, path) and _kind(p) is not None]
        if not files:
            raise UserError(f"{what}: the folder {path} holds no CSV, TSV, JSONL or Parquet file.")
    elif path.exists():
        files = [path]
    else:
        files = [p for p in map(Path, sorted(_glob(path))) if p.is_file()]
        if not files:
            raise UserError(f"{what}: {path} does not exist. Give a file, a folder, or a pattern such as 'data/*.csv'.")
    kinds = {_kind(p) or "csv" for p in files}
    if len(kinds) > 1:
        raise UserError(
            f"{what}: {path} mixes {' and '.join(sorted(kinds))} files. Name one kind, as in '{path}/*.csv'."
        )
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{what}: {file} is empty.")
    return tuple(files)


def inspect(
    connection: "duckdb.DuckDBPyConnection",
    source: "str | Path | pd.DataFrame",
    what: str,
    options: PrepareOptions,
    expected: Sequence[str],
) -> Layout:
    """How `source` is written. `expected`: names (lower case) that tell a header from data where all is text."""
    if not isinstance(source, (str, Path)):
        return _inspect_frame(connection, source, what)
    files = locate(source, what)
    kind = _kind(files[0]) or "csv"
    if kind == "parquet":
        return _inspect_parquet(connection, what, files)
    if kind == "jsonl":
        return _inspect_json_lines(connection, what, files, options)
    return _inspect_delimited(connection, what, files, options, expected)


def name(column: str) -> str:
    """A DuckDB identifier."""
    return '"' + column.replace('"', '""') + '"'


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def _glob(pattern: Path) -> list[str]:
    # Path.glob takes no absolute pattern.
    return glob.glob(str(pattern), recursive=True)  # noqa: PTH207


def _kind(path: Path) -> Kind | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _inspect_frame(connection: "duckdb.DuckDBPyConnection", frame: "pd.DataFrame", what: str) -> Layout:
    """A data frame as an Arrow table with its row numbers; columns of mixed types become texts."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{what} must be a path or a data frame, not {type(frame).__name__}")
    if not frame.columns.is_unique:
        raise UserError(f"{what}: a column name stands twice in {', '.join(map(str, frame.columns))}.")
    held: dict[str, Any] = {}
    for column in frame.columns:
        try:
            # NaN stays NaN, so that a rating that is no number is told from a missing one.
            held[str(column)] = pa.array(frame[column], from_pandas=frame[column].dtype.kind != "f")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            held[str(column)] = pa.array([None if _missing(v) else str(v) for v in frame[column]], pa.string())
    relation = f"frame_{what.replace(' ', '_')}"
    connection.register(relation, pa.table({**held, "_row": np.arange(len(frame), dtype=np.int64)}))
    columns = {n: kind for n, kind, *_ in connection.execute(f"DESCRIBE {relation}").fetchall() if n != "_row"}
    return Layout(what, "frame", (), columns, relation)


def _missing(value: Any) -> bool:
    return value is None or value != value


def _inspect_parquet(connection: "duckdb.DuckDBPyConnection", what: str, files: Sequence[Path]) -> Layout:
    import duckdb

    reader = f"read_parquet({_list(files)})"
    try:
        found = connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
    except duckdb.Error as error:
        raise UserError(f"{what}: cannot read {files[0]}: {' '.join(str(error).split())[:300]}") from error
    return Layout(what, "parquet", tuple(files), {n: kind for n, kind, *_ in found}, reader)


def _inspect_json_lines(
    connection: "duckdb.DuckDBPyConnection", what: str, files: Sequence[Path], options: PrepareOptions
) -> Layout:
    """Every line of the files as one text column; the columns are all keys that occur."""
    dialect = Dialect(_NO_DELIMITER, encoding=options.encoding)
    reader, looked_at = (_csv_reader(files, ["line"], dialect, table) for table in (rejects_table(what), "looked_at"))
    run(
        connection,
        f"""CREATE OR REPLACE TEMP TABLE found_keys AS SELECT key, min(place) AS place FROM (
            SELECT unnest(keys) AS key, generate_subscripts(keys, 1) AS place FROM (
                SELECT CASE WHEN {IS_OBJECT} THEN json_keys(line) END AS keys FROM {looked_at}))
            GROUP BY key""",
        f"looking at {what}",
    )
    keys = [key for (key,) in connection.execute("SELECT key FROM found_keys ORDER BY place, key").fetchall()]
    if not keys:
        raise UserError(f"{what}: {files[0]} holds no JSON objects, one a line.")
    return Layout(what, "jsonl", tuple(files), dict.fromkeys(keys, "VARCHAR"), reader, dialect)


def _inspect_delimited(
    connection: "duckdb.DuckDBPyConnection",
    what: str,
    files: Sequence[Path],
    options: PrepareOptions,
    expected: Sequence[str],
) -> Layout:
    dialect, names = _sniff_with_header(connection, what, files[0], options, expected)
    for file in files[1:]:
        _, others = _sniff_with_header(connection, what, file, options, expected)
        if others != names:
            raise UserError(
                f"{what}: {file} has the columns {', '.join(others)}, {files[0]} has {', '.join(names)}. "
                "Shards must have the same columns."
            )
    reader = _csv_reader(files, names, dialect, rejects_table(what))
    return Layout(what, "csv", tuple(files), dict.fromkeys(names, "VARCHAR"), reader, dialect)


def _sniff_with_header(
    connection: "duckdb.DuckDBPyConnection", what: str, file: Path, options: PrepareOptions, expected: Sequence[str]
) -> tuple[Dialect, list[str]]:
    dialect, names = _sniff(connection, what, file, options, options.header)
    if not dialect.header and options.header is None:
        # Where everything is text the sniffer cannot tell a header from data: names it should have tell it.
        assumed, found = _sniff(connection, what, file, options, True)
        if sum(column.strip().lower() in expected for column in found) >= min(2, len(found)):
            return assumed, found
    return dialect, names


def _sniff(
    connection: "duckdb.DuckDBPyConnection", what: str, file: Path, options: PrepareOptions, header: bool | None
) -> tuple[Dialect, list[str]]:
    """The dialect and the column names of one delimited file, by DuckDB's sniffer."""
    import duckdb

    told = "" if options.delimiter is None else f", delim = {text(options.delimiter)}"
    told += "" if header is None else f", header = {header}"
    try:
        (found,) = connection.execute(
            f"""SELECT Delimiter, Quote, Escape, Comment, SkipRows, HasHeader, Columns FROM sniff_csv({text(str(file))},
                ignore_errors = true, encoding = {text(options.encoding)}{told})"""
        ).fetchall()
    except duckdb.Error as error:
        raise UserError(
            f"{what}: cannot tell how {file} is written. Give `delimiter`, `header` and `encoding`. "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    delimiter, *marks, skip, has_header, columns = found
    quote, escape, comment = ("" if mark == "(empty)" else mark for mark in marks)
    if not quote and delimiter in ",;":
        # The lines looked at held no quotes; later ones may.
        quote = escape = '"'
    dialect = Dialect(delimiter, quote, escape, comment, int(skip), bool(has_header), options.encoding)
    return dialect, [column["name"] for column in columns]


def _csv_reader(files: Sequence[Path], names: Sequence[str], dialect: Dialect, rejects: str) -> str:
    """The call that reads delimited files as text; broken lines go to the table `rejects`."""
    listed = ", ".join(f"{text(column)}: 'VARCHAR'" for column in names)
    return f"""read_csv({_list(files)}, auto_detect = false, columns = {{{listed}}}, delim = {text(dialect.delimiter)},
        quote = {text(dialect.quote)}, escape = {text(dialect.escape)}, comment = {text(dialect.comment)},
        header = {dialect.header}, skip = {dialect.skip}, encoding = {text(dialect.encoding)},
        strict_mode = true, store_rejects = true, rejects_table = {text(rejects)},
        rejects_scan = {text(rejects + "_scans")}, rejects_limit = 0)"""


def rejects_table(what: str) -> str:
    return f"broken_{what.replace(' ', '_')}"


def _list(files: Sequence[Path]) -> str:
    return "[" + ", ".join(text(str(file)) for file in files) + "]"
