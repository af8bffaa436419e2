"""Last.fm listening (music): the HetRec 2011 set with tags, and the 360K set of Celma's book.

Ratings are numbers of plays, summed over the whole account: no timestamps, and any play counts as liked.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ltrec_jax.data import fetch
from ltrec_jax.data.sources import reading
from ltrec_jax.data.sources.source import Source, Variant, local_folder

if TYPE_CHECKING:
    import duckdb

_HETREC_FILES = ("user_artists.dat", "artists.dat", "tags.dat", "user_taggedartists.dat")
_PLAYS_360K, _PROFILES_360K = "usersha1-artmbid-artname-plays.tsv", "usersha1-profile.tsv"
_TAGS_PER_ARTIST = 5


def _read_hetrec(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    """An artist's `tags` are its five most given ones. tags.dat is Latin-1, artists.dat UTF-8."""
    names = {"user_id": "VARCHAR", "item_id": "VARCHAR", "rating": "FLOAT"}
    reading.read_delimited(connection, "plays", folder / "user_artists.dat", names, delimiter="\t", header=True)
    reading.require(
        connection,
        "plays",
        "user_id IS NOT NULL AND item_id IS NOT NULL AND rating >= 1",
        folder / "user_artists.dat",
        header=True,
    )
    connection.execute('CREATE TABLE events AS SELECT *, 0 AS "timestamp" FROM plays ORDER BY rowid')
    for table, file, names, encoding in (
        ("artists", "artists.dat", dict.fromkeys(("id", "name", "url", "picture"), "VARCHAR"), "utf-8"),
        ("tags", "tags.dat", {"tag_id": "INTEGER", "tag": "VARCHAR"}, "latin-1"),
        (
            "given",
            "user_taggedartists.dat",
            {"user_id": "VARCHAR", "id": "VARCHAR"} | dict.fromkeys(("tag_id", "day", "month", "year"), "INTEGER"),
            "utf-8",
        ),
    ):
        reading.read_delimited(connection, table, folder / file, names, delimiter="\t", header=True, encoding=encoding)
    connection.execute(
        f"""CREATE TABLE items AS
            WITH counted AS (SELECT id, tag, count(*) AS times FROM given JOIN tags USING (tag_id) GROUP BY id, tag),
            best AS (SELECT *, row_number() OVER (PARTITION BY id ORDER BY times DESC, tag) AS place FROM counted),
            listed AS (SELECT id, string_agg(tag, ', ' ORDER BY place) AS tags FROM best
                       WHERE place <= {_TAGS_PER_ARTIST} GROUP BY id)
            SELECT id AS item_id, name AS title, tags FROM artists LEFT JOIN listed USING (id)
            ORDER BY try_cast(id AS INTEGER)"""
    )


def _read_360k(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    """An artist's id is its MusicBrainz id, or its name where it has none; rows with neither are left out."""
    names = {"user_id": "VARCHAR", "mbid": "VARCHAR", "name": "VARCHAR", "rating": "FLOAT"}
    path = folder / _PLAYS_360K
    reading.read_delimited(connection, "plays", path, names, delimiter="\t")
    reading.require(connection, "plays", "user_id IS NOT NULL AND rating >= 0", path)
    reading.run(
        connection,
        """CREATE TABLE events AS
           SELECT user_id, coalesce(mbid, name) AS item_id, rating, 0 AS "timestamp"
           FROM plays WHERE coalesce(mbid, name) IS NOT NULL ORDER BY rowid""",
        "naming artists",
    )
    reading.run(
        connection,
        """CREATE TABLE items AS
           WITH named AS (SELECT coalesce(mbid, name) AS item_id, name, count(*) AS times FROM plays GROUP BY ALL)
           SELECT item_id, arg_max(name, (times, name)) AS title FROM named
           WHERE item_id IS NOT NULL GROUP BY item_id ORDER BY item_id""",
        "collecting artists",
    )
    names = dict.fromkeys(("user_id", "gender", "age", "country", "signed_up"), "VARCHAR")
    reading.read_delimited(connection, "profiles", folder / _PROFILES_360K, names, delimiter="\t")
    connection.execute("CREATE TABLE users AS SELECT user_id, gender, age, country FROM profiles ORDER BY rowid")


_HETREC_LICENCE = "HetRec 2011 terms: non-commercial research, with acknowledgement of Last.fm"
_HETREC_CITATION = (
    "I. Cantador, P. Brusilovsky and T. Kuflik. Second Workshop on Information Heterogeneity and Fusion in Recommender "
    "Systems (HetRec 2011). RecSys 2011."
)
LASTFM_HETREC = Source(
    name="lastfm-hetrec",
    aliases=("lastfm-2k", "hetrec2011-lastfm-2k"),
    domain="music",
    size="92,834 play counts of 17,632 artists by 1,892 users, 2011",
    licence=_HETREC_LICENCE,
    citation=_HETREC_CITATION,
    url="https://grouplens.org/datasets/hetrec-2011/",
    template="{title}. {tags}",
    scale=None,
    positive_rating=1.0,
    counts=(1892, 17_632, 92_834),
    variants=(
        Variant(
            fetch.Artifact(
                "lastfm-hetrec",
                dict.fromkeys(_HETREC_FILES),
                (
                    local_folder("lastfm-hetrec", _HETREC_FILES),
                    fetch.Url(
                        "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
                        {name: name for name in _HETREC_FILES},
                    ),
                ),
                _HETREC_LICENCE,
                _HETREC_CITATION,
            ),
            _read_hetrec,
        ),
    ),
)

_360K_LICENCE = "distributed with permission of Last.fm for non-commercial use"
_360K_CITATION = "O. Celma. Music Recommendation and Discovery in the Long Tail. Springer, 2010."
LASTFM_360K = Source(
    name="lastfm-360k",
    domain="music",
    size="17,559,530 play counts of 294,000 artists by 359,347 users, 2008",
    licence=_360K_LICENCE,
    citation=_360K_CITATION,
    url="http://ocelma.net/MusicRecommendationDataset/lastfm-360K.html",
    template="{title}",
    user_template="{age} years old, {gender}, {country}",
    scale=None,
    positive_rating=1.0,
    variants=(
        Variant(
            fetch.Artifact(
                "lastfm-360k",
                dict.fromkeys((_PLAYS_360K, _PROFILES_360K)),
                (
                    local_folder("lastfm-360k", (_PLAYS_360K, _PROFILES_360K)),
                    fetch.Url(
                        "http://mtg.upf.edu/static/datasets/last.fm/lastfm-dataset-360K.tar.gz",
                        {name: f"lastfm-dataset-360K/{name}" for name in (_PLAYS_360K, _PROFILES_360K)},
                    ),
                ),
                _360K_LICENCE,
                _360K_CITATION,
            ),
            _read_360k,
        ),
    ),
)

SOURCES = (LASTFM_HETREC, LASTFM_360K)
