"""The real MiniLM on the MovieLens-1M titles: the vectors of sentence-transformers' recipe, in every precision.

Without PyTorch, `test_catalogue` compares with its stored vectors of twenty sentences.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from ltrec_jax.encoder import dense
from ltrec_jax.encoder.catalogue import encode_catalogue
from ltrec_jax.encoder.shards import encode_to_disk
from ltrec_jax.encoder.weights import Encoder, load_encoder
from ltrec_jax.text import corpus
from ltrec_jax.text.store import TokenStore, build_store
from ltrec_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm(minilm_directory: Path) -> Encoder:
    return load_encoder(minilm_directory)


@pytest.fixture(scope="module")
def films() -> Any:
    from ltrec_jax.data import sources

    return sources.load("movielens-1m")


@pytest.fixture(scope="module")
def tokens(minilm: Encoder, films: Any) -> TokenStore:
    tokenizer = load_tokenizer(minilm.directory, minilm.config.vocab_size)
    return build_store(films.items["title"].tolist(), tokenizer, minilm.max_length)


@pytest.fixture(scope="module")
def exact(minilm: Encoder, tokens: TokenStore) -> np.ndarray:
    return encode_catalogue(minilm, tokens, progress=False)


def test_vectors_of_titles_equal_the_recipe_in_pytorch(
    minilm: Encoder, films: Any, tokens: TokenStore, exact: np.ndarray
) -> None:
    """Tokenizer, model, mean over the mask and normalisation, all by transformers and PyTorch."""
    torch = pytest.importorskip("torch", reason="live parity needs PyTorch (extra `bench`)")
    from transformers import AutoModel, AutoTokenizer

    titles = films.items["title"].tolist()[:512]
    tokenizer, model = AutoTokenizer.from_pretrained(minilm.directory), AutoModel.from_pretrained(minilm.directory)
    expected = []
    with torch.inference_mode():
        for start in range(0, len(titles), 64):
            batch = tokenizer(
                titles[start : start + 64], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None].float()
            hidden = model.eval()(**batch).last_hidden_state
            expected.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy())
    theirs = np.concatenate(expected)
    rounded = encode_catalogue(minilm, tokens.take(np.arange(512)), policy="bfloat16", progress=False)
    assert (exact[:512] * theirs).sum(-1).min() >= 0.99999
    assert (rounded * theirs).sum(-1).min() >= 0.9995


def test_int8_keeps_the_order_of_all_pairs_of_titles(minilm: Encoder, tokens: TokenStore, exact: np.ndarray) -> None:
    """At least 99.6% rank correlation, the figure of OpenVINO's int8 sentence encoders."""
    rounded = encode_catalogue(minilm, tokens, policy="int8", progress=False)
    pairs = np.triu_indices(len(exact), k=1)
    found = scipy.stats.spearmanr((exact @ exact.T)[pairs], (rounded @ rounded.T)[pairs]).statistic
    assert found >= 0.996


@pytest.mark.parametrize(("policy", "cosine"), [("float32", 0.999999), ("bfloat16", 0.9995)])
def test_on_disk_and_over_all_devices(
    minilm: Encoder, films: Any, exact: np.ndarray, tmp_path: Path, policy: dense.Policy, cosine: float
) -> None:
    titles = corpus.from_texts(films.items["title"].tolist()[:1024])
    made = encode_to_disk(minilm, titles, tmp_path / "out", policy=policy, shard_tokens=4096)
    assert (made.vectors * exact[:1024]).sum(-1).min() >= cosine
