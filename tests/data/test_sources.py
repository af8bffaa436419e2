"""Every reader on a few lines in the original format, written here; the reachable datasets for real."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ltrec_jax.data import fetch, sources, splits
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.data.sources import movielens
from ltrec_jax.data.sources.source import Source
from ltrec_jax.errors import UserError

EVERY_SOURCE = [info.name for info in sources.available()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LTREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(name: str, folder: Path, variant: int = -1) -> Dataset:
    """Read a folder of a few lines: the published counts do not hold for it."""
    source = sources.find(name)
    small = Source(**{**{f: getattr(source, f) for f in source.__dataclass_fields__}, "counts": None})
    return sources.read(small, source.variants[variant], folder)


def events(dataset: Dataset) -> list[tuple[str, str, float, int]]:
    table = dataset.interactions
    users, items = dataset.users["user_id"], dataset.items["item_id"]
    return [
        (users[u], items[i], float(r), int(t))
        for u, i, r, t in zip(table.user, table.item, table.rating, table.timestamp, strict=True)
    ]


U_ITEM = (
    "2|GoldenEye (1995)|01-Jan-1995||http://x|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|1|0|0\n"
    "1|Misérables,  Les (1995)|01-Jan-1995|||0|0|0|0|0|0|0|0|1|0|0|0|1|0|0|0|0|0|0\n"
    "3|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "10|Land Before Time III: The Time (1995) (V)|01-Jan-1995|||0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
)
GROUPLENS_100K = {
    "u.data": "12\t10\t3\t881250949\n2\t2\t5\t881250950\n12\t1\t1\t881250948\n",
    "u.item": U_ITEM.encode("latin-1"),
    "u.user": "2|53|F|other|94043\n12|24|M|technician|85711\n",
}
ATOMIC_100K = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + GROUPLENS_100K["u.data"],  # type: ignore[operator]
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tMisérables, Les\t1995\tDrama Musical\n2\tGoldenEye\t1995\tAction Adventure Thriller\n"
        "3\tunkonwn\tunkonwn\tunknown\n"
        "10\tLand Before Time III: The Time (1995)\tV\tAnimation Children's\n"
    ),
    "ml-100k.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "2\t53\tF\tother\t94043\n12\t24\tM\ttechnician\t85711\n"
    ),
}


def test_movielens_100k_is_the_same_from_both_mirrors(cache: Path, tmp_path: Path) -> None:
    official = read("ml-100k", write(tmp_path / "official", GROUPLENS_100K), 1)
    atomic = read("ml-100k", write(tmp_path / "atomic", ATOMIC_100K), 0)
    assert official.fingerprint == atomic.fingerprint
    assert events(official) == [
        ("12", "10", 3.0, 881250949),
        ("2", "2", 5.0, 881250950),
        ("12", "1", 1.0, 881250948),
    ]
    assert official.items.to_dict("records") == [
        {"item_id": "1", "title": "Misérables, Les", "year": "1995", "genres": "Drama, Musical"},
        {"item_id": "2", "title": "GoldenEye", "year": "1995", "genres": "Action, Adventure, Thriller"},
        {"item_id": "3", "title": "unknown", "year": "", "genres": ""},
        {
            "item_id": "10",
            "title": "Land Before Time III: The Time",
            "year": "1995",
            "genres": "Animation, Children's",
        },
    ]
    assert official.users.to_dict("records") == [
        {"user_id": "2", "age": 53, "gender": "F", "occupation": "other"},
        {"user_id": "12", "age": 24, "gender": "M", "occupation": "technician"},
    ]
    assert official.info["official_splits"]["u2"] == [20_000, 40_000]


RATINGS_DAT = "1::1193::5::978300760\n2::661::3::978302109\n"
MOVIES_1M = "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n1193::Café (1975)::Drama\n"


def test_movielens_1m_official(cache: Path, tmp_path: Path) -> None:
    files = {
        "ratings.dat": RATINGS_DAT,
        "movies.dat": MOVIES_1M.encode("latin-1"),
        "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
    }
    dataset = read("ml-1m", write(tmp_path / "raw", files))
    assert events(dataset) == [("1", "1193", 5.0, 978300760), ("2", "661", 3.0, 978302109)]
    assert dataset.items["title"].tolist() == ["James and the Giant Peach", "Café"]
    assert dataset.users.to_dict("records") == [
        {"user_id": "1", "age": "under 18", "gender": "F", "occupation": "K-12 student"},
        {"user_id": "2", "age": "56 or more", "gender": "M", "occupation": "self-employed"},
    ]


def test_movielens_1m_atomic_differs_in_the_item_ids_only(cache: Path, tmp_path: Path) -> None:
    files = {
        "ml-1m.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
        "1m_1\tCafé (1975)\t5\t978300760\r\n1m_2\tJames and the Giant Peach (1996)\t3\t978302109\r\n",
        "ml-1m.item": "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
        "James and the Giant Peach (1996)\tJames and the Giant Peach\t1996\tAnimation Children's Musical\r\n"
        "Café (1975)\tCafé\t1975\tDrama\r\n",
        "ml-1m.user": "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\r\n"
        "1m_1\t1\tF\t10\t48067\r\n1m_2\t56\tM\t16\t70072\r\n",
    }
    atomic = read("ml-1m", write(tmp_path / "atomic", files), 0)
    assert events(atomic) == [
        ("1", "Café (1975)", 5.0, 978300760),
        ("2", "James and the Giant Peach (1996)", 3.0, 978302109),
    ]
    assert atomic.items[["title", "year", "genres"]].to_dict("records") == [
        {"title": "James and the Giant Peach", "year": "1996", "genres": "Animation, Children's, Musical"},
        {"title": "Café", "year": "1975", "genres": "Drama"},
    ]
    assert atomic.users["occupation"].tolist() == ["K-12 student", "self-employed"]


def test_movielens_10m(cache: Path, tmp_path: Path) -> None:
    files = {"ratings.dat": "1::122::4.5::838985046\n", "movies.dat": "122::Boomerang (1992)::Comedy|Romance\n"}
    dataset = read("ml-10m", write(tmp_path / "raw", files))
    assert events(dataset) == [("1", "122", 4.5, 838985046)]
    assert dataset.items["genres"].tolist() == ["Comedy, Romance"]


@pytest.mark.parametrize("name", ["ml-latest-small", "ml-20m", "ml-25m", "ml-32m"])
def test_movielens_as_csv(cache: Path, tmp_path: Path, name: str) -> None:
    files = {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,11,0.5,964982703\n2,4,5.0,964981247\n",
        "movies.csv": (
            "movieId,title,genres\n"
            '4,"American President, The (1995)",Comedy|Drama\n'
            '5,"He said ""no"" ",(no genres listed)\n'
            "11,Fleabag (2016–2019),Comedy\n"
        ),
    }
    dataset = read(name, write(tmp_path / "raw", files))
    assert events(dataset) == [("1", "11", 0.5, 964982703), ("2", "4", 5.0, 964981247)]
    assert dataset.items.to_dict("records") == [
        {"item_id": "4", "title": "American President, The", "year": "1995", "genres": "Comedy, Drama"},
        {"item_id": "5", "title": 'He said "no"', "year": "", "genres": ""},
        {"item_id": "11", "title": "Fleabag", "year": "2016", "genres": "Comedy"},
    ]


@pytest.mark.parametrize("name", ["movietweetings-100k", "movietweetings-latest"])
def test_movietweetings(cache: Path, tmp_path: Path, name: str) -> None:
    files = {
        "ratings.dat": "1::1074638::0::1365029107\n2::0104257::10::1364690142\n",
        "movies.dat": "0104257::A Few Good Men (1992)::Crime|Drama\n1074638::Skyfall (2012)::\n",
    }
    dataset = read(name, write(tmp_path / "raw", files))
    assert events(dataset) == [("1", "1074638", 0.0, 1365029107), ("2", "0104257", 10.0, 1364690142)]
    assert dataset.items["genres"].tolist() == ["Crime, Drama", ""]


def test_goodbooks(cache: Path, tmp_path: Path) -> None:
    head = (
        "book_id,goodreads_book_id,best_book_id,work_id,books_count,isbn,isbn13,authors,original_publication_year,"
        "original_title,title,language_code,average_rating,ratings_count,work_ratings_count,work_text_reviews_count,"
        "ratings_1,ratings_2,ratings_3,ratings_4,ratings_5,image_url,small_image_url\n"
    )
    tail = "4.34,1,1,1,1,1,1,1,1,http://a,http://b\n"
    files = {
        "ratings.csv": "user_id,book_id,rating\n7,2,5\n3,1,4\n",
        "books.csv": head
        + '2,5,5,9,1,043,9.78e+12,"J.K. Rowling, Mary GrandPré",-720.0,,"Stone (Harry Potter, #1)",eng,'
        + tail
        + "1,5,5,9,1,043,9.78e+12,Suzanne Collins,,The Hunger Games,The Hunger Games,,"
        + tail,
    }
    dataset = read("goodbooks-10k", write(tmp_path / "raw", files))
    assert events(dataset) == [("7", "2", 5.0, 0), ("3", "1", 4.0, 0)]
    assert dataset.items.iloc[1].to_dict() == {
        "item_id": "2",
        "title": "Stone (Harry Potter, #1)",
        "authors": "J.K. Rowling, Mary GrandPré",
        "year": "-720",
        "language": "eng",
    }
    assert dataset.items["year"].tolist() == ["", "-720"]


def test_lastfm_hetrec(cache: Path, tmp_path: Path) -> None:
    given = [(2, 51, 13), (3, 51, 13), (2, 51, 14), (9, 51, 15), (9, 51, 16), (9, 51, 17), (9, 51, 18)]
    files = {
        "user_artists.dat": "userID\tartistID\tweight\n2\t52\t11690\n10\t51\t1\n",
        "artists.dat": "id\tname\turl\tpictureURL\n51\tDuran Duran\thttp://x\thttp://y\n52\tMá\thttp://x\t\n",
        "tags.dat": "tagID\ttagValue\n13\tchillout\n14\tdéjà\n15\tc\n16\tb\n17\ta\n18\td\n".encode("latin-1"),
        "user_taggedartists.dat": "userID\tartistID\ttagID\tday\tmonth\tyear\n"
        + "".join(f"{user}\t{artist}\t{tag}\t1\t4\t2009\n" for user, artist, tag in given),
    }
    dataset = read("lastfm-hetrec", write(tmp_path / "raw", files))
    assert events(dataset) == [("2", "52", 11690.0, 0), ("10", "51", 1.0, 0)]
    assert dataset.items.to_dict("records") == [
        {"item_id": "51", "title": "Duran Duran", "tags": "chillout, a, b, c, d"},
        {"item_id": "52", "title": "Má", "tags": ""},
    ]
    assert dataset.info["scale"] is None


def test_lastfm_360k(cache: Path, tmp_path: Path) -> None:
    files = {
        "usersha1-artmbid-artname-plays.tsv": (
            'aa\tm-1\tdie "Ärzte\t1099\nbb\t\tunknown band\t12\nbb\tm-1\tdie Aerzte\t3\n'
            'cc\tm-1\tdie "Ärzte\t0\nbb\t\t\t5\n'
        ),
        "usersha1-profile.tsv": "aa\tf\t22\tGermany\tFeb 1, 2007\nbb\t\t\tCanada\tDec 4, 2007\n",
    }
    dataset = read("lastfm-360k", write(tmp_path / "raw", files))
    assert events(dataset) == [
        ("aa", "m-1", 1099.0, 0),
        ("bb", "unknown band", 12.0, 0),
        ("bb", "m-1", 3.0, 0),
        ("cc", "m-1", 0.0, 0),
    ]
    assert dict(dataset.items.values.tolist()) == {"m-1": 'die "Ärzte', "unknown band": "unknown band"}
    assert dataset.users.to_dict("records") == [
        {"user_id": "aa", "gender": "f", "age": "22", "country": "Germany"},
        {"user_id": "bb", "gender": "", "age": "", "country": "Canada"},
        {"user_id": "cc", "gender": "", "age": "", "country": ""},
    ]


def mind_files() -> dict[str, str | bytes]:
    news = 'N{0}\tsports\tgolf\tTitle {0}\tAbstract "{0}\t https://x\t[]\t[]\n'
    return {
        "train/news.tsv": news.format(1) + news.format(2) + news.format(3),
        "train/behaviors.tsv": (
            "1\tU7\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N2-0\n2\tU8\t11/12/2019 6:11:30 PM\t\tN1-0 N3-0\n"
        ),
        "dev/news.tsv": news.format(3) + news.format(4),
        "dev/behaviors.tsv": "1\tU7\t11/15/2019 12:00:01 AM\tN1 N2\tN4-1 N1-0\n",
    }


def seconds(text: str) -> int:
    return int(np.datetime64(text).astype("datetime64[s]").astype(np.int64))


def test_mind_clicks(cache: Path, tmp_path: Path) -> None:
    dataset = read("mind-small", write(tmp_path / "raw", mind_files()))
    before = seconds("2019-11-11T09:05:57")
    assert events(dataset) == [
        ("U7", "N1", 1.0, before),
        ("U7", "N2", 1.0, before),
        ("U7", "N3", 1.0, before + 1),
        ("U7", "N4", 1.0, seconds("2019-11-15T00:00:01")),
    ]
    assert dataset.items["title"].tolist() == ["Title 1", "Title 2", "Title 3", "Title 4"]
    assert dataset.items["abstract"][3] == 'Abstract "4'
    split = splits.official(dataset, "dev", validation=0.0)
    assert split.test_rows.tolist() == [3]


def test_mind_impressions(cache: Path, tmp_path: Path) -> None:
    dataset = read("mind-large-impressions", write(tmp_path / "raw", mind_files()))
    assert [(user, item, rating) for user, item, rating, _ in events(dataset)] == [
        ("U7", "N3", 1.0),
        ("U7", "N2", 0.0),
        ("U8", "N1", 0.0),
        ("U8", "N3", 0.0),
        ("U7", "N4", 1.0),
        ("U7", "N1", 0.0),
    ]
    assert dataset.info["official_splits"] == {"dev": [4, 6]}


def json_lines(rows: list[dict]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def amazon_files(**changes: object) -> dict[str, str | bytes]:
    review = {
        "rating": 5.0,
        "title": "Nice",
        "text": "…",
        "images": [],
        "asin": "B00",
        "parent_asin": "B01",
        "user_id": "AG7",
        "timestamp": 1588687728923,
        "helpful_vote": 0,
        "verified_purchase": True,
    }
    product = {
        "main_category": "All Beauty",
        "title": "Comb “é”",
        "average_rating": 4.8,
        "features": ["Soft", "Blue"],
        "description": [],
        "price": None,
        "store": None,
        "categories": ["Beauty", "Hair"],
        "details": {"Size": "8"},
        "parent_asin": "B01",
        "bought_together": None,
    }
    return {
        "All_Beauty.jsonl.gz": json_lines([review, review | {"parent_asin": "B02", "rating": 1} | changes]),
        "meta_All_Beauty.jsonl.gz": json_lines(
            [product, product | {"title": "twice"}, product | {"parent_asin": "B00"}]
        ),
    }


def test_amazon(cache: Path, tmp_path: Path) -> None:
    dataset = read("amazon-2023-all-beauty", write(tmp_path / "raw", amazon_files()))
    assert events(dataset) == [("AG7", "B01", 5.0, 1588687728), ("AG7", "B02", 1.0, 1588687728)]
    assert dataset.items["item_id"].tolist() == ["B00", "B01", "B02"]
    assert dataset.items.iloc[1].to_dict() == {
        "item_id": "B01",
        "title": "Comb “é”",
        "categories": "Beauty, Hair",
        "main_category": "All Beauty",
        "store": "",
        "features": "Soft Blue",
        "description": "",
    }
    assert dataset.info["items_without_metadata"] == 1
    assert dataset.items.iloc[2].tolist() == ["B02", "", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3\t4\tfive\t881250949\n", "column rating is not FLOAT in '3\\t4\\tfive\\t881250949'"),
        ("3\t4\t6\t881250949\n", "rating BETWEEN 1.0 AND 5.0"),
        ("3\t4\tnan\t881250949\n", "rating BETWEEN 1.0 AND 5.0"),
        ("3\t4\t\t881250949\n", "rating BETWEEN 1.0 AND 5.0"),
        ("3\t4\t5\t-1\n", "timestamp"),
        ("\t4\t5\t881250949\n", "user_id IS NOT NULL"),
        ("3\t4\t5\n", "missing columns"),
        ("3\t4\t5\t881250949\t9\n", "too many columns"),
    ],
)
@pytest.mark.parametrize("variant", [0, 1])
def test_a_bad_row_is_named_with_file_line_and_value(
    cache: Path, tmp_path: Path, row: str, message: str, variant: int
) -> None:
    files = dict((ATOMIC_100K, GROUPLENS_100K)[variant])
    name = ("ml-100k.inter", "u.data")[variant]
    files[name] = str(files[name]) + row + "2\t2\t5\t881250949\n"
    folder = write(tmp_path / "raw", files)
    with pytest.raises(UserError) as raised:
        read("ml-100k", folder, variant)
    text = str(raised.value)
    assert f"{folder / name}, line {5 - variant}:" in text
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rating": "good"}, "line 2"), ({"rating": 9.0}, "line 2"), ({"parent_asin": None}, "line 2")],
)
def test_a_bad_json_line_is_named(cache: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=r"All_Beauty\.jsonl\.gz") as raised:
        read("amazon-2023-all-beauty", write(tmp_path / "raw", amazon_files(**changes)))
    assert message in str(raised.value)


def test_a_bad_log_line_of_mind_is_named(cache: Path, tmp_path: Path) -> None:
    files = mind_files()
    files["dev/behaviors.tsv"] = str(files["dev/behaviors.tsv"]) + "2\tU7\t11/15/2019 1:00:00 PM\tN1\tN4\n"
    with pytest.raises(UserError, match=r"behaviors\.tsv, line 2"):
        read("mind-small", write(tmp_path / "raw", files))


def test_load_keeps_the_prepared_dataset_and_finds_it_without_raw_files(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write(tmp_path / "raw", amazon_files())
    monkeypatch.setenv("LTREC_AMAZON_2023_ALL_BEAUTY", str(raw))
    first = sources.load("Amazon-2023-All-Beauty", offline=True)
    monkeypatch.delenv("LTREC_AMAZON_2023_ALL_BEAUTY")
    for path in (cache / "artifacts").rglob("*.gz"):
        path.unlink()
    again = sources.load("amazon-2023-all-beauty", offline=True)
    assert again.path == first.path
    assert again.fingerprint == first.fingerprint
    (again.path / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"items\.parquet is damaged.*remove .* and load 'amazon-2023-all-b"):
        sources.load("amazon-2023-all-beauty", offline=True)
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(UserError, match="Cannot fetch amazon-2023-all-beauty"):
        sources.load("amazon-2023-all-beauty", cache=elsewhere, offline=True)


def test_wrong_counts_are_refused(cache: Path, tmp_path: Path) -> None:
    source = movielens.MOVIELENS_100K
    with pytest.raises(UserError, match=r"holds \(2, 4, 3\) users, items and interactions"):
        sources.read(source, source.variants[1], write(tmp_path / "raw", GROUPLENS_100K))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'movielens-100k'"):
        sources.load("movielens-100")
    with pytest.raises(UserError, match="Did you mean 'amazon-2023-books'"):
        sources.load("amazon-2023-book")


@pytest.mark.parametrize("name", EVERY_SOURCE)
def test_every_source_says_what_it_is(name: str) -> None:
    source = sources.find(name)
    for field in ("domain", "size", "licence", "citation", "url", "template"):
        assert getattr(source, field)
    json.dumps(source.info(), allow_nan=False)
    assert any(mirror.network for variant in source.variants for mirror in variant.artifact.mirrors)
    assert len({variant.artifact.name for variant in source.variants}) == len(source.variants)


def test_no_two_sources_share_a_name_or_an_artifact_with_other_files() -> None:
    found = [sources.find(name) for name in EVERY_SOURCE]
    names = [alias for source in found for alias in (source.name, *source.aliases)]
    assert len(set(names)) == len(names)
    artifacts: dict[str, fetch.Artifact] = {}
    for source in found:
        for variant in source.variants:
            assert artifacts.setdefault(variant.artifact.name, variant.artifact) is variant.artifact


def test_the_real_movielens_100k(ml100k: Dataset) -> None:
    assert (ml100k.num_users, ml100k.num_items, len(ml100k.interactions)) == (943, 1682, 100_000)
    assert ml100k.items["item_id"].tolist() == [str(n + 1) for n in range(1682)]
    assert ml100k.items.iloc[0].to_dict() == {
        "item_id": "1",
        "title": "Toy Story",
        "year": "1995",
        "genres": "Animation, Children's, Comedy",
    }
    assert (ml100k.items["title"] != "").all()
    assert (ml100k.items["year"] == "").sum() == 1
    # The published u1.test begins with user 1 on film 6 and ends with user 462 on film 682; its files hold 459 users.
    split = splits.official(ml100k)
    table = sorted(zip(split.test.user + 1, split.test.item + 1, split.test.rating, split.test.timestamp, strict=True))
    assert table[0] == (1, 6, 5.0, 887431973)
    assert table[-1] == (462, 682, 5.0, 886365231)
    assert len(set(split.test.user)) == 459
    assert (len(split.train_rows), len(split.validation_rows), len(split.test_rows)) == (72_000, 8_000, 20_000)
    assert splits.check(split).ok


@pytest.mark.slow
def test_the_real_movielens_1m() -> None:
    dataset = sources.load("movielens-1m")
    assert (dataset.num_users, dataset.num_items, len(dataset.interactions)) == (6040, 3883, 1_000_209)
    assert len(set(dataset.interactions.item)) == 3706
    assert (dataset.items["year"] != "").all()
    assert (dataset.items["genres"] != "").all()


def test_the_real_movietweetings() -> None:
    if not os.environ.get("LTREC_MOVIETWEETINGS"):
        pytest.skip("LTREC_MOVIETWEETINGS names no folder with ratings.dat and movies.dat")
    dataset = sources.load("movietweetings-100k")
    assert (dataset.num_users, dataset.num_items, len(dataset.interactions)) == (16_554, 10_506, 100_000)
    counts = np.bincount(dataset.interactions.item, minlength=dataset.num_items)
    assert np.mean(counts <= 5) == pytest.approx(0.78, abs=0.01)
    assert splits.check(splits.temporal_cold_items(dataset)).ok
