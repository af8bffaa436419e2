"""The real all-MiniLM-L6-v2: stored PyTorch vectors, and live comparison where torch is installed."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from ltrec_jax.encoder import dense, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.weights import Encoder, export_weights, load_encoder

COSINE = {"float32": 0.99999, "bfloat16": 0.9995}


@pytest.fixture(scope="module")
def minilm(minilm_directory: Path) -> Encoder:
    return load_encoder(minilm_directory)


@pytest.fixture(scope="module")
def batch(minilm: Encoder, encoder_fixtures: Path) -> dict[str, np.ndarray]:
    sentences = (encoder_fixtures / "minilm_20_sentences.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(minilm.directory)
    encoded = tokenizer(sentences, padding=True, truncation=True, max_length=minilm.max_length, return_tensors="np")
    return {name: array.astype(np.int32) for name, array in encoded.items()}


def vectors(encoder: Encoder, batch: dict[str, np.ndarray], policy: dense.Policy) -> np.ndarray:
    @jax.jit
    def run(params: Any) -> jax.Array:
        mask = batch["attention_mask"]
        hidden = Bert(encoder.config, policy).apply({"params": params}, batch["input_ids"], mask)
        slots = np.where(mask == 1, np.arange(len(mask))[:, None], len(mask))
        return pooling.normalise(pooling.pool(hidden, slots, len(mask), encoder.pooling))

    return np.asarray(run(encoder.params))


def test_checkpoint_says_how_to_pool(minilm: Encoder) -> None:
    assert (minilm.pooling, minilm.normalize, minilm.max_length, minilm.config.num_layers) == ("mean", True, 256, 6)


@pytest.mark.parametrize("policy", dense.TRAINING_POLICIES)
def test_vectors_of_twenty_sentences_equal_pytorch(
    minilm: Encoder, batch: dict[str, np.ndarray], encoder_fixtures: Path, policy: dense.Policy
) -> None:
    expected = np.load(encoder_fixtures / "minilm_20_sentences.npy", allow_pickle=False)
    found = vectors(minilm, batch, policy)
    assert (found * expected).sum(-1).min() > COSINE[policy]
    if policy == "float32":
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_nearest_sentences_make_sense(minilm: Encoder, batch: dict[str, np.ndarray]) -> None:
    """The two foxes (15, 16) are each other's nearest neighbours."""
    found = vectors(minilm, batch, "float32")
    similarity = found @ found.T - 2.0 * np.eye(len(found))
    assert similarity[15].argmax() == 16
    assert similarity[16].argmax() == 15


@pytest.mark.slow
def test_hidden_states_and_gradients_equal_pytorch_live(minilm: Encoder, batch: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch", reason="live parity needs PyTorch (extra `bench`)")
    from transformers import BertModel

    model = BertModel.from_pretrained(minilm.directory).eval()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    out = model(input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    weights = np.random.default_rng(0).normal(size=(*ids.shape, 384)).astype(np.float32) * mask[..., None]
    (torch.from_numpy(weights) * out.last_hidden_state).sum().backward()

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        hidden = Bert(minilm.config).apply({"params": params}, ids, mask)
        return (weights * hidden).sum(), hidden

    gradients, hidden = jax.jit(jax.grad(loss, has_aux=True))(minilm.params)
    real = mask == 1
    np.testing.assert_allclose(
        np.asarray(hidden)[real], out.last_hidden_state.detach().numpy()[real], rtol=1e-4, atol=1e-4
    )
    for layer in (0, 5):
        ours = gradients["encoder"]["layer"][str(layer)]["intermediate"]["dense"]["kernel"].T
        theirs = model.encoder.layer[layer].intermediate.dense.weight.grad.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.slow
def test_export_loads_in_transformers_with_equal_outputs(
    minilm: Encoder, batch: dict[str, np.ndarray], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="live parity needs PyTorch (extra `bench`)")
    from transformers import AutoModel

    export_weights(minilm, tmp_path / "out")
    feed = {name: torch.from_numpy(batch[name]).long() for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours, theirs = (
            AutoModel.from_pretrained(place).eval()(**feed).last_hidden_state
            for place in (tmp_path / "out", minilm.directory)
        )
    assert torch.equal(ours, theirs)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == minilm.config.vocab_size
