"""Rows of ids and texts from a dataset, a file or a list, however they are cut into chunks."""

import dataclasses
import functools
import gzip

import numpy as np
import pandas as pd
import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.text import corpus

CSV = 'id,text,year\n007,"hello, ""you""",1990\n8,,\n9,end,2000\n'


def rows(source):
    return [row for ids, texts in source.chunks() for row in zip(ids, texts, strict=True)]


@pytest.fixture
def csv(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    return tmp_path / "t.csv"


def test_a_csv_keeps_its_ids_as_they_are_written(csv):
    source = corpus.from_file(csv, "id", "text")
    assert rows(source) == [("007", 'hello, "you"'), ("8", ""), ("9", "end")]
    assert rows(source) == rows(source)


def test_a_template_joins_columns(csv):
    found = rows(corpus.from_file(csv, "id", "absent", "{text} ({year})"))
    assert [text for _, text in found] == ['hello, "you" (1990)', "", "end (2000)"]


@pytest.mark.parametrize("name", ["t.tsv", "t.csv.gz", "t.parquet"])
def test_other_formats(tmp_path, monkeypatch, name):
    frame = pd.DataFrame({"id": range(10), "text": [f"text {number}" for number in range(10)]})
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path)
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    else:
        frame.to_csv(path, index=False, sep="\t")
    monkeypatch.setattr(corpus, "_CHUNK", 3)
    source = corpus.from_file(path, "id", "text")
    assert [len(ids) for ids, _ in source.chunks()] == [3, 3, 3, 1]
    assert rows(source) == [(str(number), f"text {number}") for number in range(10)]


def test_items_of_a_dataset_by_its_own_template(small_dataset, monkeypatch):
    monkeypatch.setattr(corpus, "_CHUNK", 7)
    titles = small_dataset.items["title"].tolist()
    assert rows(corpus.of(small_dataset)) == [(f"i{i}", f"the {title}") for i, title in enumerate(titles)]
    assert rows(corpus.of(small_dataset, "{title}"))[4] == ("i4", titles[4])


@pytest.fixture
def many_kinds(small_dataset, tmp_path):
    """A dataset directory whose items have columns of every kind, with values missing."""
    count = len(small_dataset.items)
    gap = np.arange(count) % 5 == 0
    items = small_dataset.items.assign(
        year=pd.array(np.where(gap, None, 1990 + np.arange(count)), dtype="Int64"),
        score=np.where(gap, np.nan, np.arange(count) / 4),
        seen=np.where(gap, None, np.arange(count) % 2 == 0),
        genres=[["a", "b"][: number % 3] for number in range(count)],
        day=pd.to_datetime(np.where(gap, None, "2020-01-31")),
        plot=np.where(gap, None, "so it goes."),
    )
    dataset = dataclasses.replace(small_dataset, items=items).save(tmp_path / "data")
    return dataset, "{title} ({year}, {score}, {seen}). {genres}, {day}. {plot}"


@pytest.mark.parametrize("own", [False, True])
def test_a_directory_gives_the_rows_of_its_dataset(many_kinds, monkeypatch, own):
    dataset, template = many_kinds
    monkeypatch.setattr(corpus, "_CHUNK", 7)
    whole, streamed = (
        source("" if own else template)
        for source in (functools.partial(corpus.of, dataset), functools.partial(corpus.from_directory, dataset.path))
    )
    assert rows(streamed) == rows(whole)
    assert rows(streamed) == rows(streamed)
    assert len({text for _, text in rows(whole)}) > 60
    for field in ("name", "fingerprint", "count"):
        assert getattr(streamed, field) == getattr(whole, field)


def test_a_directory_without_template_takes_the_datasets_columns(many_kinds, tmp_path):
    dataset, _ = many_kinds
    bare = dataclasses.replace(dataset, info={}).save(tmp_path / "bare")
    assert rows(corpus.from_directory(bare.path)) == rows(corpus.of(bare))


def test_directories_that_are_damaged(many_kinds, tmp_path):
    dataset, _ = many_kinds
    with pytest.raises(UserError, match="not a dataset directory"):
        corpus.from_directory(tmp_path)
    with pytest.raises(UserError, match="Did you mean 'title'"):
        corpus.from_directory(dataset.path, "{titel}")
    table = dataset.path / "items.parquet"
    dataset.items[:-1].to_parquet(table)
    with pytest.raises(UserError, match=r"items\.parquet is damaged: .* Prepare it again"):
        corpus.from_directory(dataset.path)
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"Cannot read .*items\.parquet"):
        corpus.from_directory(dataset.path)
    table.unlink()
    with pytest.raises(UserError, match=r"items\.parquet is missing"):
        corpus.from_directory(dataset.path)


def test_a_fingerprint_follows_ids_texts_and_prefix(csv, small_dataset):
    found = [
        corpus.from_texts(["a", "b"]),
        corpus.from_texts(["a", "c"]),
        corpus.from_texts(["a", "b"], ["x", "y"]),
        corpus.from_texts(["a", "b"]).with_prefix("query: "),
        corpus.from_file(csv, "id", "text"),
        corpus.from_file(csv, "id", "year"),
        corpus.of(small_dataset),
        corpus.of(small_dataset, "{title}"),
    ]
    assert len({source.fingerprint for source in found}) == len(found)
    assert corpus.from_texts(["a", "b"]).fingerprint == found[0].fingerprint


def test_ids_for_other_texts():
    with pytest.raises(ValueError, match="1 ids for 2 texts"):
        corpus.from_texts(["a", "b"], ["x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("idd", "text"), "Did you mean 'id'"),
        (("id", "txt"), "Did you mean 'text'"),
        (("id", "text", "{yaer}"), "Did you mean 'year'"),
    ],
)
def test_unknown_columns(csv, arguments, message):
    with pytest.raises(UserError, match=message):
        corpus.from_file(csv, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "There is no file"),
        ("t.json", b"{}", "is none of .parquet"),
        ("t.parquet", b"id,text", "Cannot read"),
        ("t.csv", b"id,text\n1,a\n2\n", "Expected 2 columns"),
        ("t.csv", b"id,text\n1,a\n,b\n", "row 2 has no id"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        rows(corpus.from_file(tmp_path / name, "id", "text"))
    assert "\n" not in str(error.value)
