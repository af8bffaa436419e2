"""Pretraining from end to end on a tiny encoder, and its 10% on the real MiniLM."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy

from ltrec_jax.commands.pretrain import _remarks, cold_items_table
from ltrec_jax.encoder.mlm_files import load_head
from ltrec_jax.encoder.weights import load_encoder
from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.text.masking import Maskable
from ltrec_jax.text.store import TokenStore
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.train import cold_items, pretrain_texts, pretraining, tracking
from ltrec_jax.train.fit import fit
from ltrec_jax.train.pretrain_config import PretrainConfig
from ltrec_jax.train.pretraining import pretrain
from ltrec_jax.train.tracking import JsonLines, read_rows


@pytest.fixture(scope="module")
def texts():
    """Sentences in which every word tells the next: b follows a, c follows b, and so on round three circles."""
    rng = np.random.default_rng(0)
    circles = [["rocket", "planet", "orbit"], ["tractor", "barn", "cattle"], ["detective", "heist", "alibi"]]
    rows = []
    for number in range(300):
        circle, start = circles[number % 3], int(rng.integers(3))
        words = [circle[(start + at) % 3] for at in range(4)]
        rows.append(" ".join(["the" if number % 2 else "and", *words, *rng.choice(circles[number % 3], 2)]))
    return rows


@pytest.fixture(scope="module")
def config(shallow_encoder):
    return PretrainConfig(
        encoder=str(shallow_encoder),
        precision="float32",
        max_length=16,
        track=("tensorboard",),
        epochs=6,
        batch_tokens=300,
        learning_rate=1e-2,
        head_learning_rate=1e-2,
        held_out=0.2,
        log_every=2,
        parallel="jit",
    )


@pytest.fixture(scope="module")
def made(texts, config, tmp_path_factory):
    return pretrain(texts, config, tmp_path_factory.mktemp("pretrain") / "run")


def test_the_loss_falls_below_the_head_alone(made):
    report = made.report
    before, alone, pretrained = (report["held_out"][name]["loss"] for name in ("before", "head_only", "pretrain"))
    assert pretrained < alone < before
    assert report["below_head_only"] == pytest.approx(1 - pretrained / alone)
    assert report["below_head_only"] > 0.1
    for figures in report["held_out"].values():
        assert figures["pseudo_perplexity"] == pytest.approx(np.exp(figures["loss"]))
        assert figures["masked_tokens"] == report["held_out"]["before"]["masked_tokens"]
    assert json.loads((made.directory.parent / "report.json").read_text()) == report


def test_the_rows_tell_loss_and_masked_tokens(made):
    rows = read_rows(made.directory.parent / "metrics.jsonl")
    trained = [row for row in rows if row["phase"] == "pretrain" and "train_loss" in row]
    assert trained[-1]["train_loss"] < trained[0]["train_loss"]
    assert all(row["masked_tokens_seen"] > 0 and 0 <= row["train_accuracy"] <= 1 for row in trained)
    assert sum("validation_loss" in row for row in rows) >= 6


def test_trackers_have_what_the_rows_have(made, scalars):
    run = made.directory.parent
    rows = read_rows(run / "metrics.jsonl")
    for phase in ("head only", "pretrain"):
        found, _ = scalars(run / "tensorboard" / phase.replace(" ", "_"))
        for row in (row for row in rows if row["phase"] == phase and "train_loss" in row):
            assert found["train_loss", row["step"]] == pytest.approx([row["train_loss"]])


def test_cudnn_attention_reaches_the_encoder(config, texts, tmp_path):
    settings = dataclasses.replace(config, attention="cudnn", precision="bfloat16")
    with pytest.raises(UserError, match="Attention by cuDNN needs an NVIDIA GPU"):
        pretrain(texts, settings, tmp_path / "run")


def test_what_is_written_goes_on(made, config):
    again = load_encoder(made.directory)
    assert again.fingerprint != load_encoder(config.encoder).fingerprint
    words = again.params["embeddings"]["word_embeddings"]["embedding"]
    assert load_head(again.directory, again.config, words) is not None
    load_tokenizer(again.directory, again.config.vocab_size)
    assert json.loads((made.directory / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


@pytest.mark.slow
def test_going_on_from_the_result_starts_with_its_head(made, config, texts, tmp_path):
    settings = dataclasses.replace(config, encoder=str(made.directory), epochs=1)
    report = pretrain(texts, settings, tmp_path / "again").report
    assert report["start"]["head"] == "of the checkpoint"
    assert report["held_out"]["before"] == made.report["held_out"]["pretrain"]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "at"), [("head only", 3), ("pretrain", 8)])
def test_a_stopped_run_goes_on_to_the_same_bits(made, config, texts, tmp_path, monkeypatch, phase, at):
    out = tmp_path / "run"

    class Stopping(JsonLines):
        def write(self, step, metrics):
            super().write(step, metrics)
            if metrics["phase"] == phase and step >= at:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "JsonLines", Stopping)
        with pytest.raises(StoppedError, match="--resume"):
            pretrain(texts, config, out)
    resumed = pretrain(texts, config, out, resume=True)
    one, two = (safetensors.numpy.load_file(each.directory / "model.safetensors") for each in (made, resumed))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert resumed.report["held_out"] == made.report["held_out"]


@pytest.mark.slow
def test_from_scratch(texts, config, tmp_path):
    settings = dataclasses.replace(
        config, from_scratch=True, layers=1, hidden_size=16, heads=2, vocabulary=120, epochs=2
    )
    made = pretrain(texts, settings, tmp_path / "run")
    found = load_encoder(made.directory)
    assert (found.config.num_layers, found.config.hidden_size) == (1, 16)
    assert made.report["held_out"]["pretrain"]["loss"] < made.report["held_out"]["before"]["loss"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    ours = load_tokenizer(made.directory, found.config.vocab_size)
    assert tokenizer(texts[0])["input_ids"] == ours.encode(texts[:1], 16)[0].tolist()


@pytest.mark.slow
def test_cold_items_with_and_without(small_dataset, config, tmp_path, monkeypatch):
    settings = dataclasses.replace(config, epochs=1)
    fitted = []

    def fit_and_note(*args, **kwargs):
        fitted.append(fit(*args, **kwargs))
        return fitted[-1]

    monkeypatch.setattr(cold_items, "fit", fit_and_note)
    report = pretrain(small_dataset, settings, tmp_path / "run", cold=True).report
    # They are compared as they are: neither learns.
    for model, directory in zip(fitted, (tmp_path / "run" / "encoder", config.encoder), strict=True):
        jax.tree.map(np.testing.assert_array_equal, model.encoder.params, load_encoder(directory).params)
    cold = report["cold_items"]
    assert all(0.5 < cold[name]["validation_rmse"] < 2.0 for name in ("pretrained", "original"))
    assert cold["items"] >= 16
    for name in ("original", "pretrained"):
        assert 0 < cold[name]["rmse"]["value"] < 3
    assert cold["difference"]["rmse"]["value"] == pytest.approx(
        cold["pretrained"]["rmse"]["value"] - cold["original"]["rmse"]["value"]
    )


@pytest.mark.slow
def test_cold_items_from_scratch_have_no_original(small_dataset, config, tmp_path):
    settings = dataclasses.replace(
        config, from_scratch=True, layers=1, hidden_size=16, heads=2, vocabulary=120, epochs=1
    )
    report = pretrain(small_dataset, settings, tmp_path / "run", cold=True).report
    cold = report["cold_items"]
    assert cold["pretrained"]["rmse"]["value"] > 0
    assert cold["original"] is None
    assert cold["difference"] is None
    assert cold_items_table(cold).row_count == 1
    assert "no original encoder" in " ".join(_remarks(report))


def test_texts_without_a_word_are_found(monkeypatch):
    monkeypatch.setattr(pretrain_texts, "_TOKENS_AT_ONCE", 3)
    special = np.arange(10) < 5
    for rows in ([], [[]], [[], [2, 3], [], [2, 7, 3], [8], [2], [], [9, 9]], [[2, 5, 3], []]):
        offsets = np.cumsum([0, *map(len, rows)])
        store = TokenStore(np.array([token for row in rows for token in row], np.int32), offsets)
        found = pretrain_texts._with_words(store, Maskable(4, special, np.zeros(10, bool)))
        assert found.tolist() == [any(token >= 5 for token in row) for row in rows]


def test_held_out_texts_are_those_of_no_other_part(texts, config, tmp_path):
    from ltrec_jax.text import corpus
    from ltrec_jax.train.pretrain_texts import read_texts

    encoder = load_encoder(config.encoder)
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    source = corpus.from_texts([*texts, *texts, "", " "])
    found = read_texts(source, tokenizer, encoder, config, tmp_path)
    parts = [
        {tuple(store.row(text).tolist()) for text in range(len(store))}
        for store in (found.train, found.validation, found.held_out)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(set(texts))
    assert abs(len(parts[0]) / len(set(texts)) - 0.8) < 0.02
    assert found.rows == 2 * len(texts) + 2


@pytest.mark.slow
def test_one_text_of_one_word_is_held_out_and_measured(texts, config, tmp_path):
    """With a share of 0.01 it would be masked in none of the ways, and the loss be that of no token at all."""
    words = sorted({word for text in texts for word in text.split()})
    settings = dataclasses.replace(config, held_out=0.18, mask_share=0.01, epochs=1)
    made = pretrain(words, settings, tmp_path / "run")
    assert made.report["texts"]["held_out"] == made.report["texts"]["validation"] == 1
    for figures in made.report["held_out"].values():
        assert figures["masked_tokens"] == 4
        assert figures["loss"] > 0
    validated = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "validation_loss" in row]
    assert all(row["validation_loss"] > 0 for row in validated)


@pytest.mark.parametrize(("loss", "other", "share"), [(1.0, 4.0, 0.75), (0.0, 0.0, 0.0), (2.0, 1.0, -1.0)])
def test_nothing_is_below_no_loss_at_all(loss, other, share):
    assert pretraining._share_below(loss, other) == share


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ([], {}, "no texts with words"),
        (["", "  "], {}, "no texts with words"),
        (["the barn", "the heist"], {}, "at least 2 must be held out"),
        (["the barn", "the heist"], {"encoder": "no/such/place"}, "There is no directory"),
    ],
)
def test_mistakes_are_told(config, tmp_path, given, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        pretrain(given, dataclasses.replace(config, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_other_settings_other_texts_and_full_directories_are_refused(made, config, texts):
    out = made.directory.parent
    with pytest.raises(UserError, match="is not empty"):
        pretrain(texts, config, out)
    with pytest.raises(UserError, match="other settings or other texts"):
        pretrain(texts, dataclasses.replace(config, epochs=7), out, resume=True)
    with pytest.raises(UserError, match="other settings or other texts"):
        pretrain(texts[1:], config, out, resume=True)
    with pytest.raises(UserError, match="no pretraining run"):
        pretrain(texts, config, out / "elsewhere", resume=True)
    with pytest.raises(UserError, match="need a dataset"):
        pretrain(texts, config, out, cold=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"mask_share": 0.0},
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"trainable": "none"},
        {"trainable": "top:0"},
        {"max_length": 2},
        {"row_length": 64},
        {"hidden_size": 30, "heads": 4},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PretrainConfig(**wrong)


@pytest.mark.slow
def test_minilm_on_film_titles_ends_ten_percent_below_the_head_alone(tmp_path):
    from ltrec_jax.data import sources

    report = pretrain(sources.load("movielens-1m"), PretrainConfig(epochs=3, parallel="jit"), tmp_path / "run").report
    assert report["below_head_only"] > 0.1
    assert jax.tree.all(jax.tree.map(np.isfinite, report["held_out"]))
