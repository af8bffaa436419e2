"""The command line as a user meets it: help that fits a screen, mistakes told in one line with exit code 2."""

import os
import subprocess
import sys
import tomllib

import pytest

from ltrec_jax import cli
from ltrec_jax import config as configuration
from ltrec_jax.errors import StoppedError


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of one command in this process."""
    try:
        code = cli.main(list(arguments))
    except SystemExit as stop:  # how tyro ends after --help and after a wrong flag
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_fits_a_screen_and_shows_an_example(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "Example:  ltrec" in out
    assert len(out.splitlines()) <= 40


@pytest.mark.parametrize(("command", "one_heap"), [("encode", False), ("train", True), ("serve", True)])
def test_only_encoding_has_a_heap_for_each_thread(capsys, monkeypatch, command, one_heap):
    told = []
    monkeypatch.setattr(cli.memory, "keep_freed", lambda **settings: told.append(settings))
    run(capsys, command, "--help")
    assert told == [{"one_heap": one_heap}]


def test_the_overview_lists_every_command(capsys):
    for arguments in ([], ["--help"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_every_known_dataset_is_listed_with_licence_and_citation(capsys):
    from ltrec_jax.data import sources

    code, out, _ = run(capsys, "data", "list")
    assert code == 0
    assert all(f"  {source.name} " in out for source in sources.available())
    assert "licence: GroupLens terms" in out
    assert "cite: F. M. Harper" in out


def test_the_default_configuration_is_printed_and_read_back(capsys):
    code, out, _ = run(capsys, "train", "--print-config")
    assert code == 0
    assert configuration.from_toml(out) == configuration.Config()


def test_flags_go_over_the_file(capsys, tmp_path):
    (tmp_path / "c.toml").write_text("seed = 5\n[train]\nepochs = 3\nhead_epochs = 9\n")
    over = ("--train.epochs", "4", "--schedule", "solve", "--schedule.goal", "whole_data")
    arguments = ("--config", str(tmp_path / "c.toml"), *over, "--print-config")
    code, out, _ = run(capsys, "train", *arguments)
    read = configuration.from_toml(out)
    assert code == 0
    assert (read.seed, read.train.epochs, read.train.head_epochs) == (5, 4, 9)
    assert (read.schedule.steps, read.schedule.goal) == ("solve", "whole_data")
    code, out, _ = run(capsys, "train", "--schedule", "gradient", "--train.objective", "bpr", "--print-config")
    assert code == 0
    assert configuration.from_toml(out).train.objective == "bpr"


@pytest.mark.parametrize("mode", ["jit", "pmap", "shard_map"])
def test_devices_are_shared_by_one_flag_in_training_and_in_pretraining(capsys, tmp_path, mode):
    (tmp_path / "c.toml").write_text('[train]\nparallel = "auto"\nepochs = 3\n')
    code, out, _ = run(capsys, "train", "--config", str(tmp_path / "c.toml"), "--parallel", mode, "--print-config")
    assert code == 0
    read = configuration.from_toml(out).train
    assert (read.parallel, read.epochs) == (mode, 3)
    code, out, _ = run(capsys, "pretrain", "--parallel", mode, "--print-config")
    assert code == 0
    assert tomllib.loads(out)["parallel"] == mode


def test_a_wrong_way_to_share_devices_is_told_with_the_right_ones(capsys):
    for command in ("train", "pretrain"):
        code, out, err = run(capsys, command, "--parallel", "pmpa", "--print-config")
        assert code == 2
        assert "shard_map" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["data", "lst"], "Did you mean 'data list'"),
        (["data", "list", "--domain", "film"], "Did you mean 'films'"),
        (["data", "fetch", "movielens-1"], "Did you mean 'movielens-1m'"),
        (["train", "--config", "absent.toml"], "Cannot read the configuration absent.toml"),
        (["train", "--data.dataset", "movielens-100", "--out", "OUT"], "Did you mean 'movielens-100k'"),
        (["train", "--data.dataset", "no/such/place", "--out", "OUT"], "is not a dataset directory"),
        (["train", "--train.batch-pairs", "0", "--print-config"], "train.batch_pairs must be at least 1"),
        (["evaluate", "absent"], "absent is not a run directory"),
        (["recommend", "absent", "--user", "1"], "absent is not a run directory"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_two(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("ltrec: ")
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("traced", [True, False])
def test_a_profile_is_told_of_where_there_is_one(capsys, tmp_path, monkeypatch, traced):
    from ltrec_jax import experiment

    def train(config, out, *, resume, profile):
        assert profile == 2
        if traced:
            (out / "profile" / "new").mkdir()
            (out / "profile" / "new" / "perfetto_trace.json.gz").touch()

    monkeypatch.setattr(experiment, "train", train)
    # Of an earlier start of the same run.
    (tmp_path / "run" / "profile" / "old").mkdir(parents=True)
    (tmp_path / "run" / "profile" / "old" / "perfetto_trace.json.gz").touch()
    code, out, _ = run(capsys, "train", "--out", str(tmp_path / "run"), "--profile", "2", "--resume")
    assert code == 0
    assert (f"The trace is {tmp_path / 'run' / 'profile' / 'new' / 'perfetto_trace.json.gz'}: open it" in out) == traced
    assert ("Nothing was traced" in out) != traced
    assert "profile/old" not in out


def test_an_unknown_flag_exits_with_two_and_suggests(capsys):
    code, out, err = run(capsys, "train", "--train.epoch", "3")
    assert code == 2
    assert "--train.epochs" in out + err


def test_a_stop_by_signal_is_130_and_our_own_faults_keep_their_traceback(capsys):
    def stopped():
        raise StoppedError("Stopped on SIGTERM at step 3.")

    def broken():
        raise ZeroDivisionError

    assert cli.guarded(stopped) == 130
    with pytest.raises(ZeroDivisionError):
        cli.guarded(broken)


def test_help_does_not_wait_for_jax():
    code = "import sys; from ltrec_jax import cli; cli.main(['--help']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
