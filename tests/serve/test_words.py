"""A model with a lexical channel, from the solve through the bundle to the places of new texts."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from ltrec_jax.bundle import Bundle
from ltrec_jax.config import BayesConfig, ScheduleConfig, WholeDataConfig
from ltrec_jax.serve.export import export_bundle
from ltrec_jax.serve.placing import Placer, anchors
from ltrec_jax.serve.service import NEW, Query, Service
from ltrec_jax.text.store import TokenStore
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.train import solves
from ltrec_jax.train.fit import fit
from ltrec_jax.train.problem import load_problem

RANK, LENGTH = 6, 16


def with_words(config, share=0.3, **schedule):
    schedule = ScheduleConfig(goal="whole_data", **({"steps": "solve"} | schedule))
    return dataclasses.replace(
        config, schedule=schedule, whole_data=WholeDataConfig(lexical_share=share, lexical_rank=RANK)
    )


@pytest.fixture(scope="module")
def run(small_split, small_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("words") / "run"
    fit(small_split, with_words(small_config), out)
    return out


@pytest.fixture(scope="module")
def loaded(run):
    return Bundle.load(run / "bundle")


def rating_words(config, share=0.3, **schedule):
    schedule = ScheduleConfig(goal="explicit", **({"steps": "solve"} | schedule))
    bayes = BayesConfig(factors=4, iterations=20, lexical_share=share, lexical_rank=RANK)
    return dataclasses.replace(config, schedule=schedule, bayes=bayes)


@pytest.fixture(scope="module")
def rated(small_split, small_config, tmp_path_factory):
    """A model of ratings to whose side information words belong."""
    out = tmp_path_factory.mktemp("rated") / "run"
    fit(small_split, rating_words(small_config), out)
    return Bundle.load(out / "bundle")


def cold_items(bundle):
    """Items without a like in training: they stand where their texts are placed."""
    liked = bundle.history.items[bundle.history.ratings >= 4]
    return np.setdiff1d(np.arange(bundle.num_items), liked)


def placed(bundle, texts):
    placer = Placer(bundle)
    try:
        return placer.place(texts)
    finally:
        placer.close()


def test_a_new_item_with_a_cold_items_text_stands_where_that_item_stands(loaded):
    cold = cold_items(loaded)
    assert len(cold) >= 10
    found = placed(loaded, loaded.items["text"].iloc[cold].tolist())
    assert loaded.vectors.item_vectors.shape[1] == 16 + RANK
    np.testing.assert_allclose(found.anchor_KxD, loaded.vectors.item_vectors[cold], atol=1e-6)
    words_alone, bias = loaded.words.of_items(cold)
    assert not bias.any()
    assert np.abs(words_alone).max() > 1e-3  # not by the encoder's part alone


def test_the_service_lists_it_beside_its_twin_and_explains_both_by_their_texts(loaded):
    cold = cold_items(loaded)[0]
    service = Service(loaded)
    try:
        service.put_item("twin", str(loaded.items["text"].iloc[cold]))
        (answer,) = service.recommend([Query(user="u7", k=200, show_seen=True)])
        twin, old = (next(one for one in answer if one.item_id == name) for name in ("twin", f"i{cold}"))
        assert twin.group == NEW
        assert twin.score == pytest.approx(old.score, abs=1e-5)
        assert twin.from_behaviour == pytest.approx(0, abs=1e-5)
        assert old.from_behaviour == pytest.approx(0, abs=2e-3)  # texts are kept in half precision
        before = next(one for one in answer if one.item_id == "i0")
        service.put_item("i0", before.text)
        (answer,) = service.recommend([Query(user="u7", k=200, show_seen=True)])
        after = next(one for one in answer if one.item_id == "i0")
        assert after.score == pytest.approx(before.score, abs=2e-3)
    finally:
        service.close()


@pytest.mark.slow
def test_words_place_new_texts_of_a_model_of_ratings(rated, small_split, small_config):
    """Vector and bias of a text: the ridge from directions of texts and words together, as the solve left it."""
    problem = load_problem(small_split, rating_words(small_config))
    solved = solves.solve(problem, problem.features_IxE)
    assert rated.words.projection.shape == (RANK, 4)
    row_IxD = solved.anchors.vectors + solved.head["intercept"]
    found = placed(rated, rated.items["text"].tolist())
    np.testing.assert_allclose(found.anchor_KxD, row_IxD[:, 1:], atol=1e-4)
    np.testing.assert_allclose(found.bias_K, row_IxD[:, 0], atol=1e-4)
    _, by_encoder = anchors(rated.head, problem.features_IxE)
    assert np.abs(found.bias_K - by_encoder).max() > 1e-3


@pytest.mark.slow
def test_a_rated_service_explains_a_new_item_by_its_text(rated):
    service = Service(rated)
    try:
        service.put_item("fresh", str(rated.items["text"].iloc[85]))
        answer = service.recommend([Query(user="u7", k=200, show_seen=True)])[0]
        fresh = next(one for one in answer if one.item_id == "fresh")
        assert fresh.group == NEW
        assert fresh.from_behaviour == pytest.approx(0, abs=1e-5)
        assert fresh.bias + fresh.from_text == pytest.approx(fresh.score, abs=1e-5)
        before = next(one for one in answer if one.item_id == "i0")
        service.put_item("i0", before.text)
        answer = service.recommend([Query(user="u7", k=200, show_seen=True)])[0]
        assert next(one for one in answer if one.item_id == "i0").score == pytest.approx(before.score, abs=2e-3)
    finally:
        service.close()


@pytest.mark.parametrize("goal", ["loaded", pytest.param("rated", marks=pytest.mark.slow)])
def test_what_other_systems_run_places_texts_alike(goal, tmp_path, request):
    loaded = request.getfixturevalue(goal)
    jax_export = pytest.importorskip("jax.export")
    pytest.importorskip("flatbuffers")
    from ltrec_jax.bundle import load_tensors

    export_bundle(loaded, tmp_path / "exported")
    texts = [*loaded.items["text"].iloc[:5], "the comet comet orbit comet", "zzz"]
    tokenizer = load_tokenizer(loaded.encoder.directory, loaded.encoder.config.vocab_size)
    values, offsets, _ = tokenizer.encode(texts, LENGTH)
    tokens = TokenStore(values, offsets)
    ids = np.zeros((len(texts), LENGTH), np.int32)
    for row in range(len(texts)):
        ids[row, : tokens.lengths[row]] = tokens.row(row)
    program = jax_export.deserialize((tmp_path / "exported" / "encoder.jaxexport").read_bytes())
    parameters = load_tensors(tmp_path / "exported" / "parameters.safetensors")
    _, anchor, bias = program.call(parameters, ids, tokens.lengths.astype(np.int32))
    np.testing.assert_allclose(anchor, placed(loaded, texts).anchor_KxD, atol=1e-5)
    np.testing.assert_allclose(bias, placed(loaded, texts).bias_K, atol=1e-5)


def test_a_bundle_from_before_there_were_words_opens(small_split, small_config, tmp_path, loaded):
    config = with_words(small_config, share=0.0)
    bundle = fit(small_split, config, tmp_path / "run")
    place = tmp_path / "run" / "bundle"
    assert not (place / "words.safetensors").exists()
    description = json.loads((place / "bundle.json").read_text())
    for name in ("lexical_share", "lexical_rank"):
        del description["config"]["whole_data"][name]
    (place / "bundle.json").write_text(json.dumps(description))
    old = Bundle.load(place)
    assert old.words is None
    np.testing.assert_array_equal(old.vectors.item_vectors, bundle.vectors.item_vectors)
    assert loaded.words is not None


def test_words_come_back_whole_or_not_at_all(run, loaded, tmp_path):
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    loaded.save(tmp_path / "again")
    for name in ("words.safetensors", "arrays/word_vectors.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (run / "bundle" / name).read_bytes()
    (tmp_path / "bundle" / "words.safetensors").unlink()
    with pytest.raises(Exception, match=r"words\.safetensors is missing or changed"):
        Bundle.load(tmp_path / "bundle")


@pytest.mark.slow
def test_after_fine_tuning_words_still_place_a_new_item(small_split, small_config, tmp_path):
    config = with_words(small_config, steps="solve_tune_solve", trainable="top:1", epochs=3, batch_items=16)
    fit(small_split, config, tmp_path / "run")
    tuned = Bundle.load(tmp_path / "run" / "bundle")
    cold = cold_items(tuned)
    found = placed(tuned, tuned.items["text"].iloc[cold].tolist())
    np.testing.assert_allclose(found.anchor_KxD, tuned.vectors.item_vectors[cold], atol=1e-5)


@pytest.mark.slow
def test_the_schedule_of_ratings_goes_through_with_words(small_split, small_config, tmp_path):
    schedule = {"steps": "solve_tune_solve", "trainable": "top:1", "epochs": 1, "batch_items": 16}
    bundle = fit(small_split, rating_words(small_config, **schedule), tmp_path / "run")
    events = small_split.validation
    assert np.isfinite(bundle.score_pairs(events.user, events.item)).all()
    assert bundle.words.projection.any()
