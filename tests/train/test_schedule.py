"""Solve, fine-tune, solve: a bundle that ranks, folds users in, places new texts, and comes back from disk."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax.bundle import Bundle, load_vectors
from ltrec_jax.config import ScheduleConfig
from ltrec_jax.encoder.catalogue import encode_catalogue
from ltrec_jax.model.head import Head
from ltrec_jax.solve import fold_in
from ltrec_jax.train.fit import FROZEN_TEXT, fit
from ltrec_jax.train.problem import load_problem


def with_schedule(config, **changes):
    return dataclasses.replace(config, schedule=ScheduleConfig(goal="whole_data", **changes))


@pytest.fixture(scope="module")
def solved(small_split, small_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("solved") / "run"
    return out, fit(small_split, with_schedule(small_config, steps="solve"), out)


def test_a_solved_bundle_comes_back_from_disk(solved):
    out, bundle = solved
    loaded = Bundle.load(out / "bundle")
    users = np.arange(4)
    np.testing.assert_array_equal(loaded.score(users), bundle.score(users))
    assert loaded.prior is not None
    for field in ("precision", "mean", "weight_I"):
        np.testing.assert_array_equal(getattr(loaded.prior, field), getattr(bundle.prior, field))
    assert (loaded.prior.explicit, loaded.prior.ridge) == (False, bundle.prior.ridge)
    assert loaded.prior.covariance is None
    assert not loaded.predicts_ratings
    assert not loaded.vectors.predicts_ratings


def test_a_training_user_folded_in_has_the_bundles_vector(solved):
    _, bundle = solved
    for user in range(5):
        items, ratings = bundle.history.of(user)
        liked = items[ratings >= 4]
        design, target = fold_in.events(
            bundle.prior, liked, None, 0.0, bundle.vectors.item_vectors, bundle.vectors.item_biases
        )
        found = fold_in.fold_in(bundle.prior, liked, design, target)
        np.testing.assert_allclose(found, bundle.vectors.user_vectors[user], atol=2e-4)


def test_the_head_places_a_never_liked_items_text_where_the_item_stands(solved, small_split):
    _, bundle = solved
    train = small_split.train
    cold = np.setdiff1d(np.arange(bundle.num_items), train.item[train.rating >= 4])
    assert len(cold)
    problem = load_problem(small_split, bundle.config)
    pooled = encode_catalogue(bundle.encoder, problem.tokens.take(cold), progress=False)
    anchor, _ = Head(bundle.vectors.item_vectors.shape[1]).apply({"params": bundle.head}, pooled)
    np.testing.assert_allclose(anchor, bundle.vectors.item_vectors[cold], atol=1e-5)


@pytest.mark.slow
def test_ratings_by_the_schedule_learn_and_come_back_from_disk(small_split, small_config, tmp_path):
    schedule = ScheduleConfig(steps="solve_tune_solve", goal="explicit", trainable="top:1", epochs=1)
    bundle = fit(small_split, dataclasses.replace(small_config, schedule=schedule), tmp_path / "run")
    train = small_split.train
    error = bundle.score_pairs(train.user, train.item) - train.rating
    assert np.sqrt((error**2).mean()) < train.rating.std()
    loaded = Bundle.load(tmp_path / "run" / "bundle")
    assert loaded.predicts_ratings
    assert loaded.prior is not None
    np.testing.assert_array_equal(loaded.prior.covariance, bundle.prior.covariance)
    # A text alone stands nearer to its item's row than the mean row does.
    pooled = np.asarray(bundle.text_vectors, np.float32)
    anchor, bias = Head(bundle.vectors.item_vectors.shape[1]).apply({"params": bundle.head}, pooled)
    placed = np.column_stack([bias, anchor])
    rows = np.column_stack([bundle.vectors.item_biases, bundle.vectors.item_vectors])
    assert ((placed - rows) ** 2).sum() < ((rows.mean(axis=0) - rows) ** 2).sum()


@pytest.mark.slow
@pytest.mark.parametrize("tune_on", ["items", "pairs"])
def test_the_whole_schedule_moves_the_encoder_and_repeats(small_split, small_config, tmp_path, tune_on):
    config = with_schedule(small_config, steps="solve_tune_solve", tune_on=tune_on, trainable="top:1", epochs=2)
    bundles = [fit(small_split, config, tmp_path / name) for name in ("one", "two")]
    before = load_problem(small_split, config).encoder.params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"]
    after = bundles[0].encoder.params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"]
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(bundles[0].vectors.item_vectors, bundles[1].vectors.item_vectors)
    frozen = load_vectors(tmp_path / "one" / FROZEN_TEXT)
    assert not frozen.predicts_ratings
    assert frozen.item_vectors.shape == bundles[0].vectors.item_vectors.shape
