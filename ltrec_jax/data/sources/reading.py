"""Raw files to a `Dataset` through an embedded DuckDB on disk: larger than memory, each bad row named by its line.

A source's reader makes three tables in the connection; `assemble` codes the ids and keeps the order of the rows:

    events(user_id VARCHAR, item_id VARCHAR, rating FLOAT, "timestamp" BIGINT)   in the order of the file
    items(item_id VARCHAR, ...)    the whole catalogue in the order of the internal ids
    users(user_id VARCHAR, ...)    the same for users; left out where the data say nothing about them
    folds(fold, first, past_end)   test rows of official folds, where only the files tell them

Out of scope: users' own files with unknown columns (`data.prepare`).
"""

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data import columns
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb


@contextlib.contextmanager
def connection(beside: Path | None = None) -> Iterator["duckdb.DuckDBPyConnection"]:
    """A DuckDB database in a temporary file of `beside` (or the cache directory), gone afterwards.

    What does not fit into memory is spilled there too.
    """
    import duckdb

    root = beside or storage.cache_directory()
    with storage.disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=root, prefix=".duckdb-") as folder,
            duckdb.connect(Path(folder) / "work.duckdb") as opened,
        ):
            # Without both, `query_progress` has nothing to tell; the printing would be DuckDB's own.
            # In a notebook without ipywidgets DuckDB refuses to be set so: the bar then stands still.
            with contextlib.suppress(duckdb.InvalidInputException):
                opened.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
            yield opened


def run(connection: "duckdb.DuckDBPyConnection", sql: str, what: str) -> None:
    """Execute one statement, with a progress bar if it takes long; a DuckDB failure is a one-line `UserError`."""
    import duckdb

    failure: list[duckdb.Error] = []

    def work() -> None:
        try:
            connection.execute(sql)
        except duckdb.Error as error:
            failure.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with tqdm(total=100, desc=what, delay=1.0, bar_format="{desc}: {percentage:3.0f}% {elapsed}") as bar:
            while worker.is_alive():
                worker.join(0.2)
                bar.update(max(0.0, connection.query_progress() - bar.n))
    except KeyboardInterrupt:
        connection.interrupt()
        worker.join()
        raise
    if failure:
        raise UserError(f"{what} failed: {' '.join(str(failure[0]).split())[:300]}") from failure[0]


def read_delimited(
    connection: "duckdb.DuckDBPyConnection",
    table: str,
    path: Path,
    names: Mapping[str, str],
    *,
    delimiter: str,
    header: bool = False,
    quote: str = "",
    encoding: str = "utf-8",
) -> None:
    """Make `table` from a delimited file; `names` gives every column of the file in order, with its DuckDB type.

    A row with another number of columns or a value that is not of the type is a `UserError` with file, line, value.
    """
    listed = ", ".join(f"{text(name)}: {text(kind)}" for name, kind in names.items())
    run(
        connection,
        f"""CREATE TABLE {table} AS SELECT * FROM read_csv({text(str(path))}, auto_detect = false,
            columns = {{{listed}}}, delim = {text(delimiter)}, header = {header}, quote = {text(quote)},
            escape = {text(quote)}, encoding = {text(encoding)}, strict_mode = true, store_rejects = true)""",
        f"reading {path.name}",
    )
    bad = connection.execute(
        "SELECT line, csv_line, column_name, error_type FROM reject_errors ORDER BY line LIMIT 1"
    ).fetchone()
    if bad is not None:
        line, value, column, kind = bad
        reason = f"column {column} is not {names.get(column, 'valid')}" if kind == "CAST" else str(kind).lower()
        raise UserError(f"{path}, line {line}: {reason} in {value!r}. Mend or remove the row.")


def read_json_lines(connection: "duckdb.DuckDBPyConnection", table: str, path: Path, names: Mapping[str, str]) -> None:
    """Make `table` from the named fields of a file with one JSON object per line (perhaps gzipped).

    A missing field is NULL; a damaged line or a value that is not of the type is a `UserError` with file and line.
    """
    listed = ", ".join(f"{text(name)}: {text(kind)}" for name, kind in names.items())
    run(
        connection,
        f"""CREATE TABLE {table} AS SELECT * FROM read_json({text(str(path))}, columns = {{{listed}}},
            format = 'newline_delimited')""",
        f"reading {path.name}",
    )


def require(
    connection: "duckdb.DuckDBPyConnection", table: str, condition: str, path: Path, *, header: bool = False
) -> None:
    """`UserError` with file, line and row for the first row of a table read from `path` that fails the condition."""
    found = connection.execute(
        f"SELECT rowid, * FROM {table} WHERE NOT coalesce({condition}, false) ORDER BY rowid LIMIT 1"
    ).fetchone()
    if found is not None:
        row, *values = found
        raise UserError(
            f"{path}, line {row + 1 + header}: {values!r} does not satisfy {condition}. Mend or remove the row."
        )


def read_ratings(
    connection: "duckdb.DuckDBPyConnection",
    path: Path,
    *,
    scale: tuple[float, float],
    delimiter: str,
    header: bool = False,
    times: bool = True,
) -> None:
    """Make `events` from a file of user, item, rating and (if `times`) time, in this order; else times are 0.

    Times are unix seconds. A missing value, a rating outside `scale` or a negative time is a `UserError` with its line.
    """
    names = {columns.USER_ID: "VARCHAR", columns.ITEM_ID: "VARCHAR", columns.RATING: "FLOAT"}
    names |= {columns.TIMESTAMP: "BIGINT"} if times else {}
    read_delimited(connection, "events", path, names, delimiter=delimiter, header=header)
    if not times:
        connection.execute('ALTER TABLE events ADD COLUMN "timestamp" BIGINT DEFAULT 0')
    low, high = scale
    require(
        connection,
        "events",
        f'user_id IS NOT NULL AND item_id IS NOT NULL AND rating BETWEEN {low} AND {high} AND "timestamp" >= 0',
        path,
        header=header,
    )


def assemble(connection: "duckdb.DuckDBPyConnection", name: str, info: Mapping[str, Any]) -> Dataset:
    """The dataset of the tables `events`, `items` and `users`.

    An item of an event that the catalogue lacks joins it at the end with empty texts (counted in
    `info["items_without_metadata"]`); users are in the order of their table, or by number where there is no table.
    """
    if not _exists(connection, "users"):
        connection.execute("CREATE TABLE users (user_id VARCHAR)")
    described = _count(connection, "items")
    for table, key in (("users", columns.USER_ID), ("items", columns.ITEM_ID)):
        run(
            connection,
            f"""INSERT INTO {table} BY NAME SELECT {key} FROM (SELECT DISTINCT {key} FROM events) AS seen
                ANTI JOIN {table} USING ({key}) ORDER BY try_cast({key} AS BIGINT) NULLS LAST, {key}""",
            f"collecting {table}",
        )
    run(
        connection,
        """CREATE TABLE coded AS
           SELECT users.rowid::INTEGER AS "user", items.rowid::INTEGER AS item, rating::FLOAT AS rating,
                  "timestamp"::BIGINT AS "timestamp"
           FROM events JOIN users USING (user_id) JOIN items USING (item_id) ORDER BY events.rowid""",
        "coding ids",
    )
    arrays = connection.execute("SELECT * FROM coded ORDER BY rowid").fetchnumpy()
    folds = dict(info.get("official_splits", {}))
    if _exists(connection, "folds"):
        folds |= {fold: [first, end] for fold, first, end in connection.execute("FROM folds").fetchall()}
    return Dataset(
        name=name,
        interactions=Interactions(**{key: np.ascontiguousarray(arrays[key]) for key in columns.INTERACTION_COLUMNS}),
        users=_frame(connection, "users"),
        items=_frame(connection, "items"),
        info={
            **info,
            "official_splits": folds,
            "items_without_metadata": _count(connection, "items") - described,
        },
    )


def text(value: str) -> str:
    """A DuckDB string literal."""
    return "'" + value.replace("'", "''") + "'"


def _exists(connection: "duckdb.DuckDBPyConnection", table: str) -> bool:
    found = connection.execute(f"FROM duckdb_tables() WHERE table_name = {text(table)}").fetchone()
    return found is not None


def _count(connection: "duckdb.DuckDBPyConnection", table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def _frame(connection: "duckdb.DuckDBPyConnection", table: str) -> Any:
    """The table in its order, missing texts as ""."""
    kinds = connection.execute(f"DESCRIBE {table}").fetchall()
    chosen = ", ".join(f"coalesce({n}, '') AS {n}" if kind == "VARCHAR" else n for n, kind, *_ in kinds)
    return connection.execute(f"SELECT {chosen} FROM {table} ORDER BY rowid").fetchdf()
