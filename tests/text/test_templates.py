"""Templates: what is there is said, what is missing leaves no trace, mistakes are named."""

import datetime as dt
import itertools
import re

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from ltrec_jax.data.dataset import Interactions
from ltrec_jax.errors import UserError
from ltrec_jax.text import templates


def render(template, **columns):
    return templates.render(template, pd.DataFrame(columns))


def one(template, **row):
    """The text of one row, whatever type its values have."""
    frame = pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in row.items()})
    (text,) = templates.render(template, frame)
    return text


FILMS = [
    # title, year, genres -> which are there
    ("{title} ({year}). {genres}", ["T (1995). G", "T (1995)", "T. G", "T", "(1995). G", "(1995)", "G", ""]),
    (
        "{title} ({year}, {genres}).",
        ["T (1995, G).", "T (1995).", "T (G).", "T.", "(1995, G).", "(1995).", "(G).", ""],
    ),
    ("{title}, {year}, {genres}", ["T, 1995, G", "T, 1995", "T, G", "T", "1995, G", "1995", "G", ""]),
    ("{title} - {year} - {genres}", ["T - 1995 - G", "T - 1995", "T - G", "T", "1995 - G", "1995", "G", ""]),
    ("{title}\n{year}\n{genres}", ["T\n1995\nG", "T\n1995", "T\nG", "T", "1995\nG", "1995", "G", ""]),
    ("{title} [{year}] ({genres})", ["T [1995] (G)", "T [1995]", "T (G)", "T", "[1995] (G)", "[1995]", "(G)", ""]),
    (
        "Title: {title}. Year: {year}; genres: {genres}.",
        [
            *("Title: T. Year: 1995; genres: G.", "Title: T. Year: 1995.", "Title: T; genres: G.", "Title: T."),
            *("Year: 1995; genres: G.", "Year: 1995.", "genres: G.", ""),
        ],
    ),
    (
        "《{title}》（{year}）。类型：{genres}。",
        [
            *("《T》（1995）。类型：G。", "《T》（1995）。", "《T》。类型：G。", "《T》。"),
            *("（1995）。类型：G。", "（1995）。", "类型：G。", ""),
        ],
    ),
]


@pytest.mark.parametrize(("template", "expected"), FILMS, ids=[template for template, _ in FILMS])
def test_every_combination_of_missing_values(template, expected):
    rows = list(itertools.product(["T", None], ["1995", None], ["G", None]))
    title, year, genres = zip(*rows, strict=True)
    assert render(template, title=title, year=year, genres=genres) == expected


def test_words_around_a_missing_value_go_with_it():
    assert render("The {title} of {year}", title=["T", "T", None, None], year=["Y", None, "Y", None]) == [
        *("The T of Y", "The T", "Y", "")
    ]
    assert render("{age} years old, {gender}", age=[20, np.nan], gender=["F", "F"]) == ["20 years old, F", "F"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("[{kept}] {lost}", "[K]"),
        ("({kept}){lost}", "(K)"),
        ("({kept}) by {lost}. End {kept}", "(K). End K"),
        ("({kept}) [{lost}]", "(K)"),
        ("(({kept}) {lost})", "((K))"),
    ],
)
def test_a_bracket_before_a_missing_value_stays_closed(template, expected):
    assert one(template, kept="K", lost=None) == expected


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT, "", "  \n", [], [None, ""], np.array([])])
def test_what_counts_as_missing(missing):
    assert one("{a} ({b}). {c}", a="A", b=missing, c="C") == "A. C"
    assert one("{b}", b=missing) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1995, "1995"),
        (1995.0, "1995"),
        (-3.0, "-3"),
        (7.25, "7.25"),
        (0, "0"),
        (0.0, "0"),
        (np.float32(2.5), "2.5"),
        (np.int64(12), "12"),
        (True, "True"),
        (1e20, "100000000000000000000"),
        (["a", "b"], "a, b"),
        (("a", None, "b"), "a, b"),
        (np.array(["a", "b"], dtype=object), "a, b"),
        ([["a"], ["b", "c"]], "a, b, c"),
        ([1990.0, 2000.0], "1990, 2000"),
        (pd.Timestamp("2020-01-31"), "2020-01-31"),
        (pd.Timestamp("2020-01-31 10:05"), "2020-01-31 10:05:00"),
        (dt.date(2020, 1, 2), "2020-01-02"),
        (np.datetime64("2020-01-31"), "2020-01-31"),
        ("  many \n spaces\t", "many spaces"),
        ("Amélie 电影 фильм 🎬", "Amélie 电影 фильм 🎬"),
        ("nan", "nan"),
        ("100% {x} %s \\1 $", "100% {x} %s \\1 $"),
        ("a lone \ud800 surrogate", "a lone ? surrogate"),
    ],
    ids=repr,
)
def test_values_as_text(value, text):
    assert one("{a}", a=value) == text
    assert one("<{a}>", a=value) == f"<{text}>"


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1.0, np.nan]),
        pd.Series([1, None], dtype="Int64"),
        pd.Series(["1", None], dtype="category"),
        pd.Series(["1", None], dtype="string"),
        pd.Series(["1", None], dtype=object),
    ],
    ids=lambda column: str(column.dtype),
)
def test_any_column_type(column):
    assert templates.render("{a}", pd.DataFrame({"a": column})) == ["1", ""]


def test_dates_as_a_column():
    dates = pd.to_datetime(pd.Series(["2020-01-31", None]))
    assert templates.render("released {a}", pd.DataFrame({"a": dates})) == ["released 2020-01-31", ""]


def test_a_value_that_ends_a_sentence_gets_no_second_full_stop():
    assert render("{a}. {b}", a=["It ends.", "U.S.A.", "Dots...", "plain"], b=list("wxyz")) == [
        *("It ends. w", "U.S.A. x", "Dots.... y", "plain. z")
    ]
    assert render("{a}, {b}", a=["Jr."], b=["x"]) == ["Jr., x"]


def test_words_in_their_own_sentence_stay_unless_nothing_else_is_said():
    assert render("A film. {a}. The end", a=["x", None]) == ["A film. x. The end", ""]
    assert render("A film. {a}. {b}", a=["x", None], b=["y", "y"]) == ["A film. x. y", "A film. y"]


def test_literal_braces_and_percent_signs():
    assert render("{{x}} 50% {a} %s", a=["A"]) == ["{x} 50% A %s"]


def test_a_column_may_be_used_twice_and_may_have_any_name():
    assert render("{a} ({a})", a=["x", None]) == ["x (x)", ""]
    frame = pd.DataFrame({"a b": ["x"], "电影": ["y"]})
    assert templates.render("{a b}: {电影}", frame) == ["x: y"]


def test_brackets_that_do_not_pair_are_characters():
    assert render("{a}) {b}", a=["x"], b=["y"]) == ["x) y"]
    assert render("({a} {b}", a=["x"], b=["y"]) == ["(x y"]
    assert render("{a} ({b} ({c})", a=["x"], b=["y"], c=["z"]) == ["x (y (z)"]
    assert render("({a} [{b}) {c}]", a=["x"], b=["y"], c=["z"]) == ["(x [y) z]"]
    assert render("{a} ({b} [{c}])", a=["x", "x", "x"], b=["y", None, None], c=["z", "z", None]) == [
        *("x (y [z])", "x ([z])", "x")
    ]


def test_punctuation_inside_values_is_left_alone():
    text = "Hello, world! (1999) - a; b. c"
    assert render("{a}. {b}", a=[text], b=["x"]) == [f"{text}. x"]


def test_rows_keep_their_order_whatever_the_index():
    frame = pd.DataFrame({"a": list("xyz"), "b": [None, "1", None]}, index=[7, 7, 3])
    assert templates.render("{a} ({b})", frame) == ["x", "y (1)", "z"]
    assert templates.render("{a}", frame.head(0)) == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{", "not well formed"),
        ("}", "not well formed"),
        ("{a", "not well formed"),
        ("{}", "plain column names"),
        ("{a!r}", "plain column names"),
        ("{a:>3}", "plain column names"),
        ("{a:{b}}", "plain column names"),
        ("", "names no column"),
        ("no field", "names no column"),
        ("{{a}}", "names no column"),
        ("{tilte}", "column in the text template 'tilte'.*Did you mean 'title'"),
        ("{title.__class__}", "column in the text template"),
        ("{title[0]}", "column in the text template"),
        ("{0}", "column in the text template"),
    ],
)
def test_bad_templates_say_what_is_wrong(template, message):
    with pytest.raises(UserError, match=message):
        render(template, a=["x"], title=["y"])


words = st.text(alphabet=st.sampled_from("abcXYZ 0é电影'"), min_size=1, max_size=8).filter(str.strip)
cells = st.one_of(st.none(), words)
glue = st.sampled_from(
    [" ", ". ", ", ", " - ", " | ", "; ", " (", ") ", " [", "] ", " by ", "。", "（", "）", "\n", ": "]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6), glue, glue, st.sampled_from(["", ".", ")", "。"])
)
def test_laws_of_any_template(rows, first, second, end):
    template = "{a}" + first + "{b}" + second + "{c}" + end
    texts = render(template, **{name: [row[n] for row in rows] for n, name in enumerate("abc")})
    for row, text in zip(rows, texts, strict=True):
        values = [" ".join(value.split()) if value else "" for value in row]
        # Nothing that is there is lost, in its order.
        assert re.search(".*".join(map(re.escape, filter(None, values))), text, flags=re.DOTALL)
        if all(values):
            assert text == template.format(a=values[0], b=values[1], c=values[2]).strip()
        if not any(values):
            assert text == ""
        # No traces of what is not.
        assert text == text.strip()
        assert not re.search(r"\(\s*\)|（）|[.,;|] *[,;|]|\. *\.", text)
        assert "None" not in text
        assert "nan" not in text


def test_default_templates():
    def default(*names, **columns):
        return templates.default_template(pd.DataFrame({name: ["x"] for name in names} | columns))

    assert default("item_id", "title", "year", "genres") == "{title} ({year}). {genres}"
    assert default("item_id", "genres", "title") == "{title}. {genres}"
    assert default("item_id", "Headline", "Abstract", "category") == "{Headline}. {category}. {Abstract}"
    assert default("item_id", "title", "text") == "{text}"
    assert default("item_id", "colour", "shape", weight=[3.0]) == "{colour}. {shape}"
    assert default("item_id", "name", rating=[1.0], description=["d"]) == "{name}. {description}"
    for frame in (pd.DataFrame({"item_id": ["a"]}), pd.DataFrame({"item_id": ["a"], "price": [1.0]}), pd.DataFrame()):
        with pytest.raises(UserError, match=r"No column to make a text from.*\{title\}"):
            templates.default_template(frame)


def events(rows):
    user, item, rating, time = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(user.astype(np.int32), item.astype(np.int32), rating.astype(np.float32), time.astype(np.int64))


def test_profiles_name_the_latest_liked_items():
    found = events([(0, 0, 5, 10), (0, 1, 4, 30), (0, 2, 3, 40), (0, 3, 5, 20), (2, 1, 1, 0), (3, 4, 5, 0)])
    texts = ["A", "B", "C", "D", ""]
    assert templates.profile_texts(found, texts, 5) == ["Likes: B; D; A", "", "", "", ""]
    assert templates.profile_texts(found, texts, 5, max_items=2)[0] == "Likes: B; D"
    assert templates.profile_texts(found, texts, 5, min_rating=1)[0] == "Likes: C; B; D; A"
    attributes = ["20 years", "", "30 years", "x", "y"]
    assert templates.profile_texts(found, texts, 5, attributes=attributes) == [
        *("20 years Likes: B; D; A", "", "30 years", "x", "y")
    ]
    with pytest.raises(ValueError, match="5 attribute texts for 4 users"):
        templates.profile_texts(found, texts, 4, attributes=attributes)


def test_events_of_equal_time_are_told_latest_row_first():
    found = events([(0, 0, 5, 0), (0, 1, 5, 0), (0, 2, 5, 0)])
    assert templates.profile_texts(found, ["A", "B", "C"], 1, max_items=2) == ["Likes: C; B"]


def test_profiles_without_events():
    nothing = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert templates.profile_texts(nothing, ["A"], 2) == ["", ""]
    assert templates.profile_texts(nothing, ["A"], 2, attributes=["x", "y"]) == ["x", "y"]
    assert templates.profile_texts(nothing, [], 0) == []


def test_profiles_against_a_plain_loop():
    rng = np.random.default_rng(0)
    count = 300
    found = Interactions(
        rng.integers(20, size=count).astype(np.int32),
        rng.integers(30, size=count).astype(np.int32),
        rng.integers(1, 6, size=count).astype(np.float32),
        rng.integers(50, size=count),
    )
    item_texts = [f"text {i}" if i % 7 else "" for i in range(30)]
    expected = []
    for user in range(20):
        liked = [
            (found.timestamp[row], row)
            for row in range(count)
            if found.user[row] == user and found.rating[row] >= 4 and item_texts[found.item[row]]
        ]
        names = [item_texts[found.item[row]] for _, row in sorted(liked, reverse=True)[:4]]
        expected.append("Likes: " + "; ".join(names) if names else "")
    assert templates.profile_texts(found, item_texts, 20, max_items=4) == expected
