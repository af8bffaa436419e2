"""A kept solve comes back bit for bit, for the problem it was of alone."""

import dataclasses
import types

import numpy as np
import pytest

from ltrec_jax.config import ScheduleConfig
from ltrec_jax.errors import UserError
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.model.words import Words
from ltrec_jax.solve.anchored_model import Anchors
from ltrec_jax.solve.fold_in import UserPrior
from ltrec_jax.solve.user_features import UserFeatures
from ltrec_jax.train import kept_solves
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.solves import Solved
from ltrec_jax.train.user_texts import UserTexts

KEY = bytes(range(32))
WITH_WORDS = types.SimpleNamespace(lexical=object(), words_IxR=np.ones((4, 2), np.float32))


def solved(*, explicit, words):
    rng = np.random.default_rng(0)

    def some(*shape, kind=np.float32):
        return rng.normal(size=shape).astype(kind)

    more = {"newcomer": some(3, kind=np.float64)}
    if explicit:
        terms = ("base", "away", "own", "count", "limits", "history", "singular", "noise")
        more = {"covariance": some(4, 3, 3, kind=np.float64), "cross": some(4, 3, kind=np.float64)}
        more["features"] = UserFeatures(**{name: some(3) for name in terms})
    return Solved(
        vectors=Vectors(0.1, some(5, 2), some(5), some(4, 2), some(4), explicit),
        item_rows=some(4, 3),
        counts=np.arange(4),
        # Not contiguous, as a solve may leave it.
        anchors=Anchors(some(6), some(8, 4).T, some(8, 3), 0.3 if words else 0.0),
        head={"projection": some(6, 2), "mu": np.asarray(0.1, np.float32)},
        prior=UserPrior(explicit, some(3, 3, kind=np.float64), some(3), some(4), 0.0 if explicit else 0.7, **more),
        words=Words(WITH_WORDS.lexical, some(2, 2), some(2), WITH_WORDS.words_IxR) if words else None,
    )


def assert_same(found, expected):
    assert type(found) is type(expected)
    if dataclasses.is_dataclass(expected):
        found, expected = ({f.name: getattr(x, f.name) for f in dataclasses.fields(x)} for x in (found, expected))
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("words", [False, True])
def test_a_result_comes_back_bit_for_bit(tmp_path, explicit, words):
    expected = solved(explicit=explicit, words=words)
    kept_solves.keep(tmp_path / "below" / "solve", KEY, expected)
    assert_same(kept_solves.read(tmp_path / "below" / "solve", KEY, WITH_WORDS), expected)
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["solve"]


def test_another_key_or_no_file_is_none(tmp_path):
    assert kept_solves.read(tmp_path / "solve", KEY, WITH_WORDS) is None
    kept_solves.keep(tmp_path / "solve", KEY, solved(explicit=True, words=False))
    assert kept_solves.read(tmp_path / "solve", KEY[::-1], WITH_WORDS) is None


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    kept_solves.keep(tmp_path / "solve", KEY, solved(explicit=True, words=False))
    (tmp_path / "solve").write_bytes((tmp_path / "solve").read_bytes()[:-8])
    with pytest.raises(UserError, match=r"solve is damaged.*Remove that file to solve anew"):
        kept_solves.read(tmp_path / "solve", KEY, WITH_WORDS)


def test_the_key_is_of_all_that_a_solve_depends_on(small_split, small_config):
    config = dataclasses.replace(small_config, schedule=ScheduleConfig(goal="whole_data"))
    problem = load_problem(small_split, config)
    features = problem.features_IxE
    anchors = solved(explicit=False, words=False).anchors
    bayes = dataclasses.replace(config.bayes, iterations=config.bayes.iterations + 1)
    fewer = dataclasses.replace(small_split, train_rows=small_split.train_rows[1:])
    items = small_split.dataset.items.assign(year=1999)
    other = dataclasses.replace(small_split, dataset=dataclasses.replace(small_split.dataset, items=items))
    of_users = UserTexts(problem.tokens.take(np.arange(2)), np.zeros(problem.dataset.num_users, np.int32))
    keys = [
        kept_solves.key(problem, features, None),
        kept_solves.key(problem, features + 1, None),
        kept_solves.key(problem, features, anchors),
        kept_solves.key(problem, features, dataclasses.replace(anchors, center_E=anchors.center_E + 1)),
        kept_solves.key(dataclasses.replace(problem, config=dataclasses.replace(config, bayes=bayes)), features, None),
        kept_solves.key(problem.on(fewer), features, None),
        kept_solves.key(problem.on(other), features, None),
        kept_solves.key(dataclasses.replace(problem, words_IxR=features), features, None),
        kept_solves.key(dataclasses.replace(problem, users=of_users, profiles_TxE=features[:2]), features, None),
    ]
    assert len(set(keys)) == len(keys)
    assert kept_solves.key(problem.on(small_split), features.copy(), None) == keys[0]
