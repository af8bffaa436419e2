"""The description counts right, and the page says it without help from outside."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ltrec_jax.data import describe, describe_shown, splits, synthetic, text_lengths
from ltrec_jax.data.dataset import Dataset, Interactions, Split


@pytest.fixture(scope="module")
def world():
    return synthetic.catalogue(200, 120, 3000, cold_share=0.2, seed=1)[0]


def made(items, user, item, rating=None, timestamp=None, num_users=3, info=None):
    count = len(user)
    return Dataset(
        "made",
        Interactions(
            np.array(user, np.int32),
            np.array(item, np.int32),
            np.array(rating if rating is not None else np.ones(count), np.float32),
            np.array(timestamp if timestamp is not None else np.zeros(count), np.int64),
        ),
        pd.DataFrame({"user_id": [f"u{n}" for n in range(num_users)]}),
        pd.DataFrame(items),
        info or {},
    )


@pytest.fixture
def written(page_text, tmp_path):
    """A function from a description to its page and the page's visible text."""

    def write(description):
        describe_shown.write_page(description, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        return page, page_text(page)

    return write


def test_counts_by_hand():
    items = {"item_id": list("abcd"), "title": ["one", "two words", None, "日本語 テキスト"], "year": [1, 2, 3, 4]}
    dataset = made(items, [0, 0, 1, 2, 2], [0, 1, 0, 0, 1], [1, 2, 2, 5, 2], [0, 10, 20, 30, 40], num_users=4)
    found = describe.describe(dataset)
    assert (found.users, found.items, found.events) == (4, 4, 5)
    assert found.density == 5 / 16
    assert found.cold_share == 0.5
    assert found.groups["head"] == describe.Group(1, 3, 0.25, 0.6)
    assert found.groups["cold"] == describe.Group(2, 0, 0.5, 0.0)
    assert found.per_user == text_lengths.Spread(0.0, 1.5, 1.25, pytest.approx(2.0), 2.0)
    assert found.ratings.edges.tolist() == [1, 2, 5]
    assert found.ratings.counts.tolist() == [1, 3, 1]
    assert found.times.counts.sum() == 5
    assert (found.times.counts[0], found.times.counts[-1]) == (1, 1)
    assert (found.times.edges[0], found.times.edges[-1]) == (0, 40)
    (title,) = found.texts
    assert (title.name, title.missing) == ("title", 1)
    assert title.characters == text_lengths.Spread(3.0, 8.0, pytest.approx(20 / 3), pytest.approx(8.9), 9.0)
    assert title.words.largest == 2.0
    assert found.rank_frequency[0].tolist() == [1, 2]
    assert found.rank_frequency[1].tolist() == [3, 2]
    assert found.parts == {}
    assert [example.item_id for example in found.examples["head"]] == ["a"]
    assert {example.item_id for example in found.examples["cold"]} == {"c", "d"}


def test_a_split_is_counted_on_its_training_events(world):
    split = splits.make(world, "cold_items", share=0.3)
    found = describe.describe(world, split)
    counts = np.bincount(world.interactions.item[split.train_rows], minlength=world.num_items)
    assert found.groups["cold"].items == (counts == 0).sum()
    assert sum(found.groups[name].events for name in ("head", "mid", "tail")) == len(split.train_rows)
    assert found.parts["train"].events == len(split.train_rows)
    assert found.parts["test"].items == len(np.unique(split.test.item))
    assert found.parts["test"].unseen_items == (counts[np.unique(split.test.item)] == 0).sum() > 0
    assert found.parts["train"].unseen_items == 0
    assert split.name in found.counted_on
    with pytest.raises(ValueError, match="another dataset"):
        describe.describe(dataclasses.replace(world), split)


def test_unused_events_are_shown(world):
    rows = np.arange(len(world.interactions))
    found = describe.describe(world, Split(world, "part", rows[:1000], rows[:0], rows[1000:1500]))
    assert found.parts["unused"].events == 1500
    assert found.parts["validation"] == describe.Part(0, 0, 0, 0)


def test_curves_are_thinned_but_keep_their_ends():
    counts = np.random.default_rng(0).zipf(1.5, 50_000).clip(0, 10_000)
    found = describe._rank_frequency(-np.sort(-counts))
    assert len(found[0]) <= 300
    assert (found[0][0], found[0][-1]) == (1, 50_000)
    assert (found[1][0], found[1][-1]) == (counts.max(), counts.min())


def test_many_ratings_become_bins():
    rng = np.random.default_rng(0)
    rating = rng.normal(0, 1, 500)
    found = describe.describe(made({"item_id": ["a"]}, [0] * 500, [0] * 500, rating)).ratings
    expected, edges = np.histogram(rating.astype(np.float32), bins=40)
    np.testing.assert_array_equal(found.counts, expected)
    np.testing.assert_allclose(found.edges, edges, rtol=1e-5)


def test_times_on_the_edge_of_a_bin_are_counted_as_numpy_does():
    time = np.repeat(np.arange(0, 81), 2)
    found = describe.describe(made({"item_id": ["a"]}, [0] * 162, [0] * 162, timestamp=time)).times
    np.testing.assert_array_equal(found.counts, np.histogram(time, bins=40)[0])


def test_pieces_do_not_matter(world, monkeypatch):
    whole = describe.describe(world)
    monkeypatch.setattr(describe, "_PIECE", 7)
    monkeypatch.setattr(text_lengths, "_PIECE", 11)
    pieces = describe.describe(world)
    np.testing.assert_array_equal(whole.ratings.counts, pieces.ratings.counts)
    np.testing.assert_array_equal(whole.times.counts, pieces.times.counts)
    assert [text.words for text in whole.texts] == [text.words for text in pieces.texts]


def test_the_page_is_whole_and_loads_nothing(world, written):
    page, text = written(describe.describe(world, splits.make(world, "random")))
    assert "http" not in page
    assert page.count("<svg") == 7
    assert 'name="viewport"' in page
    for expected in ("3,000", "cold items", "validation", "Most popular items", "Some items without events", "Gini"):
        assert expected in text
    # A tick label in mathematical markup would be shown as it is.
    assert "mathdefault" not in page


def test_what_comes_from_outside_is_escaped(written):
    evil = '<script>alert("1")</script> $x^2$ 电影'
    items = {"item_id": [evil, "b"], evil: [evil, evil * 40]}
    dataset = made(items, [0, 1], [0, 0], [1, 2], [0, 9], info={evil: evil, "licence": evil})
    named = dataclasses.replace(dataset, name=evil)
    page, text = written(describe.describe(named))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "电影" in text
    assert "…" in text


BARE = {"item_id": ["a", "b"]}


@pytest.mark.parametrize(
    ("dataset", "pictures"),
    [
        (made(BARE, [0, 1, 1], [0, 0, 1]), 4),
        (made(BARE, [], []), 1),
        (made(BARE, [0], [0], [3.0], [1_000_000_000]), 4),
        (made(BARE, [0, 1], [0, 1], [1, 2], [1_600_000_000_000, 1_700_000_000_000]), 4),
        (made({"item_id": []}, [], [], num_users=0), 0),
        (made({**BARE, "title": [None, None]}, [0], [0]), 4),
        (made({**BARE, "title": ["", "x"], "tags": [["a", "b c"], []]}, [0], [0]), 5),
    ],
    ids=["no times, no texts", "no events", "one event", "milliseconds", "nothing", "texts all missing", "lists"],
)
def test_poor_datasets_have_a_page_too(dataset, pictures, written):
    found = describe.describe(dataset)
    page, _ = written(found)
    assert page.count("<svg") == pictures
    describe_shown.print_description(found, Console(file=io.StringIO(), width=80))


def test_the_terminal_shows_it_within_80_columns(world):
    stream = io.StringIO()
    named = dataclasses.replace(world, name="[bold]shop[/bold]")
    split = splits.make(named, "random")
    describe_shown.print_description(describe.describe(named, split), Console(file=stream, width=80))
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for expected in ("[bold]shop[/bold]", "3,000", "24 (20.0%)", "head", "description", "validation"):
        assert expected in shown


def test_text_columns_are_those_that_hold_texts():
    items = pd.DataFrame(
        {
            "item_id": ["a", "b"],
            "title": [None, "x"],
            "year": [1990, 2000],
            "tags": [["a"], None],
            "seen": [True, False],
            "when": pd.to_datetime(["2020-01-01", None]),
        }
    )
    assert text_lengths.text_columns(items) == ["title", "tags"]
    found = describe.describe(made(items, [0], [0])).texts
    assert [(text.name, text.missing) for text in found] == [("title", 1), ("tags", 1)]


def test_the_same_data_give_the_same_page(world, written):
    first, _ = written(describe.describe(world))
    assert written(describe.describe(world))[0] == first


def test_movielens(ml100k, written):
    found = describe.describe(ml100k)
    assert (found.users, found.items, found.events) == (943, 1682, 100_000)
    assert found.ratings.counts.tolist() == [6110, 11370, 27145, 34174, 21201]
    assert found.examples["head"][0].text.startswith("Star Wars")
    assert found.examples["head"][0].events == 583
    assert "Star Wars" in written(found)[1]


@pytest.mark.parametrize("span", [1, 50, 5_000, 90_000, 10**6, 10**7, 6 * 10**7, 10**8, 2 * 10**9])
def test_any_stretch_of_time_has_a_picture(span, written):
    events = made(BARE, [0, 1], [0, 1], [1, 2], [10**9 - span, 10**9])
    assert written(describe.describe(events))[0].count("<svg") == 5
