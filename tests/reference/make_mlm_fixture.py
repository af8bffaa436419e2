"""Make tests/fixtures/encoder/mlm/{bert,roberta,distilbert}: tiny random PyTorch masked-language models, their scores.

Run once, in an environment with CPU torch and transformers 5 (torch is no dependency of the project):

    python tests/reference/make_mlm_fixture.py

Each directory gets `config.json` and `model.safetensors` as `save_pretrained` writes them, and `expected.safetensors`:
`ids`, `mask` (1 = token), `logits`, `targets` (-100 where nothing is asked) and `loss`.
"""

from pathlib import Path

import torch
from make_bert_fixture import BERT_SIZES, SIZES, padded_ids, randomise, save
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoder" / "mlm"


def models() -> dict[str, torch.nn.Module]:
    roberta = RobertaConfig(**BERT_SIZES, layer_norm_eps=1e-5, pad_token_id=1, type_vocab_size=1)
    distil = DistilBertConfig(**SIZES, dim=16, n_layers=2, n_heads=4, hidden_dim=40)
    return {
        "bert": BertForMaskedLM(BertConfig(**BERT_SIZES)),
        "roberta": RobertaForMaskedLM(roberta),
        "distilbert": DistilBertForMaskedLM(distil),
    }


def main() -> None:
    generator = torch.Generator().manual_seed(13)
    for family, model in models().items():
        model.eval()
        randomise(model, generator)
        ids, mask = padded_ids(model.config.pad_token_id, generator)
        asked = (torch.rand(ids.shape, generator=generator) < 0.4) & (mask == 1)
        targets = torch.where(asked, torch.randint(5, SIZES["vocab_size"], ids.shape, generator=generator), -100)
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=mask, labels=targets)
        expected = {"ids": ids, "mask": mask, "logits": out.logits, "targets": targets, "loss": out.loss}
        save(model, expected, FIXTURES / family)


if __name__ == "__main__":
    main()
