"""goodbooks-10k: Goodreads ratings of the ten thousand most rated books. Without timestamps."""

from pathlib import Path
from typing import TYPE_CHECKING

from ltrec_jax.data import fetch
from ltrec_jax.data.sources import reading
from ltrec_jax.data.sources.source import Source, Variant, local_folder

if TYPE_CHECKING:
    import duckdb

_FILES = ("ratings.csv", "books.csv")
_RAW = "https://raw.githubusercontent.com/zygmuntz/goodbooks-10k/master"
_SCALE = (1.0, 5.0)
_BOOK_COLUMNS = (
    *("book_id", "goodreads_book_id", "best_book_id", "work_id", "books_count", "isbn", "isbn13", "authors"),
    *("original_publication_year", "original_title", "title", "language_code", "average_rating", "ratings_count"),
    *("work_ratings_count", "work_text_reviews_count", "ratings_1", "ratings_2", "ratings_3", "ratings_4"),
    *("ratings_5", "image_url", "small_image_url"),
)


def _read(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    """Years such as "2008.0" and "-720.0" lose their fraction; the title is the whole one, with the series."""
    reading.read_ratings(connection, folder / "ratings.csv", scale=_SCALE, delimiter=",", header=True, times=False)
    reading.read_delimited(
        connection,
        "raw_items",
        folder / "books.csv",
        dict.fromkeys(_BOOK_COLUMNS, "VARCHAR"),
        delimiter=",",
        header=True,
        quote='"',
    )
    connection.execute(
        """CREATE TABLE items AS
           SELECT book_id AS item_id, title, authors, regexp_replace(original_publication_year, '\\.0$', '') AS year,
                  language_code AS "language"
           FROM raw_items ORDER BY try_cast(book_id AS INTEGER)"""
    )


_LICENCE = "CC BY-SA 4.0"
_CITATION = "Z. Zajac. Goodbooks-10k: a new dataset for book recommendations. FastML, 2017."

SOURCES = (
    Source(
        name="goodbooks-10k",
        domain="books",
        size="5,976,479 ratings (1-5) of 10,000 books by 53,424 users",
        licence=_LICENCE,
        citation=_CITATION,
        url="https://github.com/zygmuntz/goodbooks-10k",
        template="{title} by {authors} ({year})",
        scale=_SCALE,
        positive_rating=4.0,
        counts=(53_424, 10_000, 5_976_479),
        variants=(
            Variant(
                fetch.Artifact(
                    "goodbooks-10k",
                    dict.fromkeys(_FILES),
                    (
                        local_folder("goodbooks-10k", _FILES),
                        fetch.Together(tuple(fetch.Url(f"{_RAW}/{name}", {name: name}) for name in _FILES)),
                    ),
                    _LICENCE,
                    _CITATION,
                ),
                _read,
            ),
        ),
    ),
)
