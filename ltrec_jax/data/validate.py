"""Which rows of users' tables can be used, and why the others cannot: the good ones to a table.

Out of scope: reading files (`ingest`), listing the bad ones (`rejected`), what becomes of good rows (`relations`).
"""

from typing import TYPE_CHECKING

from ltrec_jax.data import columns
from ltrec_jax.data.ingest import Layout, name
from ltrec_jax.data.rejected import Judged, close, count
from ltrec_jax.data.sources.reading import run, text

if TYPE_CHECKING:
    import duckdb

_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_FLOATS = {"FLOAT", "DOUBLE"}
# Seconds since 1970 reach this in the year 5138; greater numbers are milli-, micro- or nanoseconds.
_UNITS = ((1e17, 1_000_000_000), (1e14, 1_000_000), (1e11, 1_000))


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
    # Of files that are read again the bad rows are listed in the pass that counts them.
    kept = count(connection, "events") if layout.is_text else None
    return close(connection, layout, "interactions", kept, chosen, max_rejected)


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
    # The window takes longer than all the rest, and few tables need it.
    ((repeats,),) = connection.execute(
        f"SELECT count(_key) > count(DISTINCT _key) FROM (SELECT {identifier} AS _key FROM {table})"
    ).fetchall()
    again = f"WHEN row_number() OVER (PARTITION BY _key ORDER BY _order) > 1 THEN 'duplicate {key}'" if repeats else ""
    shown = ", ".join(
        f"coalesce({name(n)}, '') AS {name(n)}" if kinds[n] == "VARCHAR" else name(n) for n in names if n != key
    )
    connection.execute(
        f"""CREATE VIEW judged_{table} AS SELECT *, CASE WHEN _bad IS NOT NULL THEN _bad
            WHEN _key IS NULL THEN {text(missing)} {again} END AS _reason
            FROM (SELECT *, {identifier} AS _key FROM {table})"""
    )
    run(
        connection,
        f"""CREATE TEMP TABLE {table}_kept AS SELECT _key AS {key}{", " + shown if shown else ""} FROM judged_{table}
            WHERE _reason IS NULL""",
        f"checking {table}",
    )
    return close(connection, layout, table, count(connection, f"{table}_kept"), names, max_rejected)


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
