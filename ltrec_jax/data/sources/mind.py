"""MIND (Microsoft): a month of clicks on the news site MSN, with titles and abstracts.

Two readings of the same files. `mind-small` and `mind-large` hold what was clicked: the click history of each user
(known without a time: dated one second before the log begins) and the clicks in the logs. `mind-small-impressions`
and `mind-large-impressions` hold what was shown: rating 1 clicked, 0 shown and not clicked, without the history.
Both have the official fold "dev" (the last day's log as test). The test log of mind-large has no labels and is not
used. Times are read as UTC.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ltrec_jax.data import fetch
from ltrec_jax.data.sources import reading
from ltrec_jax.data.sources.source import Source, Variant, local_folder

if TYPE_CHECKING:
    import duckdb

_PARTS = ("train", "dev")
# The authors' own storage answers no more; the second is run by the makers of their library `recommenders`.
_MIRRORS = (
    "https://recodatasets.z20.web.core.windows.net/newsrec",
    "https://huggingface.co/datasets/Recommenders/MIND/resolve/main",
)


def _read(connection: "duckdb.DuckDBPyConnection", folder: Path, *, impressions: bool) -> None:
    for part in _PARTS:
        _read_news(connection, folder / part / "news.tsv", part)
        _read_behaviors(connection, folder / part / "behaviors.tsv", part)
    # An article of both parts has the same texts; the first copy is kept, in the order of the files.
    connection.execute(
        """CREATE TABLE items AS
           SELECT item_id, arg_min(title, place) AS title, arg_min(abstract, place) AS abstract,
                  arg_min(category, place) AS category, arg_min(subcategory, place) AS subcategory
           FROM (SELECT *, rowid AS place FROM news_train
                 UNION ALL SELECT *, rowid + (SELECT count(*) FROM news_train) FROM news_dev)
           GROUP BY item_id ORDER BY min(place)"""
    )
    reading.run(connection, f"CREATE TABLE events AS {_shown() if impressions else _clicked()}", "listing events")
    connection.execute(
        """CREATE TABLE folds AS SELECT 'dev' AS fold, min(rowid) AS first, max(rowid) + 1 AS past_end
           FROM events WHERE part = 'dev' HAVING count(*) > 0"""
    )


def _read_news(connection: "duckdb.DuckDBPyConnection", path: Path, part: str) -> None:
    names = ("item_id", "category", "subcategory", "title", "abstract", "address", "title_entities", "entities")
    reading.read_delimited(connection, f"news_{part}", path, dict.fromkeys(names, "VARCHAR"), delimiter="\t")


def _read_behaviors(connection: "duckdb.DuckDBPyConnection", path: Path, part: str) -> None:
    names = dict.fromkeys(("impression", "user_id", "time", "history", "shown"), "VARCHAR")
    reading.read_delimited(connection, f"behaviors_{part}", path, names, delimiter="\t")
    condition = f"user_id IS NOT NULL AND {_TIME} IS NOT NULL AND regexp_full_match(shown, '(\\S+-[01] ?)+')"
    reading.require(connection, f"behaviors_{part}", condition, path)


_TIME = """epoch(try_strptime("time", '%m/%d/%Y %I:%M:%S %p'))::BIGINT"""


def _shown() -> str:
    """SQL: one row per article shown, in the order of the logs."""
    parts = " UNION ALL ".join(
        f"""SELECT {number} AS number, '{part}' AS part, rowid AS row, user_id, {_TIME} AS "timestamp",
                   unnest(string_split(trim(shown), ' ')) AS entry,
                   generate_subscripts(string_split(trim(shown), ' '), 1) AS place
            FROM behaviors_{part}"""
        for number, part in enumerate(_PARTS)
    )
    return f"""SELECT user_id, regexp_replace(entry, '-[01]$', '') AS item_id, right(entry, 1)::FLOAT AS rating,
                      "timestamp", part
               FROM ({parts}) ORDER BY number, row, place"""


def _clicked() -> str:
    """SQL: the history of each user, then the clicks of the logs."""
    histories = " UNION ALL ".join(f"SELECT user_id, history FROM behaviors_{part}" for part in _PARTS)
    begin = "(SELECT min(begin) - 1 FROM (" + " UNION ALL ".join(
        f"SELECT min({_TIME}) AS begin FROM behaviors_{part}" for part in _PARTS
    )
    return f"""SELECT user_id, item_id, 1.0 AS rating, {begin})) AS "timestamp", 'history' AS part
               FROM (SELECT DISTINCT user_id, unnest(string_split(trim(history), ' ')) AS item_id FROM ({histories})
                     WHERE history IS NOT NULL ORDER BY user_id, item_id)
               UNION ALL SELECT * FROM ({_shown()}) WHERE rating = 1"""


_LICENCE = "Microsoft Research License Terms: research use, accepted on the data's home page"
_CITATION = "F. Wu et al. MIND: A Large-scale Dataset for News Recommendation. ACL 2020."
_news = functools.partial(
    Source,
    domain="news",
    licence=_LICENCE,
    citation=_CITATION,
    url="https://msnews.github.io/",
    template="{title}. {abstract}",
    scale=(0.0, 1.0),
    positive_rating=1.0,
)


def _artifact(size: str) -> fetch.Artifact:
    files = [f"{part}/{name}.tsv" for part in _PARTS for name in ("news", "behaviors")]
    mirrors = [
        fetch.Together(
            tuple(
                fetch.Url(
                    f"{address}/MIND{size}_{part}.zip",
                    {f"{part}/{name}.tsv": f"{name}.tsv" for name in ("news", "behaviors")},
                )
                for part in _PARTS
            )
        )
        for address in _MIRRORS
    ]
    name = f"mind-{size}"
    return fetch.Artifact(name, dict.fromkeys(files), (local_folder(name, files), *mirrors), _LICENCE, _CITATION)


def _sources(size: str, clicks: str, shown: str) -> tuple[Source, Source]:
    artifact = _artifact(size)
    return (
        _news(
            name=f"mind-{size}",
            size=clicks,
            variants=(Variant(artifact, functools.partial(_read, impressions=False)),),
        ),
        _news(
            name=f"mind-{size}-impressions",
            size=shown,
            variants=(Variant(artifact, functools.partial(_read, impressions=True)),),
        ),
    )


SOURCES = (
    *_sources("small", "clicks of 94,000 users on 65,000 articles, 2019", "articles shown to 94,000 users, 2019"),
    *_sources("large", "clicks of 750,000 users on 104,000 articles, 2019", "articles shown to 750,000 users, 2019"),
)
