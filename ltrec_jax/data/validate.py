"""Which rows of users' tables can be used, and why the others cannot: the good ones to a table, the bad ones listed.

Out of scope: reading files (`ingest`), what becomes of good rows (`relations`).
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from ltrec_jax.data import columns
from ltrec_jax.data.ingest import Layout, name
from ltrec_jax.data.lines import lines_of
from ltrec_jax.data.loading import SHIFT
from ltrec_jax.data.sources.reading import run, text
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb

_SHOWN = 3
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_FLOATS = {"FLOAT", "DOUBLE"}
# Seconds since 1970 reach this in the year 5138; greater numbers are milli-, micro- or nanoseconds.
_UNITS = ((1e17, 1_000_000_000), (1e14, 1_000_000), (1e11, 1_000))


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


def create_rejected(connection: "duckdb.DuckDBPyConnection") -> None:
    """Make the table of all rows that cannot be used; `line` is the number of the row (from 1) in Parquet files."""
    connection.execute(
        'CREATE TABLE rejected ("table" VARCHAR, file VARCHAR, line BIGINT, reason VARCHAR, "row" VARCHAR)'
    )


def judge_interactions(
    connection: "duckdb.DuckDBPyConnection",
    layout: Layout,
    chosen: dict[str, str],
    scale: tuple[float, float] | None,
    max_rejected: float,
) -> Judged:
    """Make `events(user_id, item_id, rating FLOAT, timestamp BIGINT, row_order BIGINT)` of the good rows.

    Ids that are whole numbers in the file are BIGINT, others VARCHAR.

    Reads the relation `interactions` that `loading.load` made of the columns `chosen`; the others go to `rejected`.
    """
    kinds = {n: kind for n, kind, *_ in connection.execute("DESCRIBE interactions").fetchall()}
    user, item = (_identifier(key, kinds[key]) for key in (columns.USER_ID, columns.ITEM_ID))
    cases = [
        ("_bad IS NOT NULL", "_bad"),
        (f"{user} IS NULL", "'missing user'"),
        (f"{item} IS NULL", "'missing item'"),
    ]
    rating, time = "1.0", "0"
    if columns.RATING in chosen:
        rating, more = _rating(kinds[columns.RATING], scale)
        cases += more
    if columns.TIMESTAMP in chosen:
        time, more = _time(kinds[columns.TIMESTAMP])
        cases += more
    if layout.kind == "parquet" and _FLOATS & set(kinds.values()):
        # A NaN is outside the statistics of Parquet, and DuckDB takes them to say that there is none (its issue 25521).
        connection.execute("SET disabled_optimizers = 'statistics_propagation'")
    connection.execute(
        f"""CREATE VIEW judged_interactions AS SELECT *,
            CASE {" ".join(f"WHEN {c} THEN {r}" for c, r in cases)} END AS _reason FROM interactions"""
    )
    # Plain conditions: they are filtered on one after the other, where the CASE computes every value for every row.
    good = " AND ".join(f"({condition}) IS NOT TRUE" for condition, _ in cases)
    # Text is parsed once; Parquet is read faster from its own files than from a copy.
    kept_as = "TABLE" if layout.is_text else "VIEW"
    run(
        connection,
        f"""CREATE {kept_as} events AS SELECT {user} AS user_id, {item} AS item_id, ({rating})::FLOAT AS rating,
            ({time})::BIGINT AS "timestamp", _order::BIGINT AS row_order FROM interactions WHERE {good}""",
        "checking interactions",
    )
    if layout.is_text:
        counts = _count(connection, "interactions"), _count(connection, "events")
    else:
        # Both in one pass over the files.
        (counts,) = connection.execute(f"SELECT count(*), count(*) FILTER (WHERE {good}) FROM interactions").fetchall()
    return _close(connection, layout, "interactions", counts, chosen, max_rejected)


def judge_table(
    connection: "duckdb.DuckDBPyConnection", layout: Layout, table: str, key: str, max_rejected: float, names: list[str]
) -> Judged:
    """Make `<table>_kept` of the rows with a `key` that no earlier row has; lists the others in `rejected`.

    Reads the relation `table` that `loading.load` made with the columns `names` (`key` among them).
    Missing texts are "".
    """
    kinds = {n: kind for n, kind, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
    identifier = f"({_identifier(key, kinds[key])})::VARCHAR"
    missing = f"missing {key.removesuffix('_id')} id"
    shown = ", ".join(
        f"coalesce({name(n)}, '') AS {name(n)}" if kinds[n] == "VARCHAR" else name(n) for n in names if n != key
    )
    connection.execute(
        f"""CREATE VIEW judged_{table} AS SELECT *, CASE WHEN _bad IS NOT NULL THEN _bad
            WHEN _key IS NULL THEN {text(missing)}
            WHEN row_number() OVER (PARTITION BY _key ORDER BY _order) > 1 THEN 'duplicate {key}' END AS _reason
            FROM (SELECT *, {identifier} AS _key FROM {table})"""
    )
    run(
        connection,
        f"""CREATE TABLE {table}_kept AS SELECT _key AS {key}{", " + shown if shown else ""} FROM judged_{table}
            WHERE _reason IS NULL""",
        f"checking {table}",
    )
    counts = _count(connection, table), _count(connection, f"{table}_kept")
    return _close(connection, layout, table, counts, names, max_rejected)


def _identifier(column: str, kind: str) -> str:
    """The id as a text or whole number, NULL where it is missing. 12.0 (of a column that once held NaN) is "12"."""
    c = name(column)
    if kind in _INTEGERS:
        return f"{c}::BIGINT"
    if kind in _FLOATS:
        return (
            f"CASE WHEN isnan({c}) THEN NULL WHEN {c} = floor({c}) AND abs({c}) < 9e15 THEN {c}::BIGINT::VARCHAR "
            f"ELSE {c}::VARCHAR END"
        )
    if kind == "VARCHAR":
        # Only what begins with a space or a control character can be blank, and trimming is slow.
        return f"CASE WHEN NOT ({c} < '!' AND trim({c}) = '') THEN {c} END"
    return f"{c}::VARCHAR"


def _rating(kind: str, scale: tuple[float, float] | None) -> tuple[str, list[tuple[str, str]]]:
    """The expression of a rating, and what is wrong with it where."""
    value = c = name(columns.RATING)
    cases = [(f"{c} IS NULL", "'missing rating'")]
    if kind == "VARCHAR":
        cases = [(f"trim(coalesce({c}, '')) = ''", "'missing rating'")]
    if kind not in _INTEGERS and kind not in _FLOATS:
        value = f"try_cast({c} AS DOUBLE)"
        cases.append((f"{value} IS NULL", "'rating is not a number'"))
    if kind not in _INTEGERS:
        cases += [(f"isnan({value})", "'rating is NaN'"), (f"abs({value}) > 3.4e38", "'rating is infinite'")]
    if scale is not None:
        low, high = scale
        cases.append((f"{value} NOT BETWEEN {low!r} AND {high!r}", f"'rating outside {low:g}..{high:g}'"))
    return value, cases


def _time(kind: str) -> tuple[str, list[tuple[str, str]]]:
    """The expression of unix seconds, and what is wrong with it where."""
    c = name(columns.TIMESTAMP)
    missing = f"{c} IS NULL"
    if kind in _INTEGERS:
        # The first case is the usual one.
        value = f"CASE WHEN {c} < {_UNITS[-1][0]:.0f} THEN {c} ELSE {_seconds(c, '//')} END"
        return value, [(missing, "'missing timestamp'"), (f"{c} < 0", "'negative timestamp'")]
    if kind == "VARCHAR":
        missing = f"trim(coalesce({c}, '')) = ''"
        value = f"coalesce({_seconds(f'try_cast({c} AS DOUBLE)')}, epoch(try_cast({c} AS TIMESTAMPTZ)))"
    elif kind.startswith(("TIMESTAMP", "DATE")):
        value = f"epoch({c})"
    else:
        value = _seconds(f"try_cast({c} AS DOUBLE)")
    cases = [
        (missing, "'missing timestamp'"),
        (f"{value} IS NULL OR isnan(({value})::DOUBLE) OR isinf(({value})::DOUBLE)", "'timestamp is not a time'"),
        (f"{value} < 0", "'negative timestamp'"),
    ]
    return f"floor({value})", cases


def _seconds(number: str, by: str = "/") -> str:
    cases = " ".join(f"WHEN {number} >= {limit:.0f} THEN {number} {by} {divisor}" for limit, divisor in _UNITS)
    return f"CASE {cases} ELSE {number} END"


def _close(
    connection: "duckdb.DuckDBPyConnection",
    layout: Layout,
    table: str,
    counts: tuple[int, int],
    names: Any,
    max_rejected: float,
) -> Judged:
    """List the bad rows of a table with their lines; stop where they are too many. `counts`: all rows, good rows."""
    total, kept = counts
    row = ", ".join(f"{name(n)} := {name(n)}" for n in names)
    # Nothing to look for where every row was kept.
    none = "" if total > kept else "LIMIT 0"
    run(
        connection,
        f"""CREATE TABLE {table}_bad AS SELECT _file, _order, _reason,
            coalesce(_raw, to_json(struct_pack({row}))::VARCHAR) AS _row
            FROM judged_{table} WHERE _reason IS NOT NULL {none}""",
        f"listing rejected {table}",
    )
    rejected = sum(_count(connection, f"{table}_{kind}") for kind in ("bad", "broken"))
    if rejected:
        _list_rejected(connection, layout, table)
    found = connection.execute(
        f"""SELECT reason, count(*) AS n FROM rejected WHERE "table" = {text(table)}
            GROUP BY reason ORDER BY n DESC, reason"""
    ).fetchall()
    judged = Judged(table, kept + rejected, rejected, dict(found))
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


def _count(connection: "duckdb.DuckDBPyConnection", table: str) -> int:
    (row,) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(row[0])
