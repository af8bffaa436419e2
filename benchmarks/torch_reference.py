"""The same encoder in PyTorch, written as one would write it: the rival of the encoding benchmark.

It reads tokens (`values.npy`, `offsets.npy`) from a folder, encodes them by transformers' BertModel in its fastest
setting (inference_mode, scaled-dot-product attention), writes vectors and prints seconds as JSON. It knows nothing of
JAX or ltrec_jax:

    python benchmarks/torch_reference.py FOLDER '{"encoder": "DIR", "order": "sorted", "numbers": "float32"}'
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Batch = tuple[np.ndarray, torch.Tensor, torch.Tensor]


def load(encoder: str, numbers: str) -> torch.nn.Module:
    """The model. `numbers`: "float32"; "autocast" (bfloat16 products); "bfloat16" (weights and everything else too)."""
    dtype = torch.bfloat16 if numbers == "bfloat16" else torch.float32
    model = AutoModel.from_pretrained(encoder, add_pooling_layer=False, attn_implementation="sdpa", dtype=dtype)
    return model.eval().to(device())


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def settle() -> None:
    """Wait for what a GPU has been given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def precision(numbers: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device(), torch.bfloat16) if numbers == "autocast" else contextlib.nullcontext()


def batches(values: np.ndarray, offsets: np.ndarray, size: int, order: str) -> Iterator[Batch]:
    """(texts, ids, mask), each batch padded to its longest. "sorted": longest first; "given": as they come."""
    lengths = np.diff(offsets)
    places = np.argsort(-lengths, kind="stable") if order == "sorted" else np.arange(len(lengths))
    for start in range(0, len(places), size):
        chosen = places[start : start + size]
        ids = torch.zeros(len(chosen), int(lengths[chosen].max()), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(chosen):
            ids[row, : lengths[text]] = torch.from_numpy(values[offsets[text] : offsets[text + 1]].astype(np.int64))
            mask[row, : lengths[text]] = 1
        yield chosen, ids.to(device()), mask.to(device())


def encode(model: torch.nn.Module, work: list[Batch], count: int) -> np.ndarray:
    """Mean-pooled, normalised vectors, float32: the recipe of sentence-transformers."""
    vectors = np.zeros((count, model.config.hidden_size), np.float32)
    for chosen, ids, mask in work:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask[..., None]
        pooled = (hidden * kept).float().sum(1) / kept.sum(1)
        vectors[chosen] = torch.nn.functional.normalize(pooled).cpu().numpy()
    return vectors


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def run(
    folder: Path, encoder: str, numbers: str, order: str, sizes: list[int], repeats: int, threads: int
) -> dict[str, Any]:
    """Measure one setting; of several batch sizes the one whose first pass is fastest. "batch": `ids.npy` as it is."""
    torch.set_num_threads(threads)
    model = load(encoder, numbers)
    # `inference_mode` and the cast of a batch's tokens to tensors are outside of the time, as ours are.
    with torch.inference_mode(), precision(numbers):
        if order == "batch":
            ids = torch.from_numpy(np.load(folder / "ids.npy").astype(np.int64)).to(device())
            size = len(ids)
            batch = [(np.arange(size), ids, torch.ones_like(ids))]
            found = encode(model, batch, size)
            timed(lambda: encode(model, batch, size), 3)
            times = timed(lambda: encode(model, batch, size), repeats)
        else:
            values, offsets = np.load(folder / "values.npy"), np.load(folder / "offsets.npy")
            count = len(offsets) - 1
            work = {size: list(batches(values, offsets, size, order)) for size in sizes}
            found = encode(model, work[sizes[0]][:1], count)
            first = {}
            for size in sizes:
                start = time.perf_counter()
                found = encode(model, work[size], count)
                first[size] = time.perf_counter() - start
            size = min(first, key=first.__getitem__)
            times = timed(lambda: encode(model, work[size], count), repeats)
    np.save(folder / f"torch-{order}-{numbers}.npy", found)
    return {"seconds": times, "median_seconds": statistics.median(times), "batch": size, "torch": torch.__version__}


def peak_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / (1 << 20)


def main() -> None:
    asked = json.loads(sys.argv[2])
    if "processors" in asked:
        os.sched_setaffinity(0, asked.pop("processors"))
    result = run(Path(sys.argv[1]), **asked)
    print(json.dumps(result | {"peak_gib": peak_gib()}), flush=True)


if __name__ == "__main__":
    main()
