import dataclasses

import numpy as np
import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.serve.service import NEW, recommend
from ltrec_jax.train.fit import fit


@pytest.fixture(scope="module")
def bundle(small_split, small_config):
    return fit(small_split, dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, epochs=0)))


def test_the_best_unseen_items_come_first(bundle):
    found = recommend(bundle, "u7", k=10)
    seen, _ = bundle.history.of(7)
    scores = np.asarray(bundle.score(np.array([7])))[0].copy()
    scores[seen] = -np.inf
    expected = np.argsort(-scores, kind="stable")[:10]
    assert [one.item_id for one in found] == [f"i{i}" for i in expected]
    np.testing.assert_allclose([one.score for one in found], scores[expected], rtol=1e-6)
    assert [one.rank for one in found] == list(range(1, 11))


def test_reasons_are_liked_items_nearest_first(bundle):
    items, ratings = bundle.history.of(7)
    liked = {bundle.items["text"].iloc[i] for i, r in zip(items, ratings, strict=True) if r >= bundle.positive_rating}
    for one in recommend(bundle, "u7", k=5, reasons=2):
        assert 0 < len(one.resembles) <= 2
        assert set(one.resembles) <= liked


def test_groups_tell_new_items(bundle):
    groups = {one.item_id: one.group for one in recommend(bundle, "u7", k=bundle.num_items)}
    for item in range(80, 90):
        assert groups[f"i{item}"] == NEW
    assert set(groups.values()) <= {"head", "mid", "tail", NEW}


def test_fewer_come_back_when_fewer_are_unseen(bundle):
    seen, _ = bundle.history.of(7)
    assert len(recommend(bundle, "u7", k=10_000)) == bundle.num_items - len(seen)


def test_bad_requests_are_one_clear_line(bundle):
    with pytest.raises(UserError, match=r"Unknown user 'nobody'.*such as 'u0'"):
        recommend(bundle, "nobody")
    with pytest.raises(UserError, match="k must be at least 1"):
        recommend(bundle, "u1", k=0)
