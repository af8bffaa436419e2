"""Make tests/fixtures/encoder/minilm_20_sentences.npy: PyTorch's vectors of 20 sentences by the real all-MiniLM-L6-v2.

Run once, in an environment with CPU torch and transformers 5, on the directory of the checkpoint:

    python tests/reference/make_minilm_fixture.py DIRECTORY

The recipe is sentence-transformers': mean of the last hidden states over the tokens of the mask, then divided by the
Euclidean length. float32 [20, 384], one row per line of minilm_20_sentences.txt.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoder"


def main() -> None:
    sentences = (FIXTURES / "minilm_20_sentences.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModel.from_pretrained(sys.argv[1]).eval()
    batch = tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    np.save(FIXTURES / "minilm_20_sentences.npy", vectors.numpy())


if __name__ == "__main__":
    main()
