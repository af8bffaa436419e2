"""MovieTweetings (Ghent University): film ratings from tweets of IMDb's apps. A real long tail: most films have few.

The snapshots hold the first 10,000, 20,000, ... ratings and never change. A copy on this machine can be named by
`LTREC_MOVIETWEETINGS` (a folder with ratings.dat and movies.dat); it is tried first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ltrec_jax.data import fetch
from ltrec_jax.data.sources import reading, titles
from ltrec_jax.data.sources.source import Source, Variant, local_folder

if TYPE_CHECKING:
    import duckdb

_FILES = ("ratings.dat", "movies.dat")
_RAW = "https://raw.githubusercontent.com/sidooms/MovieTweetings/master"
_SCALE = (0.0, 10.0)
_LICENCE = "MIT"
_CITATION = (
    "S. Dooms, T. De Pessemier and L. Martens. MovieTweetings: a Movie Rating Dataset Collected From Twitter. "
    "CrowdRec at RecSys 2013."
)


def _read(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    reading.read_ratings(connection, folder / "ratings.dat", scale=_SCALE, delimiter="::")
    titles.read_films(connection, folder / "movies.dat", delimiter="::")


def _source(
    name: str,
    folder: str,
    size: str,
    local: fetch.LocalFolder,
    *,
    aliases: tuple[str, ...] = (),
    files: Mapping[str, str | None] | None = None,
    counts: tuple[int, int, int] | None = None,
) -> Source:
    mirror = fetch.Together(tuple(fetch.Url(f"{_RAW}/{folder}/{file}", {file: file}) for file in _FILES))
    artifact = fetch.Artifact(name, files or dict.fromkeys(_FILES), (local, mirror), _LICENCE, _CITATION)
    return Source(
        name=name,
        aliases=aliases,
        domain="films",
        size=size,
        licence=_LICENCE,
        citation=_CITATION,
        url="https://github.com/sidooms/MovieTweetings",
        template="{title} ({year}). {genres}",
        scale=_SCALE,
        positive_rating=8.0,
        counts=counts,
        variants=(Variant(artifact, _read),),
    )


SOURCES = (
    _source(
        "movietweetings-100k",
        "snapshots/100K",
        "100,000 ratings (0-10) of 10,506 films by 16,554 users, 2013",
        fetch.LocalFolder("LTREC_MOVIETWEETINGS", {file: file for file in _FILES}),
        aliases=("movietweetings",),
        files={
            "ratings.dat": "c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6",
            "movies.dat": "e63fb84bc734e3c574f135634a40d3cbafab22b8f94f5fc0b80f80d1d2076efc",
        },
        counts=(16_554, 10_506, 100_000),
    ),
    _source(
        "movietweetings-latest",
        "latest",
        "over 900,000 ratings (0-10) of 38,000 films by 71,000 users, from 2013 on",
        local_folder("movietweetings-latest", _FILES),
    ),
)
