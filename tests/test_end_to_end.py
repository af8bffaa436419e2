"""One run through every stage, as the commands make it; the small world fast, the README's block on real data slow."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ltrec_jax import cli, experiment, plain_settings
from ltrec_jax.baselines import biases, registry
from ltrec_jax.train.tracking import read_rows

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_dataset, small_config):
    place = tmp_path_factory.mktemp("end_to_end")
    small_dataset.save(place / "data")
    data = dataclasses.replace(small_config.data, dataset=str(place / "data"), split="random")
    train = dataclasses.replace(small_config.train, head_epochs=10)
    config = dataclasses.replace(small_config, data=data, train=train, refit=True)
    (place / "c.toml").write_text(plain_settings.to_toml(config))
    assert cli.main(["train", "--config", str(place / "c.toml"), "--out", str(place / "run")]) == 0
    return place / "run"


def test_evaluate_writes_the_report_and_beats_biases(run, capsys):
    assert cli.main(["evaluate", str(run)]) == 0
    assert "RMSE on small" in capsys.readouterr().out
    report = json.loads((run / "report.json").read_text())
    assert report["primary"] == "ltrec"
    assert set(report["models"]) == {"ltrec", "frozen text", "popularity", "biases only"}
    assert report["models"]["popularity"]["overall"]["rmse"]["value"] is None
    assert {one["metric"] for one in report["comparisons"] if one["against"] == "popularity"} == {"ndcg@10"}
    ours, baseline = (report["models"][name] for name in ("ltrec", "biases only"))
    assert ours["overall"]["rmse"]["value"] < 0.9 * baseline["overall"]["rmse"]["value"]
    for group in ("head", "mid", "tail"):
        assert ours["groups"][group]["rmse"]["value"] < baseline["groups"][group]["rmse"]["value"]
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_tuned_baselines_stand_in_the_report(run, tmp_path, capsys):
    """Tuned on validation, fitted with what was found, beside the model."""
    out, flags = tmp_path / "tuned", ["--config", str(run / "config.toml"), "--models", "itemknn,random"]
    assert cli.main(["tune", *flags, "--trials", "2", "--out", str(out), "--seed", "3"]) == 0
    assert "itemknn: best of 2 trials by sum" in capsys.readouterr().out
    copy = shutil.copytree(run, tmp_path / "run")
    names = ["--baselines", "random,text-knn,itemknn", "--settings", str(out / "baselines.toml")]
    assert cli.main(["evaluate", str(copy), *names]) == 0
    report = json.loads((copy / "report.json").read_text())
    models = report["models"]
    tuned = registry.read_settings(out / "baselines.toml")["itemknn"]
    assert report["settings"]["baselines"]["itemknn"] == dataclasses.asdict(tuned)
    assert list(models) == ["ltrec", "frozen text", "random", "text-knn", "itemknn", "biases only"]
    assert models["itemknn"]["overall"]["rmse"]["value"] is None
    assert models["itemknn"]["overall"]["ndcg@20"]["value"] > models["random"]["overall"]["ndcg@20"]["value"]
    assert models["itemknn"]["seconds"]["fitting"] > 0
    assert cli.main(["evaluate", str(copy), "--baselines", "itemknn,eas"]) == 2
    assert "Did you mean 'ease'" in capsys.readouterr().err


def test_the_report_agrees_with_a_hand_computation(run):
    report, _ = experiment.evaluate_run(run)
    config, bundle = experiment.open_run(run)
    split = experiment.split_of(experiment.load(config.data.dataset), config).with_validation_in_train()
    test = split.test
    for name, model in {
        "ltrec": bundle,
        "biases only": biases.fit(split.train, split.dataset.num_users, split.dataset.num_items),
    }.items():
        errors = np.asarray(model.score_pairs(test.user, test.item), np.float64) - test.rating
        assert report.models[name].overall["rmse"].value == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)


def test_runs_of_one_split_are_compared(run, tmp_path, capsys):
    twin = shutil.copytree(run, tmp_path / "twin")
    (twin / "report.json").unlink(missing_ok=True)
    assert cli.main(["compare", str(run), str(twin), "--out", str(tmp_path / "both")]) == 0
    assert "RMSE on small" in capsys.readouterr().out
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert report["primary"] == "run"
    assert set(report["models"]) == {"run", "twin", "biases only"}
    assert {one["verdict"] for one in report["comparisons"] if one["against"] == "twin"} == {"unclear"}
    assert "better" in {one["verdict"] for one in report["comparisons"] if one["against"] == "biases only"}
    assert set(report["dials"]) == {"run", "twin"}
    assert [point["dial"] for point in report["dials"]["run"]] == [0.0, 0.05, 0.1, 0.2, 0.3]
    assert report["dials"]["run"] == report["dials"]["twin"]
    assert {"run", "twin"} <= set(report["settings"])
    assert (tmp_path / "both" / "report.html").is_file()


def test_baselines_that_all_reports_have_alike_are_compared_too(run, tmp_path):
    """Fitted with the settings of the reports; what only one run was compared with, or otherwise, is left out."""
    tables = {
        "one": {"popularity": {}, "itemknn": {"neighbours": 5, "shrink": 3.0}, "ease": {"l2": 9.0}, "random": {}},
        "ease": {"popularity": {}, "itemknn": {"neighbours": 5, "shrink": 3.0}, "ease": {"l2": 8.0}, "older": {}},
    }
    for name, table in tables.items():
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "report.json").write_text(json.dumps({"settings": {"baselines": table}}))
    report = experiment.compare([tmp_path / name for name in tables])
    paths = [str((tmp_path / name).resolve()) for name in tables]  # "ease" alone would be taken for the baseline
    assert list(report.models) == [*paths, "popularity", "itemknn", "biases only"]
    assert list(report.dials) == paths
    config, bundle = experiment.open_run(run)
    split = experiment.split_of(experiment.load(config.data.dataset), config).with_validation_in_train()
    known = experiment.fit_baselines(
        bundle, split, config, ["itemknn"], {"itemknn": registry.find("itemknn").settings(neighbours=5, shrink=3.0)}
    )
    again = experiment.evaluate(known.models, split, config).models["itemknn"].overall["ndcg@10"]
    assert report.models["itemknn"].overall["ndcg@10"].value == again.value


def test_runs_of_other_splits_are_refused_by_name(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    text = (other / "config.toml").read_text()
    (other / "config.toml").write_text(text.replace("seed = 0", "seed = 1", 1))
    assert cli.main(["compare", str(run), str(other)]) == 2
    assert "different splits (seed is 1, not 0)" in capsys.readouterr().err
    assert cli.main(["compare", str(run), str(run)]) == 2
    assert "at least two different run directories" in capsys.readouterr().err


def test_recommend_shows_unseen_titles_with_reasons(run, capsys):
    assert cli.main(["recommend", str(run), "--user", "u4", "-k", "3"]) == 0
    out = capsys.readouterr().out
    assert "Recommended for user u4" in out
    assert "because you liked" in out


def test_an_unknown_user_is_one_line(run, capsys):
    assert cli.main(["recommend", str(run), "--user", "nobody"]) == 2
    assert (
        capsys.readouterr().err
        == "ltrec: Unknown user 'nobody'. The model knows 120 users, such as 'u0', 'u1', 'u2'.\n"
    )


def test_training_into_the_same_directory_is_refused_and_resuming_is_not(run, capsys):
    config = str(run.parent / "c.toml")
    assert cli.main(["train", "--config", config, "--out", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["train", "--config", config, "--out", str(run), "--resume"]) == 0


def test_a_run_without_bundle_says_how_to_go_on(run, tmp_path, capsys):
    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_schedule_of_solves_is_evaluated_resumed_and_recommends(run, tmp_path, capsys):
    flags = ["--config", str(run.parent / "c.toml"), "--schedule", "solve_tune_solve", "--out", str(tmp_path / "run")]
    flags += ["--schedule.trainable", "top:1", "--schedule.epochs", "2", "--bayes.factors", "2"]
    assert cli.main(["train", *flags, "--plan"]) == 0
    assert cli.main(["train", *flags]) == 0
    assert cli.main(["train", *flags, "--resume"]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    models = json.loads((tmp_path / "run" / "report.json").read_text())["models"]
    assert models["ltrec"]["overall"]["rmse"]["value"] < 0.9 * models["biases only"]["overall"]["rmse"]["value"]
    assert cli.main(["recommend", str(tmp_path / "run"), "--user", "u4", "-k", "3"]) == 0
    assert "Recommended for user u4" in capsys.readouterr().out


def readme_block(language: str, after: str = "") -> str:
    text = README.read_text(encoding="utf-8")
    text = text[text.index(after) :]
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def test_readme_commands_are_single_lines_that_make_their_environment():
    for mark, end in [("main job", "ltrec quickstart"), ("tests", "pytest")]:
        block = readme_block("bash", f"<!-- {mark} -->").strip()
        assert "\n" not in block
        assert block.startswith("python3 -m venv .venv && ")
        assert end in block
    assert readme_block("bash", "<!-- main job -->").strip().endswith("ltrec quickstart")


@pytest.mark.slow
def test_the_readme_block_runs_and_keeps_the_promised_quality(tmp_path):
    """MovieLens-100K, u1.test: RMSE at most 0.89, no group worse than biases. A process of its own, one device."""
    figures = """
import json
report = lt.evaluate(model, split)
print("FIGURES", json.dumps({
    name: {"overall": result.overall["rmse"].value}
    | {group: result.groups[group]["rmse"].value for group in ("head", "mid", "tail")}
    for name, result in report.models.items()
}))
"""
    (tmp_path / "block.py").write_text(textwrap.dedent(readme_block("python")) + figures)
    done = subprocess.run([sys.executable, "block.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall(r"^\d\.\d\d  ", done.stdout, re.MULTILINE)) == 5
    models = json.loads(re.search(r"^FIGURES (.*)$", done.stdout, re.MULTILINE)[1])
    ours, baseline = models["ltrec"], models["biases only"]
    assert ours["overall"] <= 0.89
    assert all(ours[group] <= baseline[group] for group in ("head", "mid", "tail"))


def test_the_log_of_a_run_counts_tokens_and_pairs(run):
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["phase"] == "encoder" and "pairs_seen" in row]
    assert all(row["tokens_encoded"] > 0 and row["pairs_seen"] > 0 for row in rows)
