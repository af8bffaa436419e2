"""`prepare` on files: every way to write the same table, every way to spoil one."""

import gzip
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.data.prepare import ColumnMap, PrepareOptions, from_pandas, options_from_dict, prepare
from ltrec_jax.errors import UserError

EVENTS = pd.DataFrame(
    {
        "userId": [10, 9, 9, 10, 11, 11, 9],
        "movieId": ["b", "a", "b", "a", "c", "a", "a"],
        "rating": [4.0, 3.5, 2.0, 5.0, 1.0, 3.0, 4.5],
        "timestamp": [100, 50, 60, 90, 10, 20, 70],
    }
)
ITEMS = pd.DataFrame(
    {"movieId": ["a", "b", "c", "z"], "title": ["Ä, one", "Two", "", "电影"], "year": [1999, 2000, 2001, 2002]}
)


def same(left: Dataset, right: Dataset) -> bool:
    """Whether two datasets hold the same data, read without the fingerprint."""
    columns = ("user", "item", "rating", "timestamp")
    pd.testing.assert_frame_equal(left.users, right.users)
    pd.testing.assert_frame_equal(left.items, right.items)
    return all(np.array_equal(getattr(left.interactions, c), getattr(right.interactions, c)) for c in columns)


def external(dataset: Dataset) -> pd.DataFrame:
    """The interactions with their external ids."""
    events = dataset.interactions
    return pd.DataFrame(
        {
            "user": dataset.users["user_id"].to_numpy()[events.user],
            "item": dataset.items["item_id"].to_numpy()[events.item],
            "rating": np.asarray(events.rating),
            "timestamp": np.asarray(events.timestamp),
        }
    )


def rejected(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path / "rejected.parquet")


@pytest.fixture
def plain(tmp_path) -> Dataset:
    EVENTS.to_csv(tmp_path / "plain.csv", index=False)
    ITEMS.to_csv(tmp_path / "plain_items.csv", index=False)
    return prepare(tmp_path / "plain.csv", tmp_path / "plain_items.csv", out=tmp_path / "plain")


def test_the_dataset_says_what_the_files_said(plain):
    assert external(plain).to_dict("list") == {
        # Ordered by user (numbers by value), time, item; 9 rated a twice and the later time counts.
        "user": ["9", "9", "10", "10", "11", "11"],
        "item": ["b", "a", "a", "b", "c", "a"],
        "rating": [2.0, 4.5, 5.0, 4.0, 1.0, 3.0],
        "timestamp": [60, 70, 90, 100, 10, 20],
    }
    assert plain.items["item_id"].tolist() == ["a", "b", "c", "z"], "the item without interactions stays"
    assert plain.items["title"].tolist() == ["Ä, one", "Two", "", "电影"]
    assert plain.items["year"].tolist() == [1999, 2000, 2001, 2002]
    assert plain.info["steps"] == {"read": 7, "kept": 7, "in_time_range": 7, "one_per_pair": 6, "interactions": 6}
    parquet = pq.read_table(plain.path / "interactions.parquet")
    for name in ("user", "item", "rating", "timestamp"):
        column = getattr(plain.interactions, name)
        assert np.array_equal(parquet[name].to_numpy(), column)
        assert parquet[name].to_numpy().dtype == column.dtype


def _csv(frame, path, **options):
    frame.to_csv(path, index=False, **options)
    return path


def _json(frame, path):
    frame.to_json(path, orient="records", lines=True, force_ascii=False)
    return path


def _folder(frame, path):
    (path / "deeper").mkdir(parents=True)
    frame.iloc[:3].to_csv(path / "part-0.csv", index=False)
    frame.iloc[3:].to_csv(path / "deeper" / "part-1.csv", index=False)
    (path / "_SUCCESS").write_text("")
    (path / "README.md").write_text("not data")
    return path


def _zstd(frame, path):
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as stream:
        stream.write(frame.to_csv(index=False).encode())
    return path


def _parquet(frame, path):
    frame.to_parquet(path)
    return path


WAYS = {
    "tsv": lambda frame, where: _csv(frame, where.with_suffix(".tsv"), sep="\t"),
    "semicolons": lambda frame, where: _csv(frame, where.with_suffix(".csv"), sep=";"),
    "quotes": lambda frame, where: _csv(frame, where.with_suffix(".csv"), quoting=1),
    "crlf": lambda frame, where: _csv(frame, where.with_suffix(".csv"), lineterminator="\r\n"),
    "bom": lambda frame, where: _csv(frame, where.with_suffix(".csv"), encoding="utf-8-sig"),
    "gzip": lambda frame, where: _csv(frame, where.with_suffix(".csv.gz")),
    "zstd": lambda frame, where: _zstd(frame, where.with_suffix(".csv.zst")),
    "jsonl": lambda frame, where: _json(frame, where.with_suffix(".jsonl")),
    "jsonl.gz": lambda frame, where: _json(frame, where.with_suffix(".jsonl.gz")),
    "parquet": lambda frame, where: _parquet(frame, where.with_suffix(".parquet")),
    "folder": lambda frame, where: _folder(frame, where),
    "glob": lambda frame, where: _folder(frame, where) / "**" / "part-*.csv",
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_table_gives_the_same_dataset(way, plain, tmp_path):
    events, items = WAYS[way](EVENTS, tmp_path / "events"), WAYS[way](ITEMS, tmp_path / "items")
    found = prepare(events, items, out=tmp_path / "other")
    assert same(found, plain)
    assert found.fingerprint == plain.fingerprint


def test_data_frames_give_the_same_dataset(plain):
    found = Dataset.from_pandas(EVENTS, ITEMS, name="frames")
    assert same(found, plain)
    assert found.fingerprint == plain.fingerprint
    assert found.name == "frames"
    assert found.path is None


def test_saving_a_prepared_dataset_keeps_its_fingerprint(plain, tmp_path):
    assert plain.save(tmp_path / "copy").fingerprint == plain.fingerprint


@pytest.mark.parametrize("change", ["rating", "item", "text", "order"])
def test_other_data_have_another_fingerprint(change, plain):
    events, items = plain.interactions, plain.items.copy()
    columns = {name: np.array(getattr(events, name)) for name in ("user", "item", "rating", "timestamp")}
    if change == "rating":
        columns["rating"][0] += 0.5
    elif change == "item":
        columns["item"][0] = 3
    elif change == "order":
        columns = {name: column[::-1] for name, column in columns.items()}
    else:
        items.loc[0, "title"] = "other"
    other = Dataset("other", Interactions(**columns), plain.users, items)
    assert other.fingerprint != plain.fingerprint


def test_columns_are_named_or_guessed_or_listed(tmp_path):
    frame = EVENTS.rename(columns={"userId": "who", "movieId": "what", "rating": "how", "timestamp": "when"})
    path = _csv(frame, tmp_path / "events.csv")
    with pytest.raises(UserError, match=r"cannot tell which column .* is the user.*who, what, how, when"):
        prepare(path, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"no column 'whom' \(user\).*who, what"):
        prepare(path, out=tmp_path / "out", columns=ColumnMap(user="whom"))
    found = prepare(
        path, out=tmp_path / "out", columns=ColumnMap(user="who", item="what", rating="how", timestamp="when")
    )
    assert len(found.interactions) == 6
    assert found.interactions.rating.max() == 5.0
    clicks = prepare(path, out=tmp_path / "clicks", columns=ColumnMap(user="who", item="what"))
    assert set(clicks.interactions.rating) == {1.0}
    assert set(clicks.interactions.timestamp) == {0}


def test_files_without_header_and_other_delimiters(tmp_path, plain):
    path = tmp_path / "ratings.dat"
    path.write_text("\n".join("::".join(map(str, row)) for row in EVENTS.itertuples(index=False)))
    mapping = ColumnMap(user="column0", item="column1", rating="column2", timestamp="column3")
    found = prepare(path, out=tmp_path / "out", columns=mapping, options=PrepareOptions(delimiter="::", header=False))
    assert np.array_equal(found.interactions.rating, plain.interactions.rating)


def test_a_header_over_texts_alone_is_seen(tmp_path):
    (tmp_path / "clicks.csv").write_text("user_id,item_id\nann,x\nbob,y\n")
    assert prepare(tmp_path / "clicks.csv", out=tmp_path / "out").users["user_id"].tolist() == ["ann", "bob"]


BAD_ROWS = {
    "missing user": ",a,3,10",
    "missing item": "1,,3,10",
    "missing rating": "1,a,,10",
    "rating is not a number": "1,a,good,10",
    "rating is NaN": "1,a,NaN,10",
    "rating is infinite": "1,a,inf,10",
    "rating outside 1..5": "1,a,6,10",
    "missing timestamp": "1,a,3,",
    "timestamp is not a time": "1,a,3,soon",
    "negative timestamp": "1,a,3,-10",
    "bad line (too few columns)": "1,a",
    "bad line (too many columns)": "1,a,3,10,11",
}


def test_every_kind_of_bad_row_is_told_with_its_line(tmp_path):
    rows = ["userId,movieId,rating,timestamp"]
    expected = {}
    for reason, row in BAD_ROWS.items():
        rows += [f"{len(rows)},a,3,10", row]
        expected[reason] = len(rows)
    path = tmp_path / "events.csv"
    path.write_text("\n".join(rows) + "\n")
    options = PrepareOptions(scale=(1, 5), max_rejected=0.6)
    found = prepare(path, out=tmp_path / "out", options=options)
    listed = rejected(tmp_path / "out")
    assert dict(zip(listed["reason"], listed["line"], strict=True)) == expected
    assert set(listed["file"]) == {str(path)}
    assert "good" in listed.set_index("reason").loc["rating is not a number", "row"]
    told = found.info["rejected"]["interactions"]
    assert told["reasons"] == dict.fromkeys(sorted(BAD_ROWS), 1)
    assert (told["read"], told["rejected"], len(found.interactions)) == (
        2 * len(BAD_ROWS),
        len(BAD_ROWS),
        len(BAD_ROWS),
    )


def test_lines_are_right_after_blank_lines_and_line_breaks_in_quotes(tmp_path):
    path = tmp_path / "events.csv.gz"
    body = 'user,item,rating,note\n1,a,3,"two\nlines"\n\n1,b,bad,x\n1,c\n1,d,4,"again\n\ntwo"\n\n2,a,worse,y\n'
    with gzip.open(path, "wt") as stream:
        stream.write(body)
    prepare(path, out=tmp_path / "out", options=PrepareOptions(max_rejected=1.0))
    lines = body.split("\n")
    for line, row in zip(*(rejected(tmp_path / "out")[c] for c in ("line", "row")), strict=True):
        assert lines[line - 1].startswith(("1,b,bad", "1,c", "2,a,worse")), (line, row)
    assert len(rejected(tmp_path / "out")) == 3


def test_comments_are_passed_over_and_counted_as_lines(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("# from the shop\n# 2024\nuser,item,rating\n1,a,3\n# a break\n1,b,x\n2,a\n2,b,4\n")
    found = prepare(path, out=tmp_path / "out", options=PrepareOptions(max_rejected=1.0))
    assert len(found.interactions) == 2
    assert dict(zip(*(rejected(tmp_path / "out")[c] for c in ("line", "reason")), strict=True)) == {
        6: "rating is not a number",
        7: "bad line (too few columns)",
    }


def test_bad_encoding_is_rejected_by_line_and_the_right_encoding_helps(tmp_path):
    path = tmp_path / "events.csv"
    good = "".join(f"{n},a,3\n" for n in range(5))
    path.write_bytes(("user,item,rating\n" + good).encode() + "7,café,3\n".encode("latin-1") + "8,naïve,3\n".encode())
    prepare(path, out=tmp_path / "out", options=PrepareOptions(max_rejected=0.5))
    listed = rejected(tmp_path / "out")
    assert listed[["line", "reason"]].to_dict("list") == {"line": [7], "reason": ["bad encoding"]}
    latin = tmp_path / "latin.csv"
    latin.write_bytes("user,item,rating\n7,café,3\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"bad encoding.*latin-1"):
        prepare(latin, out=tmp_path / "latin")
    found = prepare(latin, out=tmp_path / "latin", options=PrepareOptions(encoding="latin-1"))
    assert found.items["item_id"].tolist() == ["café"]


def test_bad_rows_of_json_lines_and_parquet(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"user": 1, "item": "a", "rating": 3}\n\n{"user": 1, "item"\n[1, 2]\n'
        '{"user": null, "item": "a", "rating": 3}\n'
        '{"user": 1, "item": "b", "rating": "x"}\n{"user": 2, "item": "a"}\n'
    )
    prepare(path, out=tmp_path / "out", options=PrepareOptions(max_rejected=1.0))
    listed = rejected(tmp_path / "out")
    assert dict(zip(listed["line"], listed["reason"], strict=True)) == {
        3: "bad line (not a JSON object)",
        4: "bad line (not a JSON object)",
        5: "missing user",
        6: "rating is not a number",
        7: "missing rating",
    }
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, ratings in enumerate(([1.0, float("nan")], [2.0, 9.0, 3.0])):
        frame = {"user": [1] * len(ratings), "item": [f"{number}{n}" for n in range(len(ratings))], "rating": ratings}
        pq.write_table(pa.table(frame), shards / f"{number}.parquet")
    prepare(shards, out=tmp_path / "parquet", options=PrepareOptions(max_rejected=1.0, scale=(1, 5)))
    listed = rejected(tmp_path / "parquet")
    assert [(Path(f).name, n, r) for f, n, r in zip(listed["file"], listed["line"], listed["reason"], strict=True)] == [
        ("0.parquet", 2, "rating is NaN"),
        ("1.parquet", 2, "rating outside 1..5"),
    ]


def test_nan_is_found_where_parquet_statistics_do_not_tell_it(tmp_path):
    ratings = np.tile(np.array([1.0, 5.0, 3.0], np.float32), 40)
    ratings[[7, 100]] = np.nan
    frame = pa.table({"user": np.arange(120), "item": np.zeros(120, np.int64), "rating": ratings})
    pq.write_table(frame, tmp_path / "events.parquet", row_group_size=30)
    found = prepare(tmp_path / "events.parquet", out=tmp_path / "out")
    assert len(found.interactions) == 118
    assert rejected(tmp_path / "out")["line"].tolist() == [8, 101]


def test_too_many_bad_rows_stop_it_and_nothing_is_left(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user,item,rating\n1,a,3\n1,b,x\n2,a,x\n,c,3\n")
    with pytest.raises(
        UserError,
        match=r"3 of 4 rows .* share of 0\.05\. rating is not a number: 2 \(such as .*line 3: .*missing user: 1",
    ):
        prepare(path, out=tmp_path / "work" / "out")
    assert list((tmp_path / "work").iterdir()) == []


def test_times_may_be_dates_or_finer_than_seconds(tmp_path):
    frame = pd.DataFrame({"user": [1, 2, 3, 4], "item": ["a"] * 4})
    expected = [1577836800] * 4
    frame["ts"] = ["1577836800", "1577836800123", "2020-01-01", "2020-01-01T02:00:00+02:00"]
    found = prepare(_csv(frame, tmp_path / "t.csv"), out=tmp_path / "out")
    assert found.interactions.timestamp.tolist() == expected
    frame["ts"] = pd.Timestamp("2020-01-01")
    assert from_pandas(frame).interactions.timestamp.tolist() == expected


def test_duplicates_keep_last_first_or_mean():
    frame = pd.DataFrame(
        {"user": [1, 1, 1, 2, 2], "item": ["a"] * 5, "rating": [5.0, 1.0, 3.0, 4.0, 2.0], "ts": [30, 10, 20, 7, 7]}
    )
    expected = {"last": ([5.0, 2.0], [30, 7]), "first": ([1.0, 4.0], [10, 7]), "mean": ([3.0, 3.0], [30, 7])}
    for policy, (ratings, times) in expected.items():
        found = from_pandas(frame, options=PrepareOptions(duplicates=policy)).interactions
        assert (found.rating.tolist(), found.timestamp.tolist()) == (ratings, times), policy


def test_time_range_threshold_and_core(tmp_path):
    found = from_pandas(EVENTS, ITEMS, options=PrepareOptions(start=20, end=100))
    assert found.interactions.timestamp.min() == 20
    assert found.interactions.timestamp.max() == 90
    assert found.info["steps"]["in_time_range"] == 5
    likes = from_pandas(EVENTS, options=PrepareOptions(implicit_threshold=4.0))
    assert external(likes)[["user", "item"]].to_numpy().tolist() == [["9", "a"], ["10", "a"], ["10", "b"]]
    assert set(likes.interactions.rating) == {1.0}
    core = from_pandas(EVENTS, ITEMS, options=PrepareOptions(min_user_interactions=2, min_item_interactions=2))
    # c has one rating; without it user 11 has one left and goes too.
    assert core.users["user_id"].tolist() == ["9", "10"]
    assert core.items["item_id"].tolist() == ["a", "b", "c", "z"]
    with pytest.raises(UserError, match=r"No interaction is left after filtering \(read: 7.*interactions: 0\)"):
        from_pandas(EVENTS, options=PrepareOptions(min_user_interactions=9))


def test_items_missing_from_the_table_are_counted_or_refused(tmp_path):
    found = from_pandas(EVENTS, ITEMS.iloc[:2])
    assert found.items.set_index("item_id").loc["c", "title"] == ""
    assert found.info["items_without_metadata"] == 1
    with pytest.raises(UserError, match=r"1 items of the interactions are missing .* 'c'"):
        from_pandas(EVENTS, ITEMS.iloc[:2], options=PrepareOptions(strict=True))


def test_numbers_in_one_table_and_texts_in_the_other_meet(tmp_path):
    _parquet(EVENTS.assign(movieId=[7, 8, 7, 8, 9, 8, 8]), tmp_path / "events.parquet")
    items = pd.DataFrame({"movieId": ["7", "08", "x"], "title": ["seven", "eight", "ex"]})
    found = from_pandas(pd.read_parquet(tmp_path / "events.parquet"), items)
    assert found.items.to_numpy().tolist() == [["7", "seven"], ["08", "eight"], ["8", ""], ["9", ""], ["x", "ex"]]
    assert found.info["items_without_metadata"] == 2


def test_ids_that_stand_twice_in_a_table_are_rejected(tmp_path):
    items = pd.concat([ITEMS, pd.DataFrame({"movieId": ["a", None], "title": ["other", "no id"], "year": [1, 2]})])
    with pytest.raises(UserError, match=r"2 of 6 rows of the items .* duplicate item_id: 1"):
        prepare(_csv(EVENTS, tmp_path / "e.csv"), _csv(items, tmp_path / "i.csv"), out=tmp_path / "out")
    found = prepare(
        tmp_path / "e.csv", tmp_path / "i.csv", out=tmp_path / "out", options=PrepareOptions(max_rejected=0.5)
    )
    assert found.items["title"].tolist() == ITEMS["title"].tolist(), "the first row counts"
    assert rejected(tmp_path / "out")[["table", "line"]].to_numpy().tolist() == [["items", 6], ["items", 7]]


def test_users_and_their_attributes():
    users = pd.DataFrame({"id": [9, 10, 77], "job": ["clerk", None, "pilot"], "age": [30, 40, 50]})
    found = from_pandas(EVENTS, users=users)
    assert found.users["user_id"].tolist() == ["9", "10", "11"], "77 has no interaction"
    assert found.users["job"].tolist() == ["clerk", "", ""]
    assert found.users["age"].fillna(0).tolist() == [30, 40, 0]
    chosen = from_pandas(EVENTS, users=users, columns=ColumnMap(user_columns=("age",)))
    assert chosen.users.columns.tolist() == ["user_id", "age"]


def test_ids_that_pandas_made_floats_are_whole_again():
    frame = pd.DataFrame({"user": [1.0, 2.0, None], "item": [5, 6, 7]})
    found = from_pandas(frame, options=PrepareOptions(max_rejected=0.5))
    assert found.users["user_id"].tolist() == ["1", "2"]
    assert found.info["rejected"]["interactions"]["reasons"] == {"missing user": 1}


def test_numbers_and_lists_of_text_tables_keep_their_kind(tmp_path):
    (tmp_path / "items.jsonl").write_text(
        '{"movieId": "a", "zip": "007", "tags": ["x", "y"], "price": 1.5, "n": 1}\n'
        '{"movieId": "b", "zip": "1", "tags": [], "price": 2, "n": null}\n'
    )
    (tmp_path / "items.csv").write_text("movieId,zip,price,n\na,007,1.5,1\nb,1,2,\n")
    events = _csv(EVENTS[EVENTS["movieId"] != "c"], tmp_path / "events.csv")
    for number, file in enumerate(("items.jsonl", "items.csv")):
        items = prepare(events, tmp_path / file, out=tmp_path / f"out{number}").items
        assert items["zip"].tolist() == ["007", "1"]
        assert items["price"].tolist() == [1.5, 2.0]
        assert items["n"].iloc[0] == 1
        if "tags" in items:
            assert [list(tags) for tags in items["tags"]] == [["x", "y"], []]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere.csv", "does not exist"),
        (lambda p: p / "*.csv", "does not exist"),
        (lambda p: p, "holds no CSV"),
        (lambda p: (p / "empty.csv", (p / "empty.csv").write_text(""))[0], "is empty"),
        (lambda p: (p / "x.parquet", (p / "x.parquet").write_text("no"))[0], "cannot read"),
        (lambda p: (p / "x.jsonl", (p / "x.jsonl").write_text("no\n"))[0], "no JSON objects"),
        (lambda p: (p, (p / "x.jsonl").write_text("{}"), (p / "y.csv").write_text("a"))[0], "mixes csv and jsonl"),
        (lambda p: (p / "x.csv", (p / "x.csv").write_text("user_id,item_id\n"))[0], "No interaction"),
        (
            lambda p: (p, (p / "x.csv").write_text("user,item\n1,2\n"), (p / "y.csv").write_text("item,user\n1,2\n"))[
                0
            ],
            "must have the same columns",
        ),
    ],
)
def test_unreadable_inputs_are_one_clear_line(make, message, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(UserError, match=message) as caught:
        prepare(make(folder), out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_existing_output_is_kept_unless_replaced(plain, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        prepare(tmp_path / "plain.csv", out=plain.path)
    assert len(prepare(tmp_path / "plain.csv", out=plain.path, replace=True).items) == 3


def test_options_from_a_dict():
    mapping, options = options_from_dict(
        {"columns": {"user": "who", "item_columns": ["title"]}, "scale": [1, 5], "duplicates": "mean", "header": True}
    )
    assert mapping == ColumnMap(user="who", item_columns=("title",))
    assert options == PrepareOptions(scale=(1, 5), duplicates="mean", header=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"duplicate": "last"}, "Did you mean 'duplicates'"),
        ({"columns": {"usr": "x"}}, r"columns\.usr"),
        ({"columns": "user"}, "must be a table"),
        ({"duplicates": "best"}, "duplicates = 'best' must be one of"),
        ({"scale": [5]}, "list of 2 numbers"),
        ({"scale": [5, 1]}, "the lower first"),
        ({"template": 3}, "template = 3 must be a text"),
        ({"strict": 1}, "true or false"),
        ({"min_user_interactions": 0}, "at least 1"),
        ({"max_rejected": 2.0}, "between 0 and 1"),
        ({"start": 10, "end": 5}, "before `end`"),
    ],
)
def test_bad_options_name_the_field(settings, message):
    with pytest.raises(UserError, match=message):
        options_from_dict(settings)


def test_a_template_is_recorded_and_its_columns_are_checked():
    found = from_pandas(EVENTS, ITEMS, options=PrepareOptions(template="{title} ({year})", positive_rating=4))
    assert found.info["template"] == "{title} ({year})"
    assert found.info["positive_rating"] == 4
    assert found.info["scale"] == [1.0, 5.0]
    with pytest.raises(UserError, match="names 'plot'; the items have item_id, title, year"):
        from_pandas(EVENTS, ITEMS, options=PrepareOptions(template="{plot}"))


def test_a_failure_at_the_last_step_leaves_the_old_output(plain, tmp_path, monkeypatch):
    def fail(*args, **settings):
        raise RuntimeError("at the end")

    monkeypatch.setattr("ltrec_jax.data.directory.write_description", fail)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="at the end"):
        prepare(tmp_path / "plain.csv", out=plain.path, replace=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert same(Dataset.load(plain.path), plain)


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_fills_is_one_clear_line_and_leaves_nothing(tmp_path):
    EVENTS.sample(20_000, replace=True, random_state=0).assign(userId=range(20_000)).to_csv(
        tmp_path / "events.csv", index=False
    )
    done = _run(
        """
        import resource, signal
        from ltrec_jax.data.prepare import prepare, UserError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            prepare("events.csv", out="work/out")
        except UserError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert list((tmp_path / "work").iterdir()) == []


# PySpark starts Java by a fork, of which JAX warns where an earlier test has used it: Java does not come back into it.
@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")  # no data frame passes through it here
def test_spark_gives_the_same_dataset_as_duckdb(plain, tmp_path, monkeypatch):
    pytest.importorskip("pyspark", reason="the extra spark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17, and there is no java")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "user": rng.integers(0, 60, 3000).astype(str),
            "item": np.char.add("i", rng.integers(0, 50, 3000).astype(str)),
            "rating": rng.integers(1, 6, 3000).astype(float),
            "ts": rng.integers(0, 30, 3000),
        }
    )
    path = _parquet(frame, tmp_path / "events.parquet")
    for number, settings in enumerate(
        (
            {},
            {"duplicates": "mean", "start": 3, "end": 28},
            {"duplicates": "first", "implicit_threshold": 4, "min_user_interactions": 9, "min_item_interactions": 10},
        )
    ):
        both = [
            prepare(path, out=tmp_path / f"{engine}{number}", options=PrepareOptions(engine=engine, **settings))
            for engine in ("duckdb", "spark")
        ]
        assert same(*both)
        assert both[0].fingerprint == both[1].fingerprint
        assert both[0].info["steps"] == both[1].info["steps"]
