import dataclasses

import numpy as np
import pandas as pd
import pytest

from ltrec_jax.data.history import History
from ltrec_jax.errors import UserError
from ltrec_jax.serve.batch import recommend_all
from ltrec_jax.serve.service import Query


def test_everybody_gets_the_services_list(bundle, service, tmp_path):
    rows = recommend_all(bundle, tmp_path / "recs.parquet", k=7)
    table = pd.read_parquet(tmp_path / "recs.parquet")
    assert len(table) == rows == 7 * bundle.num_users
    answers = service.recommend([Query(user=user, k=7) for user in bundle.users["user_id"]])
    assert table["user_id"].tolist() == [user for user in bundle.users["user_id"] for _ in range(7)]
    assert table["item_id"].tolist() == [one.item_id for answer in answers for one in answer]
    assert table["group"].tolist() == [one.group for answer in answers for one in answer]
    np.testing.assert_array_equal(table["score"], np.float32([one.score for answer in answers for one in answer]))
    np.testing.assert_array_equal(table["rank"].to_numpy().reshape(-1, 7)[0], np.arange(1, 8))


def test_who_has_seen_everything_has_no_row(bundle, tmp_path):
    count = bundle.num_items
    everything = History(
        np.r_[0, np.full(bundle.num_users, count)], np.arange(count, dtype=np.int32), np.ones(count, np.float32)
    )
    recommend_all(dataclasses.replace(bundle, history=everything), tmp_path / "recs.parquet", k=200)
    table = pd.read_parquet(tmp_path / "recs.parquet")
    assert "u0" not in set(table["user_id"])
    assert (table.groupby("user_id").size() == count).all()


def test_a_bad_k_writes_nothing(bundle, tmp_path):
    with pytest.raises(UserError, match="k must be at least 1"):
        recommend_all(bundle, tmp_path / "recs.parquet", k=0)
    assert not list(tmp_path.iterdir())
