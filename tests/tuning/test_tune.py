"""The search: chosen on validation and nothing else, resumable, never worse than the defaults, kept as TOML."""

import dataclasses
import json

import numpy as np
import pytest

from ltrec_jax import config as configuration
from ltrec_jax.baselines import registry
from ltrec_jax.baselines.item_texts import ItemTexts
from ltrec_jax.commands.runs import chosen_config
from ltrec_jax.config import Config
from ltrec_jax.data import splits
from ltrec_jax.data.dataset import Interactions
from ltrec_jax.data.popularity import popularity
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.evaluation import report
from ltrec_jax.train.fit import fit
from ltrec_jax.train.problem import load_problem
from ltrec_jax.tuning import candidates, search, spaces
from ltrec_jax.tuning.judge import judge, validation_as_test
from ltrec_jax.tuning.tune import trials_table, tune

MODELS = ("itemknn", "text-knn")


def texts():
    topics = np.eye(3, dtype=np.float32)[np.arange(90) % 3]
    own = 0.3 * np.random.default_rng(0).random((90, 2)).astype(np.float32)
    return ItemTexts(lambda: np.hstack([topics, own]), lambda: topics)


@pytest.fixture(scope="module")
def split(small_dataset):
    return splits.cold_items(small_dataset, share=0.1, validation=0.2, validation_share=0.2, seed=1)


@pytest.fixture(scope="module")
def tuned(split, small_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return out, tune(split, small_config, MODELS, out, trials=4, texts=texts())


def told(found):
    """What a search found, without its times."""
    return {name: [dataclasses.replace(trial, seconds=0.0) for trial in one.trials] for name, one in found.items()}


def test_the_test_part_is_never_looked_at(split, small_config, tmp_path, tuned):
    """Other users, items and ratings in the test rows change nothing at all."""
    events, rng = split.dataset.interactions, np.random.default_rng(0)
    poisoned = {name: np.array(column) for name, column in events.columns().items()}
    count = len(split.test_rows)
    for name, most in (("user", 120), ("item", 90), ("rating", 6)):
        poisoned[name][split.test_rows] = rng.integers(0, most, count)
    dataset = dataclasses.replace(split.dataset, interactions=Interactions(**poisoned))
    again = tune(dataclasses.replace(split, dataset=dataset), small_config, MODELS, tmp_path, trials=4, texts=texts())
    assert told(again) == told(tuned[1])


def test_resumed_equals_uninterrupted(split, small_config, tmp_path, tuned, monkeypatch):
    def killed(*arguments, **settings):
        raise KeyboardInterrupt

    first = tune(split, small_config, MODELS, tmp_path, trials=2, texts=texts())
    with monkeypatch.context() as patch:
        patch.setattr(registry.item_knn, "fit", killed)
        patch.setattr(registry, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(split, small_config, MODELS, tmp_path, trials=4, texts=texts())
    resumed = tune(split, small_config, MODELS, tmp_path, trials=4, texts=texts())
    assert told(resumed) == told(tuned[1])
    assert told(first)["itemknn"] == told(resumed)["itemknn"][:2]


def test_the_defaults_come_first_and_are_not_beaten_by_what_is_chosen(tuned):
    assert {name: len(found.trials) for name, found in tuned[1].items()} == {"itemknn": 4, "text-knn": 2}
    for name, found in tuned[1].items():
        default = registry.find(name).settings()
        assert dict(found.trials[0].values) == {field: getattr(default, field) for field in found.trials[0].values}
        assert found.best.value == max(trial.value for trial in found.trials) >= found.trials[0].value


def test_settings_chosen_earlier_come_next_and_are_not_beaten_either(split, small_config, tmp_path, tuned):
    earlier = {
        "itemknn": registry.find("itemknn").settings(neighbours=17, shrink=2.5),
        "text-knn": registry.find("text-knn").settings(center=False),
    }
    found = tune(split, small_config, MODELS, tmp_path, trials=4, texts=texts(), earlier=earlier)
    # A space of few points has them anyway, once each; other searches spend a trial of their budget.
    assert {name: len(one.trials) for name, one in found.items()} == {"itemknn": 4, "text-knn": 2}
    before = tuned[1]["itemknn"].trials
    first, second = found["itemknn"].trials[:2]
    assert (first.values, first.value) == (before[0].values, before[0].value)
    assert second.values == {"neighbours": 17, "shrink": 2.5} != before[1].values
    assert found["itemknn"].best.value >= second.value


def test_what_was_searched_on_is_kept(split, tuned):
    about = tuned[1]["itemknn"].about
    assert (about["dataset"], about["objective"], about["seed"]) == (split.dataset.fingerprint, "sum", 0)
    assert json.loads((tuned[0] / "trials.json").read_text())["itemknn"]["about"] == about


def test_figures_are_those_of_the_report(split, tuned):
    chosen_on = validation_as_test(split)
    counts = popularity(chosen_on.train.item, chosen_on.dataset.num_items)
    model = registry.fit("itemknn", candidates.training(chosen_on, 4.0))
    groups = report.evaluate(
        {"m": model}, chosen_on, counts.masks(), counts.counts, primary="m", ks=(20,), positive_rating=4.0
    ).models["m"]
    found = tuned[1]["itemknn"].trials[0].figures
    assert found["overall"] == pytest.approx(groups.overall["ndcg@20"].value)
    for part, group in {"warm": "warm among warm", "tail": "tail among warm", "cold": "cold among cold"}.items():
        assert found[part] == pytest.approx(groups.groups[group]["ndcg@20"].value)
    assert found["sum"] == pytest.approx(found["warm"] + found["tail"] + found["cold"])


def test_the_best_settings_can_be_read_back(tuned):
    out, found = tuned
    kept = registry.settings_from_toml((out / "baselines.toml").read_text(), "baselines.toml")
    assert set(kept) == set(MODELS)
    assert {f: getattr(kept["itemknn"], f) for f in ("neighbours", "shrink")} == dict(found["itemknn"].best.values)
    assert json.loads((out / "trials.json").read_text())["itemknn"]["best"]["value"] == found["itemknn"].best.value
    assert trials_table(found["itemknn"]).row_count == 4


def test_models_can_be_added_to_a_search(split, small_config, tmp_path):
    for name in ("random", "text-knn"):
        tune(split, small_config, (name,), tmp_path, trials=1, texts=texts())
    assert set(registry.read_settings(tmp_path / "baselines.toml")) == {"random", "text-knn"}
    assert set(json.loads((tmp_path / "trials.json").read_text())) == {"random", "text-knn"}


def test_another_search_in_the_same_directory_is_refused(split, small_config, tuned):
    with pytest.raises(UserError, match="another objective"):
        tune(split, small_config, MODELS, tuned[0], objective="warm", texts=texts())
    with pytest.raises(UserError, match="another seed"):
        tune(split, dataclasses.replace(small_config, seed=5), MODELS, tuned[0], texts=texts())


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        (("easy",), {}, "Did you mean 'ease'"),
        ((), {}, "at least one model"),
        (("itemknn",), {"objective": "rmse"}, "predicts no ratings"),
        (("itemknn",), {"objective": "ndcg"}, "Unknown objective"),
    ],
)
def test_mistakes_are_told(split, small_config, tmp_path, models, settings, message):
    with pytest.raises(UserError, match=message):
        tune(split, small_config, models, tmp_path, trials=1, texts=texts(), **settings)


def test_without_validation_there_is_nothing_to_choose_on(split, small_config, tmp_path):
    with pytest.raises(UserError, match="never chosen on test"):
        tune(split.with_validation_in_train(), small_config, MODELS, tmp_path, texts=texts())


def test_a_setting_that_fails_is_one_bad_trial(split, small_config, tmp_path):
    def fit(values):
        if values["user_damping"] > 5:
            raise UserError("too much")
        return known.fit(values)

    (known,) = candidates.candidates(["biases"], split, small_config, 4.0, texts())
    found = search.search(
        dataclasses.replace(known, fit=fit),
        judge(split, 4.0),
        objective="rmse",
        trials=5,
        timeout=None,
        seed=0,
        study=tmp_path / "study.db",
        about={},
    )
    failed = [trial for trial in found.trials if trial.value is None]
    assert failed
    assert {trial.error for trial in failed} == {"too much"}
    assert found.best.value == min(trial.value for trial in found.trials if trial.value is not None)


def test_a_stopped_trial_is_not_one_that_failed(split, small_config, tmp_path):
    def stop(values):
        raise StoppedError("Stopped on SIGINT")

    def searched(candidate):
        settings = {"objective": "rmse", "trials": 2, "timeout": None, "seed": 0, "about": {}}
        return search.search(candidate, judge(split, 4.0), study=tmp_path / "study.db", **settings)

    (known,) = candidates.candidates(["biases"], split, small_config, 4.0, texts())
    with pytest.raises(StoppedError):
        searched(dataclasses.replace(known, fit=stop))
    assert all(not trial.error and trial.value is not None for trial in searched(known).trials)


@pytest.mark.parametrize("section", ["bayes", "whole_data"])
def test_models_of_either_goal_are_searched_from_settings_with_words(split, small_config, section):
    schedule = dataclasses.replace(
        small_config.schedule, steps="solve", goal="explicit" if section == "bayes" else "whole_data"
    )
    words = dataclasses.replace(getattr(small_config, section), lexical_share=0.2)
    config = dataclasses.replace(small_config, schedule=schedule, **{section: words})
    wanted = ("gradient", "whole-data", "bayes", "gibbs")
    assert [one.name for one in candidates.candidates(wanted, split, config, 4.0, texts())] == list(wanted)


def test_time_is_a_budget_too(split, small_config, tmp_path):
    found = tune(split, small_config, ("itemknn",), tmp_path, trials=50, timeout=0.0, texts=texts())
    assert len(found["itemknn"].trials) == 1


def test_settings_chosen_earlier_are_tried_even_when_time_is_up(split, small_config, tmp_path):
    earlier = {"itemknn": registry.find("itemknn").settings(neighbours=17)}
    found = tune(split, small_config, ("itemknn",), tmp_path, trials=50, timeout=0.0, texts=texts(), earlier=earlier)
    assert [trial.values["neighbours"] for trial in found["itemknn"].trials][1:] == [17]


def test_a_space_that_is_tried_whole_has_a_budget_of_time_too(split, small_config, tmp_path):
    found = tune(split, small_config, ("text-knn",), tmp_path, trials=50, timeout=0.0, texts=texts())
    assert len(found["text-knn"].trials) == 1


def test_our_own_models_are_searched_the_same_way(split, small_config, tmp_path):
    found = tune(split, small_config, ("whole-data", "random"), tmp_path, trials=2, texts=texts())
    kept = configuration.from_toml((tmp_path / "whole-data.toml").read_text())
    assert kept == candidates.with_values(
        small_config, spaces.OWN_SCHEDULES["whole-data"] | found["whole-data"].best.values
    )
    assert found["whole-data"].best.value > found["random"].best.value
    assert len(found["random"].trials) == 1


def solving(config, **schedule):
    """Small settings under which the spaces of solves and schedule begin."""
    return candidates.with_values(
        config,
        {"bayes.iterations": 60, "bayes.factors": 4, "bayes.gibbs_factors": 8, "bayes.sweeps": 100}
        | {f"schedule.{name}": value for name, value in schedule.items()},
    )


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_the_solve_of_ratings_is_searched_by_its_validation_error(split, small_config, tmp_path, monkeypatch):
    """Texts are encoded once for all trials; what is written trains the model that was found best."""
    loads = []
    monkeypatch.setattr(candidates, "load_problem", lambda *given: loads.append(given) or load_problem(*given))
    found = tune(split, solving(small_config), ("bayes", "gibbs"), tmp_path, trials=1)["bayes"]
    assert found.objective == "rmse"
    assert {"bayes.factors", "bayes.iterations", "bayes.factor_sd"} <= set(found.best.values)
    assert len(loads) == 1
    assert (tmp_path / "gibbs.toml").is_file()
    kept = chosen_config(tmp_path / "bayes.toml", [], "ltrec train")
    assert (kept.schedule.steps, kept.schedule.goal, kept.bayes.method) == ("solve", "explicit", "vb")
    vectors, events = fit(split, kept).vectors, split.validation
    error = vectors.score_pairs(events.user, events.item) - events.rating
    assert np.sqrt(np.mean(error.astype(np.float64) ** 2)) == pytest.approx(found.best.value, rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("goal", "objective"), [("explicit", "rmse"), ("whole_data", "sum")])
def test_the_schedule_is_searched_with_its_fine_tuning(split, small_config, tmp_path, goal, objective):
    config = solving(small_config, goal=goal, epochs=1, trainable="top:1", batch_items=16)
    found = tune(split, config, ("schedule",), tmp_path, trials=2)
    assert found["schedule"].objective == objective
    kept = configuration.from_toml((tmp_path / "schedule.toml").read_text())
    assert (kept.schedule.steps, kept.schedule.goal) == ("solve_tune_solve", goal)
    assert all(trial.value is not None for trial in found["schedule"].trials)


def test_a_space_holds_what_its_configuration_reads(split, small_config):
    def space(name, **schedule):
        (found,) = candidates.candidates([name], split, solving(small_config, **schedule), 4.0, texts())
        return set(found.space)

    common = {"schedule.epochs", "schedule.trainable"}
    assert space("schedule") == common | {"schedule.learning_rate"}
    assert space("schedule", tune_on="pairs") == common | {"train.learning_rate"}
    assert space("schedule", goal="whole_data") == common | {"schedule.learning_rate", "whole_data.cold_l2"}
    assert space("whole-data") == set(spaces.OWN_SPACES["whole-data"])
    for name in spaces.OWN_SPACES:
        config = candidates.with_values(small_config, spaces.OWN_SCHEDULES[name])
        for field, allowed in spaces.OWN_SPACES[name].items():
            ends = allowed.values if isinstance(allowed, spaces.OneOf) else (allowed.low, allowed.high)
            for value in ends:
                assert candidates.with_values(config, {field: value}) != Config(), field


@pytest.mark.usefixtures("cache")
def test_another_configuration_is_another_search(split, small_config, tmp_path):
    config = solving(small_config)
    tune(split, config, ("whole-data",), tmp_path, trials=1, texts=texts())
    with pytest.raises(UserError, match="another configuration"):
        other = candidates.with_values(config, {"whole_data.lexical_rank": 7})
        tune(split, other, ("whole-data",), tmp_path, trials=2, texts=texts())


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_training_by_gradient_is_searched_by_its_validation_error(split, small_config, tmp_path):
    found = tune(split, small_config, ("gradient", "biases"), tmp_path, trials=2)
    assert {tuned.objective for tuned in found.values()} == {"rmse"}
    assert 0 < found["gradient"].best.value < 2
    assert configuration.from_toml((tmp_path / "gradient.toml").read_text()).train.epochs == small_config.train.epochs
