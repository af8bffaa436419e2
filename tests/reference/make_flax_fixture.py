"""Make tests/fixtures/encoder/flax_{bert,roberta,distilbert}: checkpoints of transformers 4.57.6.

Run once, in an environment of its own (transformers 5 dropped the Flax classes):

    pip install transformers==4.57.6 jax==0.10.2 flax==0.12.8
    python tests/reference/make_flax_fixture.py

Each directory gets `config.json` and `flax_model.msgpack` as `save_pretrained` writes them, and `expected.npz`: `ids`,
`mask` (1 = token), `hidden` (last layer; of every token that is not padding equal to PyTorch's).
`flax_bert_heads` is a masked-language model whose encoder lies under `bert/`, beside a head, in shards.
"""

from pathlib import Path

import jax
import numpy as np
from transformers import (
    BertConfig,
    DistilBertConfig,
    FlaxBertForMaskedLM,
    FlaxBertModel,
    FlaxDistilBertModel,
    FlaxRobertaModel,
    RobertaConfig,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoder"
SIZES = {"vocab_size": 60, "max_position_embeddings": 24}
BERT_SIZES = {**SIZES, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
LENGTHS = (7, 10, 3)


def randomise(params: dict, seed: int) -> dict:
    """The initial parameters plus noise, so that biases and LayerNorm's parameters matter."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + generator.normal(0.0, 0.3, leaf.shape).astype(np.float32), params)


def save(name: str, model, **how: str) -> None:
    model.params = randomise(model.params, seed=11)
    pad = model.config.pad_token_id
    generator = np.random.default_rng(12)
    ids = generator.integers(5, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = (np.arange(max(LENGTHS))[None] < np.asarray(LENGTHS)[:, None]).astype(np.int32)
    ids = np.where(mask == 1, ids, pad).astype(np.int32)
    hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    model.save_pretrained(FIXTURES / name, **how)
    np.savez(FIXTURES / name / "expected.npz", ids=ids, mask=mask, hidden=np.asarray(hidden))


def main() -> None:
    roberta = RobertaConfig(**BERT_SIZES, layer_norm_eps=1e-5, pad_token_id=1, type_vocab_size=1)
    save("flax_bert", FlaxBertModel(BertConfig(**BERT_SIZES)))
    save("flax_roberta", FlaxRobertaModel(roberta))
    save(
        "flax_distilbert", FlaxDistilBertModel(DistilBertConfig(**SIZES, dim=16, n_layers=2, n_heads=4, hidden_dim=40))
    )
    save("flax_bert_heads", FlaxBertForMaskedLM(BertConfig(**BERT_SIZES)), max_shard_size="10KB")


if __name__ == "__main__":
    main()
