"""Any CSV, TSV, JSONL or Parquet files, larger than memory and dirty, to a dataset directory; data frames to a dataset.

The order is fixed: rows that cannot be used are rejected (`validate`), then time range, one event for each user and
item, implicit threshold, k-core, coding. Internal ids follow the external ids (whole numbers by value, then texts);
interactions are ordered by user, time and item. So equal data give an equal dataset, whatever files it came in.

Items of the catalogue without interactions stay (they are the cold ones); users without interactions do not.
Out of scope: public data sets (`sources`), texts (`text.templates`).
"""

import contextlib
import dataclasses
import itertools
import string
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltrec_jax import storage
from ltrec_jax.data import columns as names
from ltrec_jax.data import dataset as datasets
from ltrec_jax.data import ingest, loading, relations, validate
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.data.engines import DuckEngine, Engine
from ltrec_jax.data.prepare_options import ColumnMap, PrepareOptions, options_from_dict
from ltrec_jax.data.sources import reading
from ltrec_jax.data.sources.reading import run
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

__all__ = ["ColumnMap", "PrepareOptions", "from_pandas", "options_from_dict", "prepare"]

_USER = ("user_id", "userid", "user", "uid", "reviewer_id", "reviewerid", "customer_id", "member_id", "visitorid")
_ITEM = (
    *("item_id", "itemid", "item", "iid", "movie_id", "movieid", "movie", "parent_asin", "asin", "product_id"),
    *("productid", "book_id", "bookid", "isbn", "news_id", "newsid", "article_id", "track_id", "song_id", "artist_id"),
    *("artistid", "business_id", "video_id", "sku"),
)
_RATING = ("rating", "ratings", "score", "stars", "overall", "preference")
_TIMESTAMP = ("timestamp", "time", "ts", "unix_time", "unixreviewtime", "datetime", "date", "event_time", "created_at")
# DuckDB's own limit leaves room for the interpreter, Arrow and what DuckDB holds outside it.
_SHARE_OF_MEMORY = 0.6
# Coded events of more than this share would push what joins and sorts need out of DuckDB's memory.
_SHARE_OF_TABLES = 0.42
_EVENT_BYTES = 28
_SORTED_PER_GIB = 1_250_000
_BINS = 4096


def prepare(
    interactions: str | Path,
    items: str | Path | None = None,
    users: str | Path | None = None,
    *,
    out: str | Path,
    columns: ColumnMap | None = None,
    options: PrepareOptions | None = None,
    replace: bool = False,
) -> Dataset:
    """Write the dataset directory `out` from files, whole or not at all, and open it.

    Each input is a file, a glob pattern or a folder of shards: CSV, TSV, JSONL (also .gz, .zst) or Parquet. Rows that
    cannot be used go to `rejected.parquet` in the directory; more than `options.max_rejected` of them, missing columns,
    or nothing left after filtering is a `UserError`. `dataset.info["steps"]` counts what each step kept.
    """
    out = Path(out)
    options = options or PrepareOptions()
    with storage.new_directory(out, replace=replace) as directory:
        with _connection(out.parent, options) as connection:
            sources = {"interactions": interactions, "items": items, "users": users}
            info = _prepare(connection, sources, columns or ColumnMap(), options, out.parent)
            digests = _write(connection, directory, info["steps"]["interactions"], options.memory_gib)
        # DuckDB's memory is free by now.
        tables = (datasets.read_table(directory / f"{kind}.parquet") for kind in ("users", "items"))
        fingerprint = datasets.fingerprint(digests, *tables)
        datasets.write_description(directory, options.name or out.name, fingerprint, info)
    return Dataset.load(out)


def from_pandas(
    interactions: "pd.DataFrame",
    items: "pd.DataFrame | None" = None,
    users: "pd.DataFrame | None" = None,
    *,
    name: str = "data frame",
    columns: ColumnMap | None = None,
    options: PrepareOptions | None = None,
) -> Dataset:
    """The same from data frames, in memory: same rules, same messages, and `info["rejected"]` counts the reasons."""
    options = options or PrepareOptions()
    with tempfile.TemporaryDirectory() as folder, _connection(Path(folder), options) as connection:
        sources = {"interactions": interactions, "items": items, "users": users}
        info = _prepare(connection, sources, columns or ColumnMap(), options, Path(folder))
        arrays = connection.execute(f"SELECT * FROM final ORDER BY {_ORDER}").fetchnumpy()
        frames = {
            kind: connection.sql(f"SELECT * EXCLUDE (_code) FROM final_{kind} ORDER BY _code").to_arrow_table()
            for kind in ("users", "items")
        }
    return Dataset(
        name=options.name or name,
        interactions=Interactions(**{key: np.ascontiguousarray(arrays[key]) for key in names.INTERACTION_COLUMNS}),
        users=frames["users"].to_pandas(),
        items=frames["items"].to_pandas(),
        info=info,
    )


_ORDER = '"user", "timestamp", item'


@contextlib.contextmanager
def _connection(beside: Path, options: PrepareOptions) -> Iterator["duckdb.DuckDBPyConnection"]:
    import duckdb

    with reading.connection(beside) as connection:
        connection.execute(f"SET memory_limit = '{options.memory_gib * _SHARE_OF_MEMORY * 1024:.0f}MiB'")
        connection.execute("SET TimeZone = 'UTC'")
        if options.threads is not None:
            connection.execute(f"SET threads = {options.threads}")
        try:
            yield connection
        except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.InvalidInputException) as error:
            # Files that break off in the middle, a full disk: whichever statement meets them first.
            raise UserError(f"Preparing failed: {' '.join(str(error).split())[:300]}") from error


def _prepare(
    connection: "duckdb.DuckDBPyConnection",
    sources: dict[str, Any],
    mapping: ColumnMap,
    options: PrepareOptions,
    beside: Path,
) -> dict[str, Any]:
    """Make the tables final, final_users and final_items in the connection; the dataset's `info`."""
    validate.create_rejected(connection)
    judged = [_read_interactions(connection, sources["interactions"], mapping, options)]
    for kind, key, named, guesses, wanted in (
        ("items", names.ITEM_ID, mapping.item_key, (*_ITEM, "id"), mapping.item_columns),
        ("users", names.USER_ID, mapping.user_key, (*_USER, "id"), mapping.user_columns),
    ):
        if sources[kind] is not None:
            judged.append(_read_table(connection, sources[kind], kind, key, named, guesses, wanted, options))
        else:
            connection.execute(f"CREATE TABLE {kind}_kept ({key} VARCHAR)")
    _check_template(connection, options.template)
    with _engine(connection, options, beside, judged[0].kept) as engine:
        steps, missing = relations.relate(engine, options, listed=sources["items"] is not None)
    steps = {"read": judged[0].read, "kept": judged[0].kept, **steps}
    if steps["interactions"] == 0:
        told = ", ".join(f"{step.replace('_', ' ')}: {count:,}" for step, count in steps.items())
        raise UserError(f"No interaction is left after filtering ({told}). Loosen the options.")
    _attach(connection)
    width = max(1, connection.execute("SELECT count(*) FROM final_users").fetchall()[0][0] // _BINS)
    run(
        connection,
        f"""CREATE TABLE final_bins AS SELECT max("user") AS last, count(*) AS events, min(rating) AS low,
            max(rating) AS high FROM final GROUP BY "user" // {width}""",
        "looking at ratings",
    )
    low, high = connection.execute("SELECT min(low), max(high) FROM final_bins").fetchall()[0]
    info: dict[str, Any] = {
        "source": "files" if isinstance(sources["interactions"], (str, Path)) else "data frames",
        "steps": steps,
        "rejected": {
            table.what: {"read": table.read, "rejected": table.rejected, "reasons": table.reasons} for table in judged
        },
        "items_without_metadata": missing,
        "scale": list(options.scale) if options.scale and options.implicit_threshold is None else [low, high],
        "options": dataclasses.asdict(options),
    }
    if options.template is not None:
        info["template"] = options.template
    if options.positive_rating is not None:
        info["positive_rating"] = options.positive_rating
    return info


def _engine(
    connection: "duckdb.DuckDBPyConnection", options: PrepareOptions, beside: Path, events: int
) -> contextlib.AbstractContextManager[Engine]:
    if options.engine == "duckdb":
        fits = events * _EVENT_BYTES <= _SHARE_OF_TABLES * options.memory_gib * (1 << 30)
        return contextlib.nullcontext(DuckEngine(connection, in_memory=fits))
    from ltrec_jax.data.spark import spark_engine

    return spark_engine(connection, beside, options)


def _read_interactions(
    connection: "duckdb.DuckDBPyConnection", source: Any, mapping: ColumnMap, options: PrepareOptions
) -> validate.Judged:
    layout = ingest.inspect(connection, source, "interactions", options, (*_USER, *_ITEM, *_RATING, *_TIMESTAMP))
    chosen = {
        names.USER_ID: _choose(layout, mapping.user, _USER, "user"),
        names.ITEM_ID: _choose(layout, mapping.item, _ITEM, "item"),
    }
    for column, named, guesses in (
        (names.RATING, mapping.rating, _RATING),
        (names.TIMESTAMP, mapping.timestamp, _TIMESTAMP),
    ):
        found = _guess(layout, guesses) if named is None else named
        if found:
            chosen[column] = _choose(layout, found, (), column)
    loading.load(connection, layout, "interactions", chosen)
    return validate.judge_interactions(connection, layout, chosen, options.scale, options.max_rejected)


def _read_table(
    connection: "duckdb.DuckDBPyConnection",
    source: Any,
    kind: str,
    key: str,
    named: str | None,
    guesses: Sequence[str],
    wanted: Sequence[str],
    options: PrepareOptions,
) -> validate.Judged:
    layout = ingest.inspect(connection, source, kind, options, guesses)
    key_column = _choose(layout, named, guesses, f"{kind[:-1]}_key")
    for column in wanted:
        _choose(layout, column, (), f"{kind[:-1]}_columns")
    chosen = {key: key_column}
    for column in wanted or layout.columns:
        if column not in (key_column, key, "_row"):
            chosen[column] = column
    loading.load(connection, layout, kind, chosen, typed=layout.is_text)
    return validate.judge_table(connection, layout, kind, key, options.max_rejected, list(chosen))


def _guess(layout: ingest.Layout, guesses: Sequence[str]) -> str | None:
    by_name = {column.strip().lower().replace(" ", "_"): column for column in reversed(list(layout.columns))}
    return next((by_name[guess] for guess in guesses if guess in by_name), None)


def _choose(layout: ingest.Layout, named: str | None, guesses: Sequence[str], field: str) -> str:
    """The column named, or the first that is usual for the purpose; `UserError` listing the columns otherwise."""
    found = ", ".join(layout.columns)
    if named:
        if named not in layout.columns:
            raise UserError(
                f"{layout.what}: {layout.place(0)} has no column {named!r} ({field}). Columns found: {found}."
            )
        return named
    guess = _guess(layout, guesses)
    if guess is None:
        raise UserError(
            f"{layout.what}: cannot tell which column of {layout.place(0)} is the {field}. "
            f'Name it, as in {field} = "...". Columns found: {found}.'
        )
    return guess


def _check_template(connection: "duckdb.DuckDBPyConnection", template: str | None) -> None:
    if template is None:
        return
    columns = [column for column, *_ in connection.execute("DESCRIBE items_kept").fetchall()]
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
    except ValueError as error:
        raise UserError(f"The template {template!r} is not well formed: {error}.") from error
    for field in fields:
        if field not in columns:
            raise UserError(f"The template {template!r} names {field!r}; the items have {', '.join(columns)}.")


def _attach(connection: "duckdb.DuckDBPyConnection") -> None:
    """Make final_items and final_users: the codes that are left with the attributes of `ingest`'s tables."""
    for kind, key, code in (("items", names.ITEM_ID, names.ITEM), ("users", names.USER_ID, names.USER)):
        described = connection.execute(f"DESCRIBE {kind}_kept").fetchall()
        rest = "".join(
            f", coalesce(k.{ingest.name(n)}, '') AS {ingest.name(n)}" if kind_ == "VARCHAR" else f", k.{ingest.name(n)}"
            for n, kind_, *_ in described
            if n != key
        )
        run(
            connection,
            f"""CREATE TABLE final_{kind} AS SELECT c.{key}{rest}, c.{ingest.name(code)} AS _code
                FROM final_{kind}_codes c LEFT JOIN {kind}_kept k USING ({key})""",
            f"joining {kind}",
        )


def _write(connection: "duckdb.DuckDBPyConnection", directory: Path, rows: int, memory_gib: float) -> list[bytes]:
    """Fill the dataset directory, but for its description; the digests of the interaction columns."""
    for name, query in (
        ("users", "SELECT * EXCLUDE (_code) FROM final_users ORDER BY _code"),
        ("items", "SELECT * EXCLUDE (_code) FROM final_items ORDER BY _code"),
        ("rejected", 'SELECT * FROM rejected ORDER BY "table", file, line'),
    ):
        target = reading.text(str(directory / f"{name}.parquet"))
        run(
            connection,
            f"COPY ({query}) TO {target} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)",
            f"writing {name}",
        )
    return datasets.write_interactions(directory, rows, _in_order(connection, rows, memory_gib))


def _in_order(connection: "duckdb.DuckDBPyConnection", rows: int, memory_gib: float) -> Iterator[dict[str, np.ndarray]]:
    """The interactions by user, time and item, a range of users at a time; the next is sorted meanwhile."""
    counted = connection.execute(
        f"""SELECT max(last) FROM (SELECT last, sum(events) OVER (ORDER BY last) AS upto FROM final_bins)
            GROUP BY (upto - 1) // {round(_SORTED_PER_GIB * memory_gib)} ORDER BY 1"""
    ).fetchall()
    edges = [-1, *(last for (last,) in counted)]

    def part(first: int, last: int) -> dict[str, np.ndarray]:
        query = f'FROM final WHERE "user" BETWEEN {first} AND {last} ORDER BY {_ORDER}'
        table = connection.sql(query).to_arrow_table()
        return {name: table[name].combine_chunks().to_numpy() for name in names.INTERACTION_COLUMNS}

    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(part, -1, edges[1])
        for before, last in itertools.pairwise(edges[1:]):
            ready, waiting = waiting.result(), ahead.submit(part, before + 1, last)
            yield ready
        yield waiting.result()
