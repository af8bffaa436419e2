"""`ltrec encode` as a user meets it."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import ltrec_jax
from ltrec_jax import cli
from ltrec_jax.encoder.weights import export_weights, load_encoder

FILMS = "film,title,plot\n10,Rocket,the rocket and the planet\n20,Barn,the cattle\n30,Barn,the cattle\n"


@pytest.fixture
def encode(tmp_path, monkeypatch, tiny_encoder, cache):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films.csv").write_text(FILMS)

    def run(*arguments):
        return cli.main(["encode", "--encoder", str(tiny_encoder), "--precision", "float32", *arguments])

    return run


TABLE = ("--texts", "films.csv", "--id-column", "film", "--text-column", "plot")


def test_a_table_of_texts(encode, tmp_path, capsys):
    assert encode(*TABLE, "--out", "v") == 0
    said = capsys.readouterr().out
    assert "texts/s" in said
    assert "v: 3 vectors of 16, 2 distinct texts" in said
    vectors = np.load(tmp_path / "v" / "vectors.npy")
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert pq.read_table(tmp_path / "v" / "ids.parquet")["id"].to_pylist() == ["10", "20", "30"]
    assert encode(*TABLE, "--out", "v") == 0
    assert "texts/s" not in capsys.readouterr().out


def test_vectors_in_bfloat16_are_read_as_it_says(encode, capsys):
    assert encode(*TABLE, "--out", "full") == 0
    assert "open_encoded" not in capsys.readouterr().out
    assert encode(*TABLE, "--out", "half", "--dtype", "bfloat16") == 0
    said = capsys.readouterr().out
    assert np.load("half/vectors.npy").dtype == np.uint16
    (how,) = re.findall(r"ltrec_jax\.open_encoded\('(.*)'\)\.vectors", said)
    read = ltrec_jax.open_encoded(how).vectors.astype(np.float32)
    np.testing.assert_allclose(read, np.load("full/vectors.npy"), rtol=8e-3, atol=1e-6)


def test_a_dataset_by_template_with_cut_texts(encode, small_dataset, tmp_path, capsys):
    small_dataset.save(tmp_path / "data")
    assert encode("--data", "data", "--template", "the {title}", "--max-length", "5", "--out", "v") == 0
    said = capsys.readouterr().out
    assert "90 texts have more than 5 tokens and were cut there" in said
    assert np.load(tmp_path / "v" / "vectors.npy").shape == (90, 16)


# Not `ru_maxrss`, which begins with the peak of the process that started this one.
PEAK = """
import sys
from ltrec_jax import cli
from ltrec_jax.text import corpus
corpus._CHUNK = 2048  # several of them are in memory, of either catalogue
assert cli.main(["encode", "--precision", "float32", *sys.argv[1:]]) == 0
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(small_dataset, tiny_encoder, tmp_path):
    """Two catalogues of texts of 1 kB, of 20 and 120 MB: held in memory, the second would take half as much again."""
    peaks = []
    for count in (20_000, 120_000):
        # All differ, and all are the same tokens: what is measured is the reading.
        texts = [f"rocket {number:x<1000}" for number in range(count)]
        items = pd.DataFrame({"item_id": [f"i{number}" for number in range(count)], "title": texts})
        data = dataclasses.replace(small_dataset, items=items).save(tmp_path / f"data{count}").path
        del items, texts
        arguments = ["--encoder", str(tiny_encoder), "--data", str(data), "--out", str(tmp_path / f"v{count}")]
        run = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, env=dict(os.environ)
        )
        assert run.returncode == 0, run.stderr
        assert f"{count:,} vectors of 16, 1 distinct texts" in run.stdout
        peaks.append(int(run.stdout.split()[-1]))
    assert peaks[1] < 1.2 * peaks[0]


def test_a_prompt_by_name_is_its_text(encode, tiny_encoder, tmp_path):
    export_weights(dataclasses.replace(load_encoder(tiny_encoder), prompts={"query": "lunar heist "}), tmp_path / "e")
    named = ("--encoder", str(tmp_path / "e"))
    assert encode(*TABLE, *named, "--prompt", "query", "--out", "a") == 0
    assert encode(*TABLE, *named, "--prompt", "lunar heist ", "--out", "b") == 0
    assert encode(*TABLE, *named, "--out", "c") == 0
    a, b, c = (np.load(tmp_path / name / "vectors.npy") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_default_prompt_goes_before_each_text_unless_another_is_given(encode, tiny_encoder, tmp_path, capsys):
    prompted = dataclasses.replace(
        load_encoder(tiny_encoder), prompts={"query": "lunar heist ", "passage": "barn "}, default_prompt="query"
    )
    export_weights(prompted, tmp_path / "e")
    named = ("--encoder", str(tmp_path / "e"))
    assert encode(*TABLE, *named, "--out", "a") == 0
    assert "Before each text goes the encoder's 'query' prompt" in capsys.readouterr().out
    assert encode(*TABLE, *named, "--prompt", "query", "--out", "b") == 0
    assert encode(*TABLE, *named, "--prompt", "", "--out", "c") == 0
    assert encode(*TABLE, *named, "--prompt", "passage", "--out", "d") == 0
    assert encode(*TABLE, "--out", "e0") == 0
    assert "prompt" not in capsys.readouterr().out
    a, b, c, d, plain = (np.load(tmp_path / name / "vectors.npy") for name in ("a", "b", "c", "d", "e0"))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(c, plain)
    assert not np.array_equal(a, d)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --data (a dataset) and --texts (a table)"),
        (("--data", "movielens-100k", *TABLE), "one of --data (a dataset) and --texts (a table)"),
        (("--texts", "films.csv"), "Unknown id column in films.csv 'id'"),
        (("--texts", "absent.csv"), "There is no file absent.csv"),
        ((*TABLE, "--encoder", "no/such/place"), "There is no directory no/such/place"),
        ((*TABLE, "--prompt", "query"), "This encoder has no prompt 'query'"),
        ((*TABLE, "--max-length", "99"), "reads 3 to 32"),
        ((*TABLE, "--tokens-per-call", "0"), "--tokens-per-call must be at least 1"),
        ((*TABLE, "--out", "films.csv"), "films.csv is a file"),
        ((*TABLE, "--out", "."), ". exists and holds something else"),
    ],
)
def test_mistakes_are_one_line(encode, capsys, arguments, message):
    assert encode("--out", "v", *arguments) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_other_settings_in_the_same_place(encode, capsys):
    assert encode(*TABLE, "--out", "v") == 0
    assert encode(*TABLE, "--out", "v", "--dtype", "float16") == 2
    assert "dtype float32 there, float16 here" in capsys.readouterr().err
    assert encode(*TABLE, "--out", "v", "--dtype", "float16", "--replace") == 0
