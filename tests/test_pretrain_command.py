"""`ltrec pretrain` as a user meets it."""

import json

import pytest

from ltrec_jax import cli


@pytest.fixture
def pretrain(tmp_path, monkeypatch, tiny_encoder, cache):
    monkeypatch.chdir(tmp_path)
    words = ["rocket", "planet", "orbit", "comet", "lunar", "barn"]
    lines = [f"the {a} and {b}" for a in words for b in words]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    (tmp_path / "table.csv").write_text("\n".join(["plot,year", *(f"{line},1999" for line in lines)]))

    def run(*arguments):
        quick = ("--encoder", str(tiny_encoder), "--precision", "float32", "--epochs", "1", "--held-out", "0.2")
        return cli.main(["pretrain", *quick, "--parallel", "jit", "--max-length", "16", *arguments])

    return run


@pytest.mark.slow
@pytest.mark.parametrize("source", [("--texts", "lines.txt"), ("--texts", "table.csv", "--text-column", "plot")])
def test_texts_from_a_file(pretrain, tmp_path, capsys, source):
    assert pretrain(*source, "--out", "run") == 0
    said = capsys.readouterr().out
    assert "pseudo-perplexity" in said
    assert "head alone" in said
    assert "Next: ltrec train --encoder.name run/encoder" in said
    assert json.loads((tmp_path / "run" / "report.json").read_text())["texts"]["rows"] == 36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --data (a dataset) and --texts"),
        (("--texts", "absent.txt"), "There is no file absent.txt"),
        (("--texts", "table.csv"), "Unknown text column in table.csv 'text'"),
        (("--texts", "lines.txt", "--cold-items"), "need a dataset"),
        (("--texts", "lines.txt", "--held-out", "1"), "held_out must be above 0 and below 1"),
        (("--texts", "lines.txt", "--out", "."), "is not empty"),
    ],
)
def test_mistakes_are_one_line(pretrain, capsys, arguments, message):
    assert pretrain("--out", "run", *arguments) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_settings_are_printed(pretrain, capsys):
    assert pretrain("--print-config") == 0
    assert "epochs = 1 " in capsys.readouterr().out
