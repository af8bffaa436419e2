"""Solve, fine-tune, solve: a bundle that ranks, folds users in, places new texts, and comes back from disk."""

import dataclasses
import shutil
import signal

import numpy as np
import pytest

from ltrec_jax import bundle as bundles
from ltrec_jax.bundle import Bundle, load_vectors
from ltrec_jax.config import BayesConfig, Config, ScheduleConfig, TrainConfig, WholeDataConfig
from ltrec_jax.encoder.catalogue import encode_catalogue
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.model.head import Head
from ltrec_jax.serve.service import Service
from ltrec_jax.solve import fold_in
from ltrec_jax.train import fit as fitting
from ltrec_jax.train import schedule, solves
from ltrec_jax.train.fit import FROZEN_TEXT, fit
from ltrec_jax.train.item_phase import ITEMS
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.tracking import read_rows


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
    for field in ("precision", "mean", "weight_I", "newcomer"):
        np.testing.assert_array_equal(getattr(loaded.prior, field), getattr(bundle.prior, field))
    assert (loaded.prior.explicit, loaded.prior.ridge) == (False, bundle.prior.ridge)
    assert loaded.prior.covariance is None
    assert not loaded.predicts_ratings
    assert not loaded.vectors.predicts_ratings


@pytest.mark.parametrize("where", ["solve", "bundle"])
def test_a_signal_beside_the_steps_stops_cleanly_and_the_run_can_be_resumed(
    solved, small_split, small_config, tmp_path, monkeypatch, where
):
    config, out = with_schedule(small_config, steps="solve"), tmp_path / "run"
    place, name = {"solve": (schedule, "solve"), "bundle": (bundles, "write_table")}[where]
    with monkeypatch.context() as patched, pytest.raises(StoppedError, match=r"SIGTERM.* saved in .*run.*--resume"):
        patched.setattr(place, name, lambda *_: signal.raise_signal(signal.SIGTERM))
        fit(small_split, config, out)
    assert {path.name for path in out.iterdir()} == {"config.toml", "metrics.jsonl"}
    resumed = fit(small_split, config, out, resume=True)
    np.testing.assert_array_equal(resumed.vectors.user_vectors, solved[1].vectors.user_vectors)


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


def ratings(config, **changes):
    """Settings under which ratings are solved for in a moment."""
    bayes = BayesConfig(**({"factors": 2, "iterations": 10, "gibbs_factors": 2, "sweeps": 20, "burn_in": 10} | changes))
    schedule = ScheduleConfig(goal="explicit", trainable="top:1", epochs=3, batch_items=16)
    return dataclasses.replace(config, schedule=schedule, bayes=bayes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vb", "gibbs"])
def test_ratings_by_the_schedule_learn_and_come_back_from_disk(
    small_split, small_config, tmp_path, method, monkeypatch
):
    monkeypatch.setattr(schedule, "WORSE", np.inf)
    config = ratings(small_config, method=method)
    bundle = fit(small_split, config, tmp_path / "run")
    assert bundle.vectors.item_vectors.shape[1] == solves.width(load_problem(small_split, config)) == 2
    train = small_split.train
    error = bundle.score_pairs(train.user, train.item) - train.rating
    assert np.sqrt((error**2).mean()) < train.rating.std()
    loaded = Bundle.load(tmp_path / "run" / "bundle")
    assert loaded.predicts_ratings
    assert loaded.prior is not None
    np.testing.assert_array_equal(loaded.prior.precision, bundle.prior.precision)
    assert (loaded.prior.covariance is None) == (method == "gibbs")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert list(dict.fromkeys(row["phase"] for row in rows)) == [schedule.FIRST, ITEMS, schedule.SECOND]
    validation = small_split.validation
    error = bundle.score_pairs(validation.user, validation.item) - validation.rating
    assert rows[-1]["validation_rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert (tmp_path / "run" / FROZEN_TEXT).is_file()
    # A text alone stands nearer to its item's row than the mean row does.
    pooled = np.asarray(bundle.text_vectors, np.float32)
    anchor, bias = Head(bundle.vectors.item_vectors.shape[1]).apply({"params": bundle.head}, pooled)
    placed = np.column_stack([bias, anchor])
    rows = np.column_stack([bundle.vectors.item_biases, bundle.vectors.item_vectors])
    assert ((placed - rows) ** 2).sum() < ((rows.mean(axis=0) - rows) ** 2).sum()


@pytest.mark.slow
@pytest.mark.parametrize("tune_on", ["items", "pairs"])
def test_the_whole_schedule_moves_the_encoder_and_repeats(small_split, small_config, tmp_path, tune_on):
    config = with_schedule(small_config, tune_on=tune_on, trainable="top:1", epochs=2)
    bundles = [fit(small_split, config, tmp_path / name) for name in ("one", "two")]
    before = load_problem(small_split, config).encoder.params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"]
    after = bundles[0].encoder.params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"]
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(bundles[0].vectors.item_vectors, bundles[1].vectors.item_vectors)
    frozen = load_vectors(tmp_path / "one" / FROZEN_TEXT)
    assert not frozen.predicts_ratings
    assert frozen.item_vectors.shape == bundles[0].vectors.item_vectors.shape


@pytest.mark.parametrize(
    ("cold", "share"),
    [("text_map", 0.0), ("ridge", 0.0), ("kernel_ridge", 0.0), pytest.param("text_map", 0.3, marks=pytest.mark.slow)],
)
def test_learnt_texts_place_cold_items_and_later_texts_and_move_nothing_else(small_split, small_config, cold, share):
    whole = WholeDataConfig(alternations=1, cold=cold, lexical_share=share, lexical_rank=5)
    problem = load_problem(small_split, dataclasses.replace(with_schedule(small_config), whole_data=whole))
    first = solves.solve(problem, problem.features_IxE)
    same = solves.with_cold_items(problem, first, problem.features_IxE, first.anchors)
    np.testing.assert_allclose(same.vectors.item_vectors, first.vectors.item_vectors, atol=1e-5)
    for name in first.head:
        np.testing.assert_allclose(same.head[name], first.head[name], atol=1e-5)
    rng = np.random.default_rng(0)
    features = rng.normal(size=problem.features_IxE.shape).astype(np.float32)
    learnt = first.anchors.with_encoder(features, first.anchors.encoder_map[::-1])
    found = solves.with_cold_items(problem, first, features, learnt)
    warm = first.counts > 0
    assert not warm.all()
    np.testing.assert_array_equal(found.vectors.user_vectors, first.vectors.user_vectors)
    np.testing.assert_array_equal(found.vectors.item_vectors[warm], first.vectors.item_vectors[warm])
    assert found.prior is first.prior
    away = np.abs(found.vectors.item_vectors - first.vectors.item_vectors).max(axis=1)
    assert (away[~warm] > 1e-3).all()
    if cold != "kernel_ridge":  # whose items stand away from the projection
        anchor, _ = Head(first.vectors.item_vectors.shape[1]).apply({"params": found.head}, features)
        if share:
            anchor += problem.words_IxR @ found.words.projection
        np.testing.assert_allclose(found.vectors.item_vectors[~warm], anchor[~warm], atol=1e-5)


@pytest.mark.slow
def test_without_a_second_solve_lists_of_warm_items_are_those_of_the_frozen_encoder(
    small_split, small_config, tmp_path, monkeypatch
):
    config = with_schedule(small_config, trainable="top:1", epochs=2, solve_again=False)
    solved = []
    monkeypatch.setattr(schedule, "solve", lambda *given: solved.append(solves.solve(*given)) or solved[-1])
    bundle = fit(small_split, config, tmp_path / "run")
    assert len(solved) == 1
    frozen, warm = load_vectors(tmp_path / "run" / FROZEN_TEXT), solved[0].counts > 0
    users = np.arange(len(frozen.user_vectors))
    np.testing.assert_array_equal(bundle.score(users)[:, warm], frozen.score(users)[:, warm])
    # Cold items stand where the bundle's own encoder and head place their texts.
    pooled = encode_catalogue(bundle.encoder, load_problem(small_split, config).tokens, progress=False)
    anchor, _ = Head(bundle.vectors.item_vectors.shape[1]).apply({"params": bundle.head}, pooled)
    np.testing.assert_allclose(bundle.vectors.item_vectors[~warm], anchor[~warm], atol=1e-4)
    assert np.abs(bundle.vectors.item_vectors - frozen.item_vectors)[~warm].max() > 1e-3
    resumed = fit(small_split, config, tmp_path / "run", resume=True)
    assert len(solved) == 1
    np.testing.assert_array_equal(resumed.vectors.item_vectors, bundle.vectors.item_vectors)


@pytest.mark.slow
def test_ratings_are_tuned_on_pairs_end_to_end(small_split, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "WORSE", np.inf)
    config = ratings(small_config)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, tune_on="pairs", epochs=2))
    bundle = fit(small_split, config, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert list(dict.fromkeys(row["phase"] for row in rows)) == [schedule.FIRST, "head", "encoder", schedule.SECOND]
    losses = [row["train_rmse"] for row in rows if row["phase"] in ("head", "encoder") and "train_rmse" in row]
    assert losses[-1] < losses[0]
    layers, before = bundle.encoder.params["encoder"]["layer"], load_problem(small_split, config).encoder.params
    before = before["encoder"]["layer"]
    assert not np.array_equal(before["1"]["output"]["dense"]["kernel"], layers["1"]["output"]["dense"]["kernel"])
    np.testing.assert_array_equal(before["0"]["output"]["dense"]["kernel"], layers["0"]["output"]["dense"]["kernel"])
    assert bundle.predicts_ratings
    train, validation = small_split.train, small_split.validation
    error = bundle.score_pairs(train.user, train.item) - train.rating
    assert np.sqrt((error**2).mean()) < train.rating.std()
    error = bundle.score_pairs(validation.user, validation.item) - validation.rating
    assert rows[-1]["validation_rmse"] == pytest.approx(np.sqrt((error**2).mean()))


class StopsAt:
    """A writer of metrics that plays the part of a cluster: it raises SIGTERM after a step of the fine-tuning."""

    def write(self, step, metrics):
        if metrics["phase"] == ITEMS and step == 5:
            signal.raise_signal(signal.SIGTERM)

    def rewind(self, phase, step):
        pass

    def close(self):
        pass


@pytest.mark.slow
def test_a_schedule_that_was_stopped_ends_with_the_same_bits_and_is_traced_where_asked(
    small_split, small_config, tmp_path, monkeypatch
):
    config = ratings(small_config)
    whole = fit(small_split, config, tmp_path / "whole", profile=2)
    assert list((tmp_path / "whole" / "profile").rglob("*.xplane.pb"))
    with monkeypatch.context() as patched, pytest.raises(StoppedError, match="--resume"):
        patched.setattr(fitting, "open_writer", lambda *_: StopsAt())
        fit(small_split, config, tmp_path / "stopped")
    solved = []
    monkeypatch.setattr(schedule, "solve", lambda *given: solved.append(solves.solve(*given)) or solved[-1])
    resumed = fit(small_split, config, tmp_path / "stopped", resume=True)
    assert len(solved) == 1
    again = fit(small_split, config, tmp_path / "stopped", resume=True)
    assert len(solved) == 1
    np.testing.assert_array_equal(again.vectors.item_vectors, whole.vectors.item_vectors)
    np.testing.assert_array_equal(again.prior.covariance, whole.prior.covariance)
    for name in ("user_vectors", "item_vectors", "user_biases", "item_biases"):
        np.testing.assert_array_equal(getattr(resumed.vectors, name), getattr(whole.vectors, name))


@pytest.mark.slow
def test_fine_tuning_that_makes_validation_worse_is_not_kept(small_split, small_config, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(ratings(small_config), refit=True)
    monkeypatch.setattr(schedule, "WORSE", 0.0)
    bundle = fit(small_split, config, tmp_path / "run")
    assert "Fine-tuning is not kept: validation RMSE" in capsys.readouterr().err
    assert not (tmp_path / "run" / FROZEN_TEXT).exists()
    frozen = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps="solve"))
    solved = fit(small_split, frozen, tmp_path / "solved")
    np.testing.assert_array_equal(bundle.vectors.item_vectors, solved.vectors.item_vectors)
    assert bundle.history.counts.sum() == len(small_split.train_rows) + len(small_split.validation_rows)
    monkeypatch.setattr(schedule, "WORSE", np.inf)
    kept = fit(small_split, config, tmp_path / "kept")
    assert not np.array_equal(kept.vectors.item_vectors, solved.vectors.item_vectors)
    control = load_vectors(tmp_path / "kept" / FROZEN_TEXT)
    np.testing.assert_array_equal(control.item_vectors, solved.vectors.item_vectors)


@pytest.fixture(scope="module")
def rated(small_split, small_config):
    """A problem of ratings and its solve, with all blocks of side information."""
    problem = load_problem(small_split, ratings(small_config))
    return problem, solves.solve(problem, problem.features_IxE)


def test_ratings_that_are_all_alike_are_told(small_split, small_config, rated, capsys, monkeypatch):
    # What a solve makes of them is told by its own tests.
    monkeypatch.setattr(schedule, "solve", lambda *_: rated[1])
    events = small_split.dataset.interactions
    alike = dataclasses.replace(events, rating=np.ones_like(events.rating))
    split = dataclasses.replace(small_split, dataset=dataclasses.replace(small_split.dataset, interactions=alike))
    config = ratings(small_config)
    fit(split, dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps="solve")))
    assert "--schedule.goal whole_data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "tune_on", "unread"),
    [
        ("solve", "pairs", "train.trainable, train.epochs, train.batch_items"),
        ("solve_tune_solve", "items", "train.trainable, train.epochs, train.batch_items"),
        ("solve_tune_solve", "pairs", "train.trainable, train.epochs"),
    ],
)
def test_settings_of_gradient_training_that_are_not_read_are_told(steps, tune_on, unread, capsys):
    train = TrainConfig(trainable="none", epochs=9, batch_items=7)
    between = ScheduleConfig(goal="whole_data", steps=steps, tune_on=tune_on)
    schedule._warn_of_settings_that_are_not_read(Config(train=train, schedule=between))
    assert capsys.readouterr().err.startswith(f"Not read: {unread}. ")
    schedule._warn_of_settings_that_are_not_read(Config(schedule=between))
    assert not capsys.readouterr().err


def test_a_never_rated_item_stands_between_the_solve_and_its_text(rated):
    problem, solved = rated
    cold = problem.popularity.counts == 0
    assert cold.any()
    anchor, bias = Head(2).apply({"params": solved.head}, problem.features_IxE)
    by_text = np.column_stack([bias, anchor])
    by_solve = solved.item_rows + solved.head["intercept"]
    found = np.column_stack([solved.vectors.item_biases, solved.vectors.item_vectors])
    np.testing.assert_allclose(found[cold], (by_text + by_solve)[cold] / 2, atol=1e-5)
    np.testing.assert_allclose(found[~cold], by_solve[~cold], atol=1e-6)


def test_a_bundle_of_an_earlier_format_is_read_and_others_are_refused(solved, tmp_path):
    out, bundle = solved
    shutil.copytree(out / "bundle", tmp_path / "bundle")
    about = tmp_path / "bundle" / "bundle.json"
    written = about.read_text()
    about.write_text(written.replace('"format_version": 4', '"format_version": 2'))
    older = Bundle.load(tmp_path / "bundle")
    np.testing.assert_array_equal(older.vectors.user_vectors, bundle.vectors.user_vectors)
    assert older.prior.features is None
    about.write_text(written.replace('"format_version": 4', '"format_version": 1'))
    with pytest.raises(UserError, match="format 1; this version of ltrec_jax reads 2, 3, 4"):
        Bundle.load(tmp_path / "bundle")


def test_a_training_user_folded_in_through_a_served_bundle_of_ratings_is_that_user(small_split, small_config, tmp_path):
    config = ratings(small_config)
    solve = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps="solve"))
    ages = small_split.dataset.users.assign(age=np.arange(120) % 7 + 20)
    split = dataclasses.replace(small_split, dataset=dataclasses.replace(small_split.dataset, users=ages))
    fit(split, solve, tmp_path / "run")
    bundle = Bundle.load(tmp_path / "run" / "bundle")
    v, prior, service = bundle.vectors, bundle.prior, Service(bundle)
    away, without = [], []
    for user in range(20):
        items, stars = bundle.history.of(user)
        design, target = fold_in.events(prior, items, stars, v.mu, v.item_vectors, v.item_biases)
        own, scale = prior.of(items, user), prior.scale_of(user)
        row = np.array([v.user_biases[user], *v.user_vectors[user]])
        away.append(np.abs(fold_in.fold_in(own, items, design, target, scale=scale) - row).max())
        without.append(np.abs(fold_in.fold_in(prior, items, design, target) - row).max())
        # Served as somebody new: without the attributes, and at a noise of 1.
        found = service.users.from_ratings(items.tolist(), stars.tolist())
        expected = fold_in.fold_in(prior.of(items), items, design, target)
        np.testing.assert_allclose([found.bias, *found.vector], expected, rtol=1e-4, atol=1e-5)
    assert max(away) < 1e-3 < 0.05 < max(without)
    # Feedback moves a known user as if the item had been among the events: the same map, the same noise.
    items, stars = bundle.history.of(0)
    other = int(np.setdiff1d(np.flatnonzero(bundle.counts), items)[0])
    service.feedback("u0", f"i{other}", 1.0)
    items, stars = np.append(items, other), np.append(stars, 1.0)
    design, target = fold_in.events(prior, items, stars, v.mu, v.item_vectors, v.item_biases)
    expected = fold_in.fold_in(prior.of(items, 0), items, design, target, scale=prior.scale_of(0))
    found = service.users.profile("u0")
    np.testing.assert_allclose([found.bias, *found.vector], expected, atol=2e-3)
    service.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lists", "vb", "gibbs"])
def test_a_solve_in_float64_is_served_in_float32(small_split, small_config, method):
    config = with_schedule(small_config) if method == "lists" else ratings(small_config, method=method)
    found = {}
    for precision in ("float32", "float64"):
        schedule_ = dataclasses.replace(config.schedule, solve_precision=precision)
        problem = load_problem(small_split, dataclasses.replace(config, schedule=schedule_))
        found[precision] = solves.solve(problem, problem.features_IxE)
        vectors = found[precision].vectors
        for name in ("user_vectors", "user_biases", "item_vectors", "item_biases"):
            assert getattr(vectors, name).dtype == np.float32
    single, double = (solved.vectors for solved in found.values())
    assert not np.array_equal(single.user_vectors, double.user_vectors)
    if method == "lists":  # the others' starts are drawn, and other numbers in float64
        np.testing.assert_allclose(single.score(np.arange(5)), double.score(np.arange(5)), atol=2e-3)


def test_a_solve_of_ratings_reads_the_blocks_that_are_named(rated):
    problem, solved = rated

    def solve(*blocks):
        bayes = dataclasses.replace(problem.config.bayes, blocks=blocks)
        asked = dataclasses.replace(problem, config=dataclasses.replace(problem.config, bayes=bayes))
        return solves.solve(asked, asked.features_IxE).vectors.item_vectors

    assert np.abs(solved.vectors.item_vectors - solve("text", "popularity")).max() > 1e-3
    with pytest.raises(UserError, match=r"'title'.*history, popularity, singular, text"):
        solve("title")


def test_a_solve_has_no_steps_to_trace(small_split, small_config):
    config = ratings(small_config)
    frozen = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps="solve"))
    with pytest.raises(UserError, match="the schedule solve has none"):
        fit(small_split, frozen, profile=2)
