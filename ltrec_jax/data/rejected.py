"""Rows that cannot be used: listed with file, line and reason, counted, and too many of them stop everything.

Out of scope: what makes a row bad (`validate`).
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from ltrec_jax.data.ingest import Layout, name
from ltrec_jax.data.lines import lines_of
from ltrec_jax.data.loading import SHIFT
from ltrec_jax.data.sources.reading import run, text
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb

_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Judged:
    """What became of one table's rows: read = kept + rejected. `reasons`: count of each, the commonest first."""

    what: str
    read: int
    rejected: int
    reasons: dict[str, int]

    @property
    def kept(self) -> int:
        return self.read - self.rejected


def create(connection: "duckdb.DuckDBPyConnection") -> None:
    """Make the table of all rows that cannot be used; `line` is the number of the row (from 1) in Parquet files."""
    connection.execute(
        'CREATE TABLE rejected ("table" VARCHAR, file VARCHAR, line BIGINT, reason VARCHAR, "row" VARCHAR)'
    )


def close(
    connection: "duckdb.DuckDBPyConnection",
    layout: Layout,
    table: str,
    kept: int | None,
    names: Any,
    max_rejected: float,
) -> Judged:
    """List the bad rows of a table with their lines; stop where they are too many.

    `kept`: the number of good rows, or None where looking for the bad ones is the cheapest way to it.
    """
    total = count(connection, table)
    row = ", ".join(f"{name(n)} := {name(n)}" for n in names)
    # Nothing to look for where every row was kept.
    none = "LIMIT 0" if total == kept else ""
    run(
        connection,
        f"""CREATE TABLE {table}_bad AS SELECT _file, _order, _reason,
            coalesce(_raw, to_json(struct_pack({row}))::VARCHAR) AS _row
            FROM judged_{table} WHERE _reason IS NOT NULL {none}""",
        f"listing rejected {table}",
    )
    bad, broken = (count(connection, f"{table}_{kind}") for kind in ("bad", "broken"))
    rejected = bad + broken
    if rejected:
        _list_rejected(connection, layout, table)
    found = connection.execute(
        f"""SELECT reason, count(*) AS n FROM rejected WHERE "table" = {text(table)}
            GROUP BY reason ORDER BY n DESC, reason"""
    ).fetchall()
    judged = Judged(table, total + broken, rejected, dict(found))
    if judged.read and rejected > max_rejected * judged.read:
        _stop(connection, judged, max_rejected, layout)
    return judged


def _list_rejected(connection: "duckdb.DuckDBPyConnection", layout: Layout, table: str) -> None:
    connection.execute(f"CREATE TABLE {table}_lines (_file INTEGER, _order BIGINT, line BIGINT)")
    connection.execute(f"CREATE TABLE {table}_broken_lines (file INTEGER, old BIGINT, line BIGINT)")
    if layout.is_text:
        _resolve_lines(connection, layout, table)
    else:
        mask = (1 << SHIFT) - 1 if layout.kind == "parquet" else (1 << 62) - 1
        connection.execute(f"INSERT INTO {table}_lines SELECT _file, _order, (_order & {mask}) + 1 FROM {table}_bad")
    names = ", ".join(text(layout.place(n)) for n in range(max(1, len(layout.files))))
    run(
        connection,
        f"""INSERT INTO rejected SELECT {text(table)}, [{names}][file + 1], line, reason, "row" FROM (
            SELECT _file AS file, line, _reason AS reason, _row AS "row"
            FROM {table}_bad JOIN {table}_lines USING (_file, _order)
            UNION ALL SELECT b.file, l.line, b.reason, b."row"
            FROM {table}_broken b JOIN {table}_broken_lines l ON b.file = l.file AND b.line = l.old)
            ORDER BY file, line""",
        f"finding the lines of rejected {table}",
    )


def _resolve_lines(connection: "duckdb.DuckDBPyConnection", layout: Layout, table: str) -> None:
    assert layout.dialect is not None
    extents = connection.execute(f"SELECT _file, min(rowid), count(*) FROM {table}_text GROUP BY _file").fetchall()
    extent = {file: (first, total) for file, first, total in extents}
    files = connection.execute(
        f"SELECT DISTINCT _file FROM {table}_bad UNION SELECT DISTINCT file FROM {table}_broken ORDER BY 1"
    ).fetchall()
    for (file,) in files:
        first, total = extent.get(file, (0, 0))
        order = _numbers(connection, f"SELECT _order FROM {table}_bad WHERE _file = {file} ORDER BY 1")
        broken = _numbers(connection, f"SELECT line FROM {table}_broken WHERE file = {file} ORDER BY 1")
        lines, broken_lines = lines_of(
            layout.files[file],
            order - first,
            broken,
            total=total,
            dialect=layout.dialect,
        )
        for target, old, new in ((f"{table}_lines", order, lines), (f"{table}_broken_lines", broken, broken_lines)):
            if len(old):
                connection.register("found_lines", _columns(file=np.full(len(old), file), old=old, new=new))
                connection.execute(f"INSERT INTO {target} SELECT * FROM found_lines")
                connection.unregister("found_lines")


def _columns(**arrays: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.table({key: np.asarray(value, np.int64) for key, value in arrays.items()})


def _numbers(connection: "duckdb.DuckDBPyConnection", sql: str) -> np.ndarray:
    (values,) = connection.execute(sql).fetchnumpy().values()
    return np.asarray(values, np.int64)


def _stop(connection: "duckdb.DuckDBPyConnection", judged: Judged, max_rejected: float, layout: Layout) -> None:
    words = []
    for reason, number in list(judged.reasons.items())[:_SHOWN]:
        (example,) = connection.execute(
            'SELECT file, line, "row" FROM rejected WHERE "table" = ? AND reason = ? ORDER BY file, line LIMIT 1',
            [judged.what, reason],
        ).fetchall()
        file, line, row = example
        words.append(
            f"{reason}: {number:,} (such as {file}, {'line' if layout.is_text else 'row'} {line}: {row[:120]})"
        )
    hint = ""
    if next(iter(judged.reasons)) == "bad encoding":
        hint = " If the file is not UTF-8, give its encoding, such as latin-1."
    raise UserError(
        f"{judged.rejected:,} of {judged.read:,} rows of the {judged.what} cannot be used, more than the allowed share "
        f"of {max_rejected:g}. {'; '.join(words)}.{hint} Mend the files or raise max_rejected."
    )


def count(connection: "duckdb.DuckDBPyConnection", table: str) -> int:
    """Rows of a table."""
    (row,) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(row[0])
