"""Coded events in arrays: the same interactions as the relational steps give, whatever the options."""

import dataclasses
import itertools

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltrec_jax.data import columns, ranges, relations, settle, whole_ids
from ltrec_jax.data.engines import DuckEngine
from ltrec_jax.data.prepare_options import PrepareOptions
from ltrec_jax.errors import UserError

PLAIN = PrepareOptions()
OPTIONS = [
    PLAIN,
    PrepareOptions(duplicates="first", start=1_000),
    PrepareOptions(duplicates="mean", end=10**9),
    PrepareOptions(implicit_threshold=3.0),
    PrepareOptions(min_user_interactions=3, min_item_interactions=4),
    PrepareOptions(implicit_threshold=2.5, min_user_interactions=2, min_item_interactions=2, duplicates="first"),
    PrepareOptions(min_item_interactions=1_000),
]


def events(rows: int, seed: int = 0, times: int = 50) -> dict[str, np.ndarray]:
    """Many repeated pairs, many at one time; ids that are numbers; rows in no order."""
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(-5, 40, rows),
        "item_id": (rng.random(rows) ** 2 * 30).astype(np.int64) * 1_000_003,
        "rating": (rng.integers(1, 11, rows) / 2).astype(np.float32),
        "timestamp": rng.integers(0, times, rows) * 40_000_000,
        "row_order": rng.permutation(rows) + (rng.integers(0, 3, rows) << 40),
    }


def both(raw: dict[str, np.ndarray], options: PrepareOptions, folder) -> list[tuple]:
    """(steps, missing, interactions, user ids, item ids) by the relational steps, and by the arrays."""
    found = []
    for relational in (True, False):
        with duckdb.connect() as connection:
            connection.register("events", pa.table(raw))
            connection.execute("CREATE TABLE items_kept AS SELECT unnest(['7', '-1', 'seven', '1000003']) AS item_id")
            engine = DuckEngine(connection)
            if relational:
                steps, missing = relations.relate(engine, options, listed=True)
                (folder / "elsewhere").mkdir()
                settled = settle.settled_elsewhere(engine, options, folder / "elsewhere")
            else:
                (folder / "arrays").mkdir()
                steps, missing, settled = settle.settle(engine, options, folder / "arrays", listed=True)
            pieces = list(settled.pieces())
            arrays = [np.concatenate([piece[name] for piece in pieces]).tolist() for name in columns.DTYPES]
            ids = [
                connection.execute(f"FROM final_{kind}_codes ORDER BY ALL").fetchall() for kind in ("users", "items")
            ]
            assert settled.rows == len(arrays[0]) == steps["interactions"]
            found.append((steps, missing, arrays, *ids))
    return found


KINDS = {
    "both whole": (lambda user: user, lambda item: item),
    "users whole": (lambda user: user, lambda item: item << 32),
    "items whole": (lambda user: np.array([f"u{n}" for n in user]), lambda item: item),
    "neither": (lambda user: user << 40, lambda item: item.astype(str)),
}


WHOLE, *OTHERS = KINDS


@pytest.mark.parametrize(
    ("kind", "options"), [*itertools.product([WHOLE], OPTIONS), *itertools.product(OTHERS, [OPTIONS[1], OPTIONS[4]])]
)
def test_arrays_and_relations_give_the_same(kind, options, tmp_path, monkeypatch):
    # Several ranges, and several batches.
    monkeypatch.setattr(ranges, "_ROWS", 300)
    monkeypatch.setattr(ranges, "_BATCH", 700)
    monkeypatch.setattr(whole_ids, "_BATCH", 700)
    raw = events(2_500)
    for key, change in zip(relations.CODE_OF, KINDS[kind], strict=True):
        raw[key] = change(raw[key])
    relational, arrays = both(raw, dataclasses.replace(options, threads=2), tmp_path)
    assert arrays == relational
    if options.min_item_interactions < 1_000:
        assert arrays[0]["interactions"] > 0


@pytest.mark.parametrize("times", [1, 2_000_000_000])
def test_order_and_pairs_where_all_times_are_equal_or_far_apart(times, tmp_path):
    raw = events(800, seed=1)
    raw["timestamp"] = np.random.default_rng(2).integers(0, 2, 800) * (times - 1) * 1_000_000_000
    relational, arrays = both(raw, PLAIN, tmp_path)
    assert arrays == relational
    user, item, _, time = arrays[2]
    assert np.array_equal(np.lexsort((item, time, user)), np.arange(len(user)))


KEY = st.integers(-(2**62), 2**62)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2**40, 2**62]), st.one_of(st.integers(0, 2), KEY))))
def test_the_order_of_packed_keys_is_that_of_lexsort(rows):
    keys = [np.array(key, np.int64) for key in zip(*rows, strict=True)] if rows else [np.zeros(0, np.int64)] * 3
    order = settle._order(keys)
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert [rows[n] for n in order] == sorted(rows)


def test_ranges_hold_whole_users_and_every_event(tmp_path):
    counts = np.array([5, 0, 900, 1, 1, 1, 300])
    held = ranges.UserRanges(tmp_path, counts, 10, rows=100, threads=2)
    users = np.repeat(np.arange(7) * 10 + 3, counts)
    user = np.random.default_rng(0).permutation(users).astype(np.int32)
    zeros = {name: np.zeros(len(user), ranges.EVENT[name]) for name in ranges.EVENT.names or ()}
    held.add(pa.record_batch(zeros | {"user": user}))
    held.add(pa.record_batch(zeros | {"user": user}).slice(0, 0))
    parts = list(held.map(lambda found: found["user"]))
    assert held.rows == len(user) == sum(map(len, parts))
    assert len(parts) > 2
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(user))
    bounds = [(part.min(), part.max()) for part in parts]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(bounds))


def test_what_fails_in_the_middle_of_a_stream_is_one_clear_line():
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT CASE WHEN i = 900 THEN 'x' ELSE '1' END AS a FROM range(1000) r(i)"
        )
        engine = DuckEngine(connection)
        table = engine.table("t")
        with pytest.raises(UserError, match=r"^coding failed: Conversion Error: .*'x'.*"):
            list(engine.stream(table.mutate(b=table.a.cast("int64")), 100, "coding"))


LOWEST = -(2**63)
IDS = st.one_of(st.integers(-20, 20), st.integers(-2_000, 2_000), st.integers(LOWEST, 2**63 - 1))
FEW_IDS = st.one_of(st.lists(IDS, max_size=8), st.lists(st.integers(LOWEST, LOWEST + 2_000), max_size=8))


@settings(max_examples=100, deadline=None)
@given(st.lists(FEW_IDS, max_size=8), st.integers(1, 5_000))
def test_a_tally_counts_and_codes_ids_unless_they_are_too_far_apart(batches, widest):
    tally, every = whole_ids.Tally(widest), []
    for batch in batches:
        counted = tally.add(np.array(batch, np.int64))
        assert counted == (not batch or max(every + batch) - min(every + batch) < widest)
        if not counted:
            return
        every += batch
    ids, events = np.unique(np.array(every, np.int64), return_counts=True)
    found = tally.counted()
    assert found["id"].tolist() == ids.tolist()
    assert found["events"].tolist() == events.tolist()
    tally.become_codes(ids, np.arange(len(ids), dtype=np.int32))
    assert ids[tally.codes(np.array(every, np.int64))].tolist() == every
