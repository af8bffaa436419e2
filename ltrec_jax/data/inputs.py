"""From users' files or data frames to tables of good rows: which column is which, then load and judge.

Out of scope: how files are written (`ingest`), what makes a row bad (`validate`), what becomes of good rows
(`relations`).
"""

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltrec_jax.data import columns as names
from ltrec_jax.data import ingest, loading, rejected, validate
from ltrec_jax.data.prepare_options import ColumnMap, PrepareOptions
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb

_USER = ("user_id", "userid", "user", "uid", "reviewer_id", "reviewerid", "customer_id", "member_id", "visitorid")
_ITEM = (
    *("item_id", "itemid", "item", "iid", "movie_id", "movieid", "movie", "parent_asin", "asin", "product_id"),
    *("productid", "book_id", "bookid", "isbn", "news_id", "newsid", "article_id", "track_id", "song_id", "artist_id"),
    *("artistid", "business_id", "video_id", "sku"),
)
_RATING = ("rating", "ratings", "score", "stars", "overall", "preference")
_TIMESTAMP = ("timestamp", "time", "ts", "unix_time", "unixreviewtime", "datetime", "date", "event_time", "created_at")


def read(
    connection: "duckdb.DuckDBPyConnection", sources: Mapping[str, Any], mapping: ColumnMap, options: PrepareOptions
) -> list[rejected.Judged]:
    """Make the tables events, items_kept, users_kept and rejected of the `sources` interactions, items and users.

    A source is a path, a data frame or None (not interactions); the first of the results is about the interactions.
    """
    rejected.create(connection)
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
    return judged


def _read_interactions(
    connection: "duckdb.DuckDBPyConnection", source: Any, mapping: ColumnMap, options: PrepareOptions
) -> rejected.Judged:
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
) -> rejected.Judged:
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
