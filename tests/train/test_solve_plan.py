"""What a plan says of a solve against the arrays that a solve makes."""

import dataclasses

import jax
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.config import BayesConfig, ScheduleConfig, WholeDataConfig
from ltrec_jax.solve import bayes, row_solve, side_information
from ltrec_jax.train import solve_plan, solves
from ltrec_jax.train.problem import load_problem


def problem_of(small_split, small_config, goal="explicit", **changes):
    config = dataclasses.replace(small_config, schedule=ScheduleConfig(goal=goal), **changes)
    return load_problem(small_split, config, dry=True, spread=parallel.choose("jit"))


@pytest.mark.parametrize(("devices", "width"), [(1, 3), (1, 200), (2, 20)])
def test_entries_are_those_of_the_blocks(monkeypatch, devices, width):
    monkeypatch.setattr(row_solve, "BLOCK_FLOATS", 4000)
    row = np.random.default_rng(0).zipf(1.5, 700) % 50
    spread = parallel.choose("jit" if devices == 1 else "pmap", count=devices)
    blocks = row_solve.make_blocks(row, row, None, 60, width=width, spread=spread)
    counts = np.bincount(row, minlength=60)
    found = row_solve.block_entries(counts, width=width, devices=devices)
    assert found == sum(block.column.size for block in blocks.blocks) > len(row)


def test_arrays_of_a_rating_solve_fit_into_what_is_told(small_split, small_config):
    problem = problem_of(small_split, small_config)
    train, dataset, settings = problem.split.train, problem.dataset, problem.config.bayes
    rng, shape = np.random.default_rng(0), problem.features_IxE.shape
    users, items = side_information.of_ratings(
        train.user, train.item, dataset.num_users, dataset.num_items, text_IxE=rng.normal(size=shape)
    )
    assert solve_plan.side_widths(problem) == (users.columns.shape[1], items.columns.shape[1])
    width = settings.factors + 1
    ratings, sides = bayes._prepare(
        train.user, train.item, train.rating, users, items, width, 55, settings, problem.spread
    )
    state = jax.eval_shape(
        lambda: bayes.bayes_variational.start(
            *sides, bayes._noise_prior(ratings, np.dtype(np.float32)), jax.random.key(0)
        )
    )
    blocks = (ratings.users.blocks, ratings.items.blocks)
    held = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves((blocks, sides, state, state)))
    # Not much more: sums and matrices of the rows in work are told too.
    assert held < solve_plan.solve_cost(problem).bytes < 4 * held


def test_time_and_memory_grow_with_what_makes_a_solve_long(small_split, small_config):
    def cost(goal="explicit", split=small_split, **changes):
        return solve_plan.solve_cost(problem_of(split, small_config, goal, **changes))

    usual = cost()
    assert cost(bayes=BayesConfig(iterations=400)).seconds == pytest.approx(2 * usual.seconds)
    wider = cost(bayes=BayesConfig(factors=40))
    assert wider.seconds > usual.seconds
    assert wider.bytes > usual.bytes
    few, many = (cost(bayes=BayesConfig(method="gibbs", sweeps=sweeps)).seconds for sweeps in (60, 240))
    assert many == pytest.approx(4 * few)
    one, two, three = (cost("whole_data", whole_data=WholeDataConfig(alternations=n)).seconds for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    assert one < two
    fewer_rows = dataclasses.replace(small_split, train_rows=small_split.train_rows[::4])
    for goal in ("explicit", "whole_data"):
        assert cost(goal, fewer_rows).seconds < cost(goal).seconds
        assert cost(goal, fewer_rows).bytes < cost(goal).bytes


def test_the_likes_of_a_list_solve_are_each_counted_once(small_split, small_config):
    problem = problem_of(small_split, small_config, "whole_data")
    user, item = solves.distinct_likes(problem)
    assert len(np.unique(user * 1000 + item)) == len(user) == solves.counts(problem).sum()
