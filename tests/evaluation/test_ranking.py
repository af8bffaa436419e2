"""Targets and lists against a sort of every user's unseen items."""

import numpy as np
import pytest

from ltrec_jax.data.history import history
from ltrec_jax.evaluation import ranking


def test_targets_are_positive_distinct_and_not_in_the_history(new_world):
    # user 0 trains on item 1 and tests it again; item 3 is tested twice; user 2's only test rating is low
    world = new_world([0, 0, 0, 0, 0, 1, 2], [1, 1, 3, 3, 2, 0, 0], [5, 5, 4, 5, 3, 4, 1], [1, 2, 3, 4, 5, 6])
    seen = history(world.split.train, 14)
    wanted = ranking.targets(world.split.test, seen, 20, 4.0)
    assert wanted.users.tolist() == [0, 1]
    assert [(int(wanted.users[row]), int(item)) for row, item in zip(wanted.row_N, wanted.item_N, strict=True)] == [
        (0, 3),
        (1, 0),
    ]
    assert wanted.repeats == 1
    assert wanted.relevant(np.arange(20) > 2).tolist() == [1, 0]


@pytest.mark.parametrize("block_users", [1, 5, 64])
def test_lists_equal_a_sort_of_the_unseen_items(world, block_users):
    split, model = world.split, world.random_model()
    seen = history(split.train, 14)
    wanted = ranking.targets(split.test, seen, 20, 4.0)
    found = ranking.rank(model, wanted, seen, 20, 8, candidates={"all": None}, block_users=block_users)["all"]
    assert 5 < len(wanted.users) < 14
    for row, user in enumerate(wanted.users):
        unseen = [i for i in range(20) if i not in seen.of(user)[0]]
        expected = sorted(unseen, key=lambda i: (-model.table[user, i], i))[:8]
        liked = {
            int(i)
            for u, i, r in zip(split.test.user, split.test.item, split.test.rating, strict=True)
            if u == user and r >= 4
        }
        listed = [int(i) for i in found.items[row] if i >= 0]
        assert listed == expected
        assert found.hits[row].tolist() == [i in liked for i in listed] + [False] * (8 - len(listed))


def test_lists_from_a_part_of_the_catalogue_hold_nothing_else(world):
    seen = history(world.split.train, 14)
    wanted = ranking.targets(world.split.test, seen, 20, 4.0)
    even = np.arange(20) % 2 == 0
    model = world.random_model()
    found = ranking.rank(model, wanted, seen, 20, 20, candidates={"all": None, "even": even}, block_users=5)
    for whole, part in zip(found["all"].items, found["even"].items, strict=True):
        assert [i for i in whole if i >= 0 and i % 2 == 0] == [i for i in part if i >= 0]


def test_nobody_to_rank_for(world):
    seen = history(world.split.train, 14)
    wanted = ranking.targets(world.split.test, seen, 20, 9.0)
    found = ranking.rank(world.random_model(), wanted, seen, 20, 8, candidates={"all": None}, block_users=4)["all"]
    assert found.items.shape == found.hits.shape == (0, 8)


def test_a_nan_names_the_model(world):
    seen = history(world.split.train, 14)
    wanted = ranking.targets(world.split.test, seen, 20, 4.0)
    with pytest.raises(ValueError, match=r"'broken'.*NaN"):
        ranking.rank(
            world.model(np.full((14, 20), np.nan)),
            wanted,
            seen,
            20,
            3,
            candidates={"all": None},
            block_users=4,
            name="broken",
        )
