"""Make tests/fixtures/encoder/{bert,roberta,distilbert}: tiny random PyTorch models, their activations and gradients.

Run once, in an environment with CPU torch and transformers 5 (torch is no dependency of the project):

    python tests/reference/make_bert_fixture.py

Each directory gets `config.json` and `model.safetensors` as `save_pretrained` writes them, and
`expected.safetensors`: `ids`, `mask` (1 = token), `hidden.0` (embeddings), `hidden.<n>` (after layer n), `pooled`
(where there is a pooler), and `grad.<parameter>` of sum(weights * hidden of the last layer), `weights`
being zero on padding.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoder"
SIZES = {"vocab_size": 60, "max_position_embeddings": 24}
BERT_SIZES = {**SIZES, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
LENGTHS = (7, 10, 3)


def models() -> dict[str, torch.nn.Module]:
    distil = DistilBertConfig(**SIZES, dim=16, n_layers=2, n_heads=4, hidden_dim=40)
    return {
        "bert": BertModel(BertConfig(**BERT_SIZES)),
        "roberta": RobertaModel(RobertaConfig(**BERT_SIZES, layer_norm_eps=1e-5, pad_token_id=1, type_vocab_size=1)),
        "distilbert": DistilBertModel(distil),
    }


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Large enough that attention is uneven, GELU leaves its linear part and LayerNorm's parameters matter."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        parameter.data = centre + 0.3 * noise


def padded_ids(pad: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids of rows of uneven length, and their mask."""
    ids = torch.randint(5, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    return torch.where(mask == 1, ids, pad), mask


def save(model: torch.nn.Module, expected: dict[str, torch.Tensor], directory: Path) -> None:
    """The model as transformers writes it, and what it gives."""
    model.save_pretrained(directory)
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, directory / "expected.safetensors")


def main() -> None:
    generator = torch.Generator().manual_seed(7)
    for family, model in models().items():
        model.eval()
        randomise(model, generator)
        ids, mask = padded_ids(model.config.pad_token_id, generator)
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        weights = torch.randn(out.last_hidden_state.shape, generator=generator) * mask[..., None]
        (weights * out.last_hidden_state).sum().backward()
        expected = {"ids": ids, "mask": mask, "weights": weights}
        expected |= {f"hidden.{n}": hidden.detach() for n, hidden in enumerate(out.hidden_states)}
        if getattr(out, "pooler_output", None) is not None:
            expected["pooled"] = out.pooler_output.detach()
        expected |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        save(model, expected, FIXTURES / family)


if __name__ == "__main__":
    main()
