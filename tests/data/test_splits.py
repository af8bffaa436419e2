import dataclasses

import numpy as np
import pandas as pd
import pytest

from ltrec_jax.data import splits
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.errors import UserError

USERS, ITEMS, EVENTS = 40, 60, 1500
EVERY_RULE = [
    ("official/b", {}),
    ("official", {"fold": "a", "validation": 0.0}),
    ("random", {"seed": 3}),
    ("random", {"per_user": True}),
    ("leave_last_out", {}),
    ("temporal", {}),
    ("temporal_cold_items", {}),
    ("temporal_cold_items", {"share": 0.3}),
    ("cold_items", {}),
    ("cold_items", {"test": 0.0, "validation_share": 0.2, "per_user": True}),
    ("cold_users", {"validation_share": 0.2}),
]


def make_dataset(*, seed: int = 0, repeats: bool = False, times: bool = True) -> Dataset:
    generator = np.random.default_rng(seed)
    pairs = generator.choice(USERS * ITEMS, EVENTS, replace=repeats)
    # The last ten items appear late only, so that a temporal split has new ones.
    item = pairs % ITEMS
    timestamp = np.where(item >= ITEMS - 10, 9_000, 0) + generator.integers(0, 10_000, EVENTS)
    return Dataset(
        name="toy",
        interactions=Interactions(
            user=(pairs // ITEMS).astype(np.int32),
            item=item.astype(np.int32),
            rating=generator.integers(1, 6, EVENTS).astype(np.float32),
            timestamp=timestamp.astype(np.int64) if times else np.zeros(EVENTS, np.int64),
        ),
        users=pd.DataFrame({"user_id": [f"u{u}" for u in range(USERS)]}),
        items=pd.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)]}),
        info={"official_splits": {"a": [0, 300], "b": [300, 600]}},
    )


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(("rule", "options"), EVERY_RULE)
def test_every_rule_gives_disjoint_sorted_parts_without_leaks(rule: str, options: dict, repeats: bool) -> None:
    dataset = make_dataset(repeats=repeats)
    split = splits.make(dataset, rule, **options)
    parts = [split.train_rows, split.validation_rows, split.test_rows]
    every = np.concatenate(parts)
    assert len(np.unique(every)) == len(every)
    assert every.max() < EVENTS
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    assert len(split.train_rows)
    assert len(split.test_rows)
    assert splits.check(split).ok, splits.check(split).findings
    assert splits.check(split.with_validation_in_train()).ok
    pairs = [set(zip(events.user, events.item, strict=True)) for events in (split.train, split.validation, split.test)]
    assert len(set.union(*pairs)) == sum(map(len, pairs))
    assert (split.settings["dropped_repeats"] > 0) <= repeats


@pytest.mark.parametrize(("rule", "options"), EVERY_RULE)
def test_the_same_seed_gives_the_same_split(rule: str, options: dict) -> None:
    first, second = (splits.make(make_dataset(), rule, **options) for _ in range(2))
    assert np.array_equal(first.train_rows, second.train_rows)
    assert np.array_equal(first.test_rows, second.test_rows)


@pytest.mark.parametrize("rule", ["random", "cold_items", "cold_users"])
def test_another_seed_gives_another_split(rule: str) -> None:
    first, second = (splits.make(make_dataset(), rule, seed=seed) for seed in range(2))
    assert not np.array_equal(first.test_rows, second.test_rows)


def test_official_takes_the_recorded_rows_and_a_share_of_the_rest() -> None:
    split = splits.official(make_dataset(), "b", validation=0.25)
    assert split.name == "official/b"
    assert np.array_equal(split.test_rows, np.arange(300, 600))
    assert len(split.validation_rows) == 300
    assert len(split.train_rows) == 900


def test_random_shares() -> None:
    split = splits.random(make_dataset(), test=0.2, validation=0.25)
    assert (len(split.test_rows), len(split.validation_rows), len(split.train_rows)) == (300, 300, 900)


def test_random_per_user_takes_the_share_of_each_user() -> None:
    dataset = make_dataset()
    split = splits.random(dataset, test=0.3, validation=0.0, per_user=True)
    total = np.bincount(dataset.interactions.user, minlength=USERS)
    test = np.bincount(split.test.user, minlength=USERS)
    assert np.all(np.abs(test - 0.3 * total) <= 0.5)


def test_leave_last_out_takes_the_last_two_events_of_each_user() -> None:
    dataset = make_dataset()
    split = splits.leave_last_out(dataset)
    events = dataset.interactions
    for user in range(USERS):
        rows = np.flatnonzero(events.user == user)
        rows = rows[np.argsort(events.timestamp[rows], kind="stable")]
        assert split.test_rows[split.test.user == user].tolist() == [rows[-1]]
        assert split.validation_rows[split.validation.user == user].tolist() == [rows[-2]]


def test_leave_last_out_keeps_short_users_for_training() -> None:
    dataset = make_dataset()
    longest = np.bincount(dataset.interactions.user).max()
    split = splits.leave_last_out(dataset, minimum=int(longest))
    counts = np.bincount(dataset.interactions.user, minlength=USERS)
    assert set(split.test.user) == set(np.flatnonzero(counts == longest))


def test_temporal_cuts_once_for_everybody() -> None:
    split = splits.temporal(make_dataset(), test=0.2, validation=0.25)
    assert split.train.timestamp.max() < split.settings["validation_from"] == split.validation.timestamp.min()
    assert split.validation.timestamp.max() < split.settings["test_from"] == split.test.timestamp.min()
    assert len(split.test_rows) == pytest.approx(300, abs=3)  # ties at the cut join the later part


def test_temporal_cold_items_lists_new_items_and_makes_more() -> None:
    dataset = make_dataset()
    plain, more = splits.temporal_cold_items(dataset), splits.temporal_cold_items(dataset, share=0.3)
    new = set(plain.test.item) - set(plain.train.item) - set(plain.validation.item)
    assert set(plain.settings["cold_items"]) == new != set()
    assert set(more.settings["cold_items"]) > new
    assert np.array_equal(plain.test_rows, more.test_rows)


@pytest.mark.parametrize("kind", ["item", "user"])
def test_cold_sets_are_the_chosen_share_and_wholly_in_test(kind: str) -> None:
    dataset = make_dataset()
    split = splits.make(dataset, f"cold_{kind}s", share=0.25, validation_share=0.2)
    codes = getattr(dataset.interactions, kind)
    cold = split.settings[f"cold_{kind}s"]
    assert len(cold) == round(0.25 * len(np.unique(codes)))
    assert np.all(np.isin(np.flatnonzero(np.isin(codes, cold)), split.test_rows))
    held_back = split.settings[f"validation_cold_{kind}s"]
    assert held_back
    assert not set(held_back) & set(getattr(split.train, kind))
    assert not set(held_back) & set(cold)


def with_rows(split: splits.Split, **rows: np.ndarray) -> splits.Split:
    return dataclasses.replace(split, **rows)


def test_check_finds_each_kind_of_leak() -> None:
    dataset = make_dataset()
    clean = splits.random(dataset)
    overlap = with_rows(clean, train_rows=np.sort(np.concatenate([clean.train_rows, clean.test_rows[:7]])))
    assert "7 rows stand in training and test" in " ".join(splits.check(overlap).findings)

    cold = splits.cold_items(dataset)
    leak = cold.test_rows[np.isin(cold.test.item, cold.settings["cold_items"])][:3]
    leaky = with_rows(
        cold, train_rows=np.sort(np.append(cold.train_rows, leak)), test_rows=np.setdiff1d(cold.test_rows, leak)
    )
    assert "3 events of cold items of test" in " ".join(splits.check(leaky).findings)

    temporal = splits.temporal(dataset)
    late = temporal.test_rows[:2]
    leaky = with_rows(
        temporal, train_rows=np.append(temporal.train_rows, late), test_rows=np.setdiff1d(temporal.test_rows, late)
    )
    assert "2 events before test are not earlier" in " ".join(splits.check(leaky).findings)

    repeated = splits.random(make_dataset(repeats=True))
    unused = np.setdiff1d(np.arange(EVENTS), np.concatenate([repeated.train_rows, repeated.validation_rows]))
    leaky = with_rows(repeated, test_rows=unused)
    report = splits.check(leaky)
    assert "repeat a (user, item) pair" in " ".join(report.findings)
    with pytest.raises(UserError, match="leaks"):
        report.raise_if_leaky()
    splits.check(clean).raise_if_leaky()


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("randm", {}, "Did you mean 'random'"),
        ("random", {"tset": 0.2}, "Did you mean 'test'"),
        ("random", {"test": 1.0}, "test = 1.0 is not a share"),
        ("random", {"test": 0.0}, "test = 0.0 is not a share"),
        ("random", {"validation": float("nan")}, "validation = nan is not a share"),
        ("random", {"test": 1e-6}, "leaves no test events"),
        ("random", {"seed": -1}, "seed = -1"),
        ("official/c", {}, "Unknown fold of toy 'c'"),
        ("cold_items", {"share": 0.0}, "share = 0.0"),
        ("cold_items", {"share": 0.001}, "is none"),
        ("leave_last_out", {"minimum": 2}, "minimum = 2"),
    ],
)
def test_impossible_requests(rule: str, options: dict, message: str) -> None:
    with pytest.raises(UserError) as raised:
        splits.make(make_dataset(), rule, **options)
    assert message in str(raised.value)


@pytest.mark.parametrize("rule", ["temporal", "temporal_cold_items", "leave_last_out"])
def test_rules_of_time_need_timestamps(rule: str) -> None:
    with pytest.raises(UserError, match="has no timestamps"):
        splits.make(make_dataset(times=False), rule)


def test_official_needs_recorded_folds() -> None:
    dataset = dataclasses.replace(make_dataset(), info={})
    with pytest.raises(UserError, match="has no official split"):
        splits.official(dataset)
