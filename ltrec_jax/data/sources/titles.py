"""Films as the MovieLens family writes them: an id, "Usual Suspects, The (1995)", "Crime|Thriller"."""

from pathlib import Path
from typing import TYPE_CHECKING

from ltrec_jax.data.sources import reading

if TYPE_CHECKING:
    import duckdb

_YEAR = r"\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?\s*)?\)(?:\s*\(V\))?\s*$"


def title(column: str) -> str:
    """SQL: the title without its year, white space made single."""
    return rf"trim(regexp_replace(regexp_replace({column}, '{_YEAR}', ''), '\s+', ' ', 'g'))"


def year(column: str) -> str:
    """SQL: the (first) year as text, "" where there is none."""
    return f"regexp_extract({column}, '{_YEAR}', 1)"


def genres(column: str, separator: str = "|") -> str:
    """SQL: "Animation, Comedy" from a separated list; NULL where the source says that it knows none."""
    known = f"CASE WHEN {column} NOT IN ('(no genres listed)', 'unknown') THEN {column} END"
    return f"replace({known}, '{separator}', ', ')"


def read_films(
    connection: "duckdb.DuckDBPyConnection",
    path: Path,
    *,
    delimiter: str,
    header: bool = False,
    quote: str = "",
    encoding: str = "utf-8",
) -> None:
    """Make `items` (item_id, title, year, genres) from a file of id, title with year, genres, in the file's order."""
    reading.read_delimited(
        connection,
        "raw_items",
        path,
        dict.fromkeys(("item_id", "title", "genres"), "VARCHAR"),
        delimiter=delimiter,
        header=header,
        quote=quote,
        encoding=encoding,
    )
    connection.execute(
        f"""CREATE TABLE items AS
            SELECT item_id, {title("title")} AS title, {year("title")} AS year, {genres("genres")} AS genres
            FROM raw_items ORDER BY rowid"""
    )
