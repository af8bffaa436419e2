import numpy as np

from ltrec_jax.baselines import popularity
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.types import Recommender


def fitted():
    items = np.array([2, 2, 2, 0, 0, 3], np.int32)
    train = Interactions(np.zeros(6, np.int32), items, np.ones(6, np.float32), np.zeros(6, np.int64))
    return popularity.fit(train, 5)


def test_items_rank_by_training_count_for_everybody():
    scores = fitted().score(np.array([0, 7]))
    np.testing.assert_allclose(scores, np.log1p([[2, 0, 3, 1, 0]] * 2), rtol=1e-6)
    np.testing.assert_array_equal(fitted().score_pairs(np.array([1, 5]), np.array([2, 4])), scores[0, [2, 4]])


def test_it_is_a_recommender_that_predicts_no_ratings():
    assert isinstance(fitted(), Recommender)
    assert fitted().predicts_ratings is False
    assert fitted().score(np.array([0])).dtype == np.float32
