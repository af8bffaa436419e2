"""Users placed by their own texts: the block of a solve of ratings, for users who have rated nothing."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax.config import BayesConfig, ScheduleConfig
from ltrec_jax.data import splits
from ltrec_jax.errors import UserError
from ltrec_jax.train.fit import fit


@pytest.fixture(scope="module")
def cold_split(small_dataset):
    """A fifth of the users is cold; everybody's text tells the topic that they like, and nothing else does."""
    wish = np.array(["rocket planet", "tractor barn", "detective heist"])[np.arange(small_dataset.num_users) % 3]
    users = small_dataset.users.assign(wish=[f"{w} {n}" for n, w in enumerate(wish)])
    dataset = dataclasses.replace(small_dataset, users=users)
    return splits.cold_users(dataset, share=0.2, test=0.0, validation=0.0, seed=0)


def asking(config, user_template, **schedule):
    data = dataclasses.replace(config.data, user_template=user_template)
    solve = ScheduleConfig(**({"goal": "explicit", "steps": "solve"} | schedule))
    return dataclasses.replace(config, data=data, schedule=solve, bayes=BayesConfig(factors=2, iterations=40))


def error(bundle, events):
    return float(np.sqrt(np.mean((bundle.score_pairs(events.user, events.item) - events.rating) ** 2)))


@pytest.mark.slow
def test_a_user_without_ratings_stands_where_the_text_does(cold_split, small_config):
    cold = cold_split.test
    assert not set(cold.user) & set(cold_split.train.user)
    with_texts = fit(cold_split, asking(small_config, "the {wish}"))
    without = fit(cold_split, asking(small_config, ""))
    assert error(with_texts, cold) < 0.85 * error(without, cold)
    users = np.unique(cold.user)
    assert len(np.unique(with_texts.vectors.user_vectors[users].round(5), axis=0)) == 3
    assert len(np.unique(without.vectors.user_vectors[users].round(5), axis=0)) == 1


def test_only_a_solve_of_ratings_reads_user_texts(cold_split, small_config):
    for schedule in ({"steps": "gradient"}, {"goal": "whole_data"}):
        with pytest.raises(UserError, match=r"data\.user_template"):
            asking(small_config, "{wish}", **schedule)
    with pytest.raises(UserError, match="colour"):
        fit(cold_split, asking(small_config, "{colour}"))
