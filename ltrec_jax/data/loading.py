"""Users' tables into DuckDB, larger than memory: a relation of the chosen columns whose rows lead back to their lines.

Out of scope: finding files and columns (`ingest`), judging values (`validate`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltrec_jax.data.ingest import IS_OBJECT, Layout, name, rejects_table
from ltrec_jax.data.sources.reading import run, text

if TYPE_CHECKING:
    import duckdb

SHIFT = 40
"""In `_order` of Parquet files the number of the file stands above this many bits of the row number."""
_NOT_JSON = "bad line (not a JSON object)"
_BROKEN = {
    "INVALID ENCODING": "bad encoding",
    "MISSING COLUMNS": "bad line (too few columns)",
    "TOO MANY COLUMNS": "bad line (too many columns)",
    "UNQUOTED VALUE": "bad line (a quote is not closed)",
    "LINE SIZE OVER MAXIMUM": "bad line (too long)",
}


def load(
    connection: "duckdb.DuckDBPyConnection",
    layout: Layout,
    table: str,
    chosen: Mapping[str, str],
    *,
    typed: bool = False,
) -> None:
    """Make the relation `table`: the columns `chosen` (new name -> name in the file), `_file` and `_order`.

    `_order` grows with the row; `lines` turns it into a line. Broken lines are listed in `<table>_broken(file, line,
    reason, row)`, where `line` counts records from 1. Values of text files are VARCHAR; with `typed`, a column all of
    whose values are numbers (or, in JSON, lists) becomes one.
    """
    connection.execute(f'CREATE TABLE {table}_broken (file INTEGER, line BIGINT, reason VARCHAR, "row" VARCHAR)')
    if not layout.is_text:
        order = "_row" if layout.kind == "frame" else f"(file_index::BIGINT << {SHIFT}) + file_row_number"
        number = "0" if layout.kind == "frame" else "file_index::INTEGER"
        wanted = ", ".join(f"{name(old)} AS {name(new)}" for new, old in chosen.items())
        connection.execute(
            f"""CREATE VIEW {table} AS SELECT {wanted}, NULL::VARCHAR AS _bad, NULL::VARCHAR AS _raw,
                {number} AS _file, {order} AS _order FROM {layout.reader}"""
        )
        return
    if layout.kind == "csv":
        wanted = ", ".join(f"{name(old)} AS {name(new)}" for new, old in chosen.items())
        fields, condition = ", ".join(map(name, chosen)) + ", NULL::VARCHAR AS _bad, NULL::VARCHAR AS _raw", ""
    else:
        wanted = f"line, {IS_OBJECT} AS _valid"
        extract = "json_extract" if typed else "json_extract_string"
        fields = ", ".join(
            f"{extract}(CASE WHEN _valid THEN line END, {text(_json_path(old))}) AS {name(new)}"
            for new, old in chosen.items()
        )
        fields += (
            f", CASE WHEN NOT _valid THEN {text(_NOT_JSON)} END AS _bad, CASE WHEN NOT _valid THEN line END AS _raw"
        )
        condition = "WHERE trim(coalesce(line, '')) <> ''"
    run(
        connection,
        f"CREATE TABLE {table}_text AS SELECT {wanted}, file_index::INTEGER AS _file FROM {layout.reader}",
        f"reading {layout.what}",
    )
    _note_broken(connection, table, rejects_table(layout.what))
    connection.execute(
        f"CREATE VIEW {table}_plain AS SELECT {fields}, _file, rowid AS _order FROM {table}_text {condition}"
    )
    if typed:
        finder = _json_type if layout.kind == "jsonl" else _text_type
        shown = ", ".join(f"{finder(connection, f'{table}_plain', new)} AS {name(new)}" for new in chosen)
        connection.execute(f"CREATE VIEW {table} AS SELECT {shown}, _bad, _raw, _file, _order FROM {table}_plain")
    else:
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM {table}_plain")


def _note_broken(connection: "duckdb.DuckDBPyConnection", table: str, rejects: str) -> None:
    cases = " ".join(f"WHEN {text(kind)} THEN {text(reason)}" for kind, reason in _BROKEN.items())
    connection.execute(
        f"""INSERT INTO {table}_broken
            SELECT file_id, line, CASE first(error_type::VARCHAR) {cases} ELSE 'bad line' END, first(csv_line)
            FROM {rejects} GROUP BY file_id, line ORDER BY file_id, line"""
    )


def _json_path(key: str) -> str:
    return '$."' + key.replace('"', '\\"') + '"'


def _text_type(connection: "duckdb.DuckDBPyConnection", table: str, column: str) -> str:
    """The expression that makes a column of texts BIGINT or DOUBLE where every value is such a number, else itself.

    A number that would print differently ("007") is a text.
    """
    c = name(column)
    whole, real, filled = _one(
        connection,
        f"""SELECT bool_and(try_cast({c} AS BIGINT)::VARCHAR IS NOT DISTINCT FROM {c}),
            bool_and(try_cast({c} AS DOUBLE) IS NOT NULL AND NOT regexp_matches({c}, '^[-+]?0[0-9]')), count(*)
            FROM {table} WHERE {c} IS NOT NULL AND {c} <> ''""",
    )
    if filled and (whole or real):
        return f"try_cast({c} AS {'BIGINT' if whole else 'DOUBLE'})"
    return c


def _json_type(connection: "duckdb.DuckDBPyConnection", table: str, column: str) -> str:
    """The expression that makes a column of JSON values numbers or lists where all are, else texts."""
    c = name(column)
    (kinds,) = _one(connection, f"SELECT list(DISTINCT json_type({c})) FROM {table} WHERE json_type({c}) <> 'NULL'")
    found = set(kinds or ())
    if found and found <= {"BIGINT", "UBIGINT"}:
        return f"try_cast({c} ->> '$' AS BIGINT)"
    if found and found <= {"BIGINT", "UBIGINT", "DOUBLE"}:
        return f"try_cast({c} ->> '$' AS DOUBLE)"
    if found == {"ARRAY"}:
        return f"try_cast({c} AS VARCHAR[])"
    return f"{c} ->> '$'"


def _one(connection: "duckdb.DuckDBPyConnection", sql: str) -> tuple[Any, ...]:
    (row,) = connection.execute(sql).fetchall()
    return row
