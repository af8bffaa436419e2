"""A catalogue's vectors: each distinct text once, equal to encoding it alone, whatever the packing."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from ltrec_jax.encoder import catalogue, dense, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.catalogue import encode_catalogue
from ltrec_jax.encoder.weights import Encoder, load_encoder
from ltrec_jax.text import packing
from ltrec_jax.text.store import TokenStore, build_store
from ltrec_jax.text.tokenizer import load_tokenizer


def store(texts: list[list[int]]) -> TokenStore:
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    return TokenStore(np.array([token for text in texts for token in text], np.int32), offsets)


def padded(encoder: Encoder, texts: list[list[int]]) -> np.ndarray:
    """Vectors by the plainest route: one text per row, padded to the longest; no text, no vector."""
    mask = np.array([[1] * len(text) + [0] * (max(map(len, texts)) - len(text)) for text in texts], np.int32)
    ids = np.zeros_like(mask)
    ids[mask == 1] = [token for text in texts for token in text]
    hidden = jax.jit(Bert(encoder.config).apply)({"params": encoder.params}, ids, mask)
    slots = np.where(mask == 1, np.arange(len(texts))[:, None], len(texts))
    return np.asarray(catalogue.finish(encoder, pooling.pool(hidden, slots, len(texts), encoder.pooling)))


@pytest.fixture
def texts() -> list[list[int]]:
    """40 texts of 1 to 20 tokens, some of them twice, one of them empty."""
    generator = np.random.default_rng(5)
    drawn = [generator.integers(5, 60, length).tolist() for length in generator.integers(1, 21, 36)]
    return [*drawn, drawn[3], drawn[7], [], drawn[3]]


@pytest.mark.parametrize("kind", pooling.POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_padded_rows(tiny_bert: Any, texts: list[list[int]], kind: str, normalize: bool) -> None:
    encoder = dataclasses.replace(tiny_bert.encoder, pooling=kind, normalize=normalize)
    found = encode_catalogue(encoder, store(texts), progress=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, padded(encoder, texts), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("tokens_per_call", [1, 128, 100_000])
def test_calls_of_any_size_give_the_same(tiny_bert: Any, texts: list[list[int]], tokens_per_call: int) -> None:
    one = encode_catalogue(tiny_bert.encoder, store(texts), progress=False)
    other = encode_catalogue(tiny_bert.encoder, store(texts), tokens_per_call=tokens_per_call, progress=False)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_long_and_short_texts_in_rows_of_their_own(encoder_fixtures: Path) -> None:
    """Lengths on both sides of every row length, up to the longest the encoder reads."""
    encoder = load_encoder(encoder_fixtures / "bert")
    config = dataclasses.replace(encoder.config, position_rows=300)
    table = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    params = {**encoder.params, "embeddings": {**encoder.params["embeddings"]}}
    params["embeddings"]["position_embeddings"] = {"embedding": table}
    encoder = dataclasses.replace(encoder, config=config, params=params)
    generator = np.random.default_rng(2)
    lengths = [1, 31, 32, 33, 63, 64, 65, 128, 129, 256, 257, 300]
    texts = [generator.integers(5, 60, length).tolist() for length in lengths]
    found = encode_catalogue(encoder, store(texts), progress=False)
    np.testing.assert_allclose(found, padded(encoder, texts), rtol=5e-5, atol=5e-5)


def test_equal_texts_are_encoded_once(tiny_bert: Any, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fill = packing.fill

    def noted(tokens: TokenStore, items: np.ndarray, *rest: Any) -> Any:
        asked.extend(items.tolist())
        return fill(tokens, items, *rest)

    monkeypatch.setattr(packing, "fill", noted)
    found = encode_catalogue(tiny_bert.encoder, store(texts), progress=False)
    # 36 drawn texts and the empty one are distinct; the empty one has nothing to encode.
    assert sorted(asked) == list(range(36))
    np.testing.assert_array_equal(found[3], found[36])
    np.testing.assert_array_equal(found[3], found[39])


def test_no_texts_at_all(tiny_bert: Any) -> None:
    assert encode_catalogue(tiny_bert.encoder, store([]), progress=False).shape == (0, 16)


def test_a_text_too_long_for_the_encoder(tiny_bert: Any) -> None:
    with pytest.raises(ValueError, match="a text has 25 tokens, the encoder reads 24"):
        encode_catalogue(tiny_bert.encoder, store([[5] * 25]), progress=False)


def test_progress_names_the_rates(tiny_bert: Any, texts: list[list[int]], capsys: pytest.CaptureFixture[str]) -> None:
    encode_catalogue(tiny_bert.encoder, store(texts))
    shown = capsys.readouterr()
    assert "tokens/s" in shown.err
    assert "texts/s" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(("policy", "cosine"), [("float32", 0.99999), ("bfloat16", 0.9995)])
def test_minilm_equals_pytorch(
    minilm_directory: Path, encoder_fixtures: Path, tmp_path: Path, policy: dense.Policy, cosine: float
) -> None:
    encoder = load_encoder(minilm_directory)
    sentences = (encoder_fixtures / "minilm_20_sentences.txt").read_text(encoding="utf-8").splitlines()
    tokens = build_store(sentences, load_tokenizer(encoder.directory, encoder.config.vocab_size), encoder.max_length)
    found = encode_catalogue(encoder, tokens, policy=policy, progress=False)
    expected = np.load(encoder_fixtures / "minilm_20_sentences.npy", allow_pickle=False)
    assert (found * expected).sum(-1).min() > cosine


def test_int8_keeps_the_order_of_similarities(minilm_directory: Path, ml100k: Any) -> None:
    """At least 99.6% rank correlation of the similarities of all pairs (the target of OpenVINO's int8 encoders)."""
    encoder = load_encoder(minilm_directory)
    titles = ml100k.items["title"].tolist()[:400]
    tokens = build_store(titles, load_tokenizer(encoder.directory, encoder.config.vocab_size), 64)
    pairs = np.triu_indices(len(titles), k=1)
    exact, rounded = (
        (vectors @ vectors.T)[pairs]
        for vectors in (encode_catalogue(encoder, tokens, policy=p, progress=False) for p in ("float32", "int8"))
    )
    assert scipy.stats.spearmanr(exact, rounded).statistic > 0.996
