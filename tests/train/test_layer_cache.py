"""Training above cached hidden states against training without the cache, on a real (tiny) encoder."""

import dataclasses
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from ltrec_jax import parallel, storage
from ltrec_jax.encoder import catalogue
from ltrec_jax.text import packing
from ltrec_jax.text.store import TokenStore
from ltrec_jax.train import layer_cache, phases
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.state import frozen_layers


@pytest.fixture(scope="module")
def problem(small_split, small_config):
    model = dataclasses.replace(small_config.model, embedding_dropout=0.0)
    train = dataclasses.replace(small_config.train, trainable="top:1", decay="constant", warmup=0.0)
    config = dataclasses.replace(small_config, model=model, train=train)
    return load_problem(small_split, config, spread=parallel.choose("jit"))


def with_precision(problem, precision):
    encoder = dataclasses.replace(problem.config.encoder, precision=precision)
    return dataclasses.replace(problem, config=dataclasses.replace(problem.config, encoder=encoder))


def train(problem, *, cached, steps=4, **settings):
    changed = dataclasses.replace(problem.config.train, cache_layers=cached, **settings)
    problem = dataclasses.replace(problem, config=dataclasses.replace(problem.config, train=changed))
    prepared = phases.prepare_encoder(problem, 2, patience=0, start=None)
    state, key = prepared.state, jax.random.key(0)
    batches, losses = [], []
    for number in range(steps):
        batches.append(prepared.source.batch(0, number))
        state, metrics = prepared.step(state, problem.spread.shard(batches[-1]), key)
        losses.append(float(metrics["squared_error"] / metrics["weight"]))
    pooled = prepared.pooled(state, np.arange(problem.dataset.num_items))
    return batches, losses, np.asarray(pooled)


def test_in_float32_the_cache_changes_nothing_but_the_work(cache, problem):
    batches, losses, pooled = train(problem, cached=True)
    expected_batches, expected_losses, expected_pooled = train(problem, cached=False)
    for a, b in zip(batches, expected_batches, strict=True):
        assert a.hidden is not None
        assert b.hidden is None
        for name in a._fields:
            if name != "hidden":
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert len(set(losses)) == len(losses)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    np.testing.assert_allclose(pooled, expected_pooled, atol=2e-6)


@pytest.mark.slow
def test_in_bfloat16_only_the_rounding_of_the_stored_states_is_added(cache, problem):
    rounded = with_precision(problem, "bfloat16")
    _, losses, pooled = train(rounded, cached=True)
    _, expected_losses, expected_pooled = train(rounded, cached=False)
    # bfloat16 keeps 8 bits: a stored state is off by at most 2^-9 of its size.
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-3)
    np.testing.assert_allclose(pooled, expected_pooled, atol=2e-2)


def test_bfloat16_states_are_the_float32_ones_rounded(cache, problem, monkeypatch):
    # The products in float32 on both sides, so that nothing but what is stored differs.
    exact = layer_cache.open_hidden_states(problem.encoder, problem.tokens, 1, "float32", cache)
    monkeypatch.setattr(layer_cache, "Bert", lambda config, precision: catalogue.Bert(config, "float32"))
    monkeypatch.setattr(layer_cache, "prepare", lambda params, precision: params)
    layer_cache._lower.cache_clear()
    stored = layer_cache.open_hidden_states(problem.encoder, problem.tokens, 1, "bfloat16", cache)
    layer_cache._lower.cache_clear()
    assert stored.values.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(stored.values, exact.values.astype(ml_dtypes.bfloat16))


@pytest.mark.slow
def test_accumulated_and_spread_slices_use_it_too(cache, problem):
    _, expected, _ = train(problem, cached=True)
    many = dataclasses.replace(problem, spread=parallel.choose("pmap", count=2))
    _, losses, _ = train(many, cached=True, accumulate=2)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_equal_texts_are_stored_once_and_keyed_by_what_they_depend_on(cache, problem):
    rows = [problem.tokens.row(text) for text in (0, 1, 0)]
    tokens = TokenStore(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    def stored(encoder=problem.encoder, tokens=tokens, layers=1, precision="float32"):
        return layer_cache.open_hidden_states(encoder, tokens, layers, precision, cache)

    found = stored()
    assert found.starts[0] == found.starts[2]
    assert len(found.values) == len(rows[0]) + len(rows[1])
    assert len(list(cache.glob("*/values.npy"))) == 1
    top = jax.tree.map(np.array, problem.encoder.params)
    top["encoder"]["layer"]["1"]["output"]["dense"]["bias"] += 1
    stored(encoder=dataclasses.replace(problem.encoder, params=top))
    assert len(list(cache.glob("*/values.npy"))) == 1
    low = jax.tree.map(np.array, problem.encoder.params)
    low["encoder"]["layer"]["0"]["output"]["dense"]["bias"] += 1
    stored(encoder=dataclasses.replace(problem.encoder, params=low))
    stored(precision="bfloat16")
    stored(layers=2)
    stored(tokens=tokens.take(np.array([0, 1, 1, 2])))
    stored(tokens=tokens.take(np.array([1, 2])))
    assert len(list(cache.glob("*/values.npy"))) == 5


def test_a_damaged_store_is_computed_again_and_a_broken_off_one_never_seen(cache, problem, monkeypatch):
    first = layer_cache.open_hidden_states(problem.encoder, problem.tokens, 1, "float32", cache)
    expected, [path] = np.array(first.values), list(cache.glob("*/values.npy"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged.*computed again"):
        again = layer_cache.open_hidden_states(problem.encoder, problem.tokens, 1, "float32", cache)
    np.testing.assert_array_equal(again.values, expected)

    class KilledError(Exception):
        pass

    def killed(*_, **__):
        raise KilledError

    monkeypatch.setattr(packing, "fill", killed)
    with pytest.raises(KilledError):
        layer_cache.open_hidden_states(problem.encoder, problem.tokens, 2, "float32", cache)
    assert list(cache.glob("*/values.npy")) == [path]


def test_what_was_used_longest_ago_goes_but_never_what_another_process_has(cache, problem, monkeypatch):
    def stored(layers, precision="float32"):
        before = set(cache.glob("*/values.npy"))
        opened = layer_cache.open_hidden_states(problem.encoder, problem.tokens, layers, precision, cache)
        made = set(cache.glob("*/values.npy")) - before
        return opened, made.pop().parent if made else None

    def aged(place, seconds):
        os.utime(place, (seconds, seconds))

    first, oldest = stored(1)
    size = (oldest / "values.npy").stat().st_size
    _, older = stored(2)
    abandoned = cache / f".{'0' * 8}{storage.TEMPORARY_MARK}1"
    shutil.copytree(older, abandoned)
    for seconds, place in enumerate([oldest, older, abandoned]):
        aged(place, seconds)
    # Used again: now it is the youngest.
    again, none = stored(1)
    assert none is None
    values = np.array(again.values)
    monkeypatch.setattr(layer_cache, "_MOST_BYTES", 2 * size)
    with storage.lock(older.with_suffix(".lock")):
        _, third = stored(1, "bfloat16")
        assert {place for place in cache.iterdir() if place.is_dir()} == {oldest, older, third}
    monkeypatch.setattr(layer_cache, "_MOST_BYTES", 0)
    _, fourth = stored(2, "bfloat16")
    assert [place for place in cache.iterdir() if place.is_dir()] == [fourth]
    # Whoever has it mapped goes on reading.
    np.testing.assert_array_equal(again.values, values)
    np.testing.assert_array_equal(first.values, values)


@pytest.mark.parametrize(("what", "frozen"), [("all", 0), ("bias", 0), ("top:1", 5), ("top:6", 0), ("top:9", 0)])
def test_how_many_layers_are_frozen(what, frozen):
    assert frozen_layers(what, 6) == frozen


def test_dropout_in_the_encoder_leaves_nothing_to_cache(problem):
    train = dataclasses.replace(problem.config.train, encoder_dropout=True)
    assert dataclasses.replace(problem, config=dataclasses.replace(problem.config, train=train)).hidden_states() is None
