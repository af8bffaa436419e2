"""Fine-tuning from end to end on a small world whose texts tell what people like."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax.bundle import Bundle, load_vectors
from ltrec_jax.errors import UserError
from ltrec_jax.train import fit as fitting
from ltrec_jax.train.fit import FROZEN_TEXT, fit
from ltrec_jax.train.tracking import read_rows


def rmse(model, events):
    return float(np.sqrt(np.mean((model.score_pairs(events.user, events.item) - events.rating) ** 2)))


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


@pytest.fixture(scope="module")
def config(small_config, shallow_encoder):
    """One layer: what these tests take is nearly all compiling the step of the encoder phase."""
    encoder = dataclasses.replace(small_config.encoder, name=str(shallow_encoder))
    return dataclasses.replace(small_config, encoder=encoder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_split, config):
    out = tmp_path_factory.mktemp("fit") / "run"
    return out, fit(small_split, with_train(config, head_epochs=10), out)


def test_the_loss_falls_and_the_model_beats_the_mean(run, small_split):
    out, bundle = run
    losses = [row["train_rmse"] for row in read_rows(out / "metrics.jsonl") if "train_rmse" in row]
    assert losses[-1] < 0.9 * losses[0]
    mean = np.sqrt(np.mean((small_split.train.rating.mean() - small_split.test.rating) ** 2))
    assert rmse(bundle, small_split.test) < 0.9 * mean


def test_a_run_directory_holds_what_was_promised(run, small_split, config):
    out, bundle = run
    assert {p.name for p in out.iterdir()} == {"config.toml", "metrics.jsonl", "checkpoints", "bundle", FROZEN_TEXT}
    assert fitting.load_run_config(out) == with_train(config, head_epochs=10)
    read = Bundle.load(out / "bundle")
    users = np.arange(bundle.num_users)
    np.testing.assert_array_equal(read.score(users), bundle.score(users))
    assert read.history.counts.sum() == len(small_split.train_rows)
    frozen = load_vectors(out / FROZEN_TEXT)
    assert not np.array_equal(frozen.item_vectors, bundle.vectors.item_vectors)


def test_a_never_seen_item_is_scored_by_its_text(run, small_dataset):
    _, bundle = run
    cold = np.flatnonzero(bundle.counts == 0)
    topic = cold % 3
    scores = np.asarray(bundle.score(np.arange(small_dataset.num_users)))[:, cold]
    liked = scores[np.arange(small_dataset.num_users) % 3 == 0][:, topic == 0].mean()
    other = scores[np.arange(small_dataset.num_users) % 3 == 0][:, topic != 0].mean()
    assert liked > other + 0.3


def test_the_log_tells_tokens_and_pairs(run, small_split):
    rows = [r for r in read_rows(run[0] / "metrics.jsonl") if r["phase"] == "encoder" and "pairs_seen" in r]
    assert sum(r["pairs_seen"] for r in rows) == 2 * len(small_split.train_rows)
    assert all(r["tokens_encoded"] > 0 for r in rows)


@pytest.mark.slow
def test_a_run_is_traced_and_tracked_where_asked(small_split, small_config, tmp_path, cache):
    out = tmp_path / "run"
    config = with_train(small_config, head_epochs=1, epochs=2, trainable="top:1", track=("tensorboard",))
    fit(small_split, config, out, profile=2)
    assert list((out / "profile").rglob("*.xplane.pb"))
    assert {path.name for path in (out / "tensorboard").iterdir()} == {"head", "encoder"}
    rows = read_rows(out / "metrics.jsonl")
    head, encoder = (row for row in rows if "encodings_per_epoch" in row)
    assert head["encodings_per_epoch"] == 0 < encoder["encodings_per_epoch"]
    [peak] = (row for row in rows if "share_of_peak" in row)
    assert peak["phase"] == "encoder"
    assert 0 < peak["share_of_peak"] == peak["model_flops_per_second"] / peak["matmul_peak"]
    assert len(list(cache.glob("hidden/*/values.npy"))) == 1


def test_cut_texts_are_counted_and_told(small_split, config, tmp_path, capsys):
    data = dataclasses.replace(config.data, max_length=4)
    config = dataclasses.replace(with_train(config, epochs=0), data=data)
    bundle = fit(small_split, config)
    texts = bundle.about["texts"]
    assert 0 < texts["truncated"] <= texts["count"] == small_split.dataset.num_items
    assert f"{texts['truncated']:,} of {texts['count']:,} item texts have more than 4 tokens" in capsys.readouterr().err


def test_same_seed_same_bits(run, small_split, config, tmp_path):
    again = fit(small_split, with_train(config, head_epochs=10), tmp_path / "again")
    np.testing.assert_array_equal(again.vectors.item_vectors, run[1].vectors.item_vectors)
    one, other = ((out / "bundle" / "bundle.json").read_bytes() for out in (run[0], tmp_path / "again"))
    assert one == other


def test_refit_learns_from_the_validation_rows_too(small_split, config, tmp_path):
    config = dataclasses.replace(with_train(config, epochs=0), refit=True)
    bundle = fit(small_split, config, tmp_path / "run")
    assert bundle.history.counts.sum() == len(small_split.train_rows) + len(small_split.validation_rows)
    phases = {row["phase"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")}
    assert phases == {"head", "refit head"}


def test_a_directory_in_use_or_of_another_configuration_is_refused(run, small_split, config):
    out, _ = run
    with pytest.raises(UserError, match=r"not empty.*--resume"):
        fit(small_split, config, out)
    with pytest.raises(UserError, match="another configuration"):
        fit(small_split, with_train(config, epochs=7), out, resume=True)
    with pytest.raises(UserError, match="not a run directory"):
        fit(small_split, config, out / "bundle", resume=True)


def test_resuming_a_finished_run_changes_nothing(run, small_split, config):
    out, bundle = run
    before = (out / "metrics.jsonl").read_bytes()
    again = fit(small_split, with_train(config, head_epochs=10), out, resume=True)
    np.testing.assert_array_equal(again.vectors.item_vectors, bundle.vectors.item_vectors)
    assert (out / "metrics.jsonl").read_bytes() == before


def test_nothing_to_learn_from_is_one_clear_line(small_split, config, tmp_path):
    empty = dataclasses.replace(small_split, train_rows=np.zeros(0, np.int64))
    with pytest.raises(UserError, match="training part"):
        fit(empty, config, tmp_path / "run")


@pytest.mark.parametrize("name", ["arrays/item_vectors.npy", "head.safetensors", "encoder/model.safetensors"])
def test_a_damaged_bundle_is_named(run, tmp_path, name):
    import shutil

    shutil.copytree(run[0] / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=name):
        Bundle.load(tmp_path / "bundle")


def test_a_bundle_of_another_format_and_no_bundle_are_refused(run, tmp_path):
    import shutil

    shutil.copytree(run[0] / "bundle", tmp_path / "bundle")
    text = (tmp_path / "bundle" / "bundle.json").read_text().replace('"format_version": 4', '"format_version": 99')
    (tmp_path / "bundle" / "bundle.json").write_text(text)
    with pytest.raises(UserError, match="format 99"):
        Bundle.load(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"no bundle\.json"):
        Bundle.load(tmp_path)
