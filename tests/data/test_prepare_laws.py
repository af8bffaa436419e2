"""Laws of `prepare` on generated dirty tables: nothing is lost without a word, codes lead back, cores are cores."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltrec_jax.data.prepare import PrepareOptions, from_pandas, prepare
from ltrec_jax.errors import UserError

IDS = st.one_of(st.integers(-3, 12).map(str), st.sampled_from(["", "  ", "07", "é", "a,b", 'q"q', "two\nlines", "NaN"]))
RATINGS = st.one_of(
    st.sampled_from(["1", "2.5", "5", " 4 ", "nan", "inf", "-1", "9", "", "x", "1e400"]),
    st.floats(1, 5, width=16).map(str),
)
TIMES = st.one_of(st.integers(-2, 9).map(str), st.sampled_from(["", "soon", "2020-01-01", "1577836800000"]))
ROWS = st.lists(st.tuples(IDS, IDS, RATINGS, TIMES), min_size=1, max_size=40)
FAST = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SCALE = (1.0, 5.0)


def frame(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"], dtype="str")


def usable(row) -> bool:
    """The rules of `validate` again, by Python's own reading of numbers."""
    user, item, rating, time = row
    try:
        value = float(rating)
    except ValueError:
        return False
    good_time = time in ("2020-01-01", "1577836800000") or (time.lstrip("-").isdigit() and int(time) >= 0)
    return bool(user.strip() and item.strip()) and not math.isnan(value) and 1 <= value <= 5 and good_time


@FAST
@given(ROWS)
def test_kept_and_rejected_are_all_that_was_read_and_ids_lead_back(rows):
    good = [row for row in rows if usable(row)]
    options = PrepareOptions(scale=SCALE, max_rejected=1.0)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "events.csv", Path(folder) / "out"
        frame(rows).to_csv(path, index=False)
        if not good:
            try:
                prepare(path, out=out, options=options)
            except UserError as error:
                assert "No interaction" in str(error)  # noqa: PT017
                assert not out.exists()
                return
            raise AssertionError("an empty dataset was made")
        dataset = prepare(path, out=out, options=options)
        listed = pd.read_parquet(out / "rejected.parquet")
        told = dataset.info["rejected"]["interactions"]
        assert (told["read"], told["rejected"]) == (len(rows), len(rows) - len(good))
        assert len(listed) == sum(told["reasons"].values()) == len(rows) - len(good)
        text = path.read_text(encoding="utf-8")
        assert listed["line"].tolist() == [
            line for row, line in zip(rows, first_lines(text), strict=True) if not usable(row)
        ]
        events = dataset.interactions
        users, items = (
            dataset.users["user_id"].to_numpy()[events.user],
            dataset.items["item_id"].to_numpy()[events.item],
        )
        assert set(zip(users, items, strict=True)) == {(row[0], row[1]) for row in good}
        assert len(events) == len({(row[0], row[1]) for row in good}), "one event for each pair"
        assert sorted(dataset.users["user_id"]) == sorted({row[0] for row in good})
        assert from_pandas(frame(rows), options=options).fingerprint == dataset.fingerprint


def first_lines(text: str) -> list[int]:
    """The line on which each record starts, by counting quotes."""
    lines, inside, start = [], False, True
    number = 1
    for character in text:
        if start and not inside:
            lines.append(number)
            start = False
        if character == '"':
            inside = not inside
        elif character == "\n":
            number += 1
            start = not inside
    return lines[1:]


@FAST
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_core_is_the_largest_that_satisfies_both_minima(pairs, min_user, min_item):
    expected = set(pairs)
    while True:
        users = [u for u, _ in expected]
        items = [i for _, i in expected]
        smaller = {(u, i) for u, i in expected if users.count(u) >= min_user and items.count(i) >= min_item}
        if smaller == expected:
            break
        expected = smaller
    options = PrepareOptions(min_user_interactions=min_user, min_item_interactions=min_item)
    try:
        dataset = from_pandas(pd.DataFrame(pairs, columns=["user", "item"]), options=options)
    except UserError:
        assert not expected
        return
    events = dataset.interactions
    users, items = dataset.users["user_id"].to_numpy()[events.user], dataset.items["item_id"].to_numpy()[events.item]
    assert {(int(u), int(i)) for u, i in zip(users, items, strict=True)} == expected
    assert np.array_equal(np.unique(events.user), np.arange(dataset.num_users)), "codes without gaps"
    assert np.array_equal(np.unique(events.item), np.arange(dataset.num_items))
    assert np.array_equal(np.lexsort((events.item, events.timestamp, events.user)), np.arange(len(events)))
