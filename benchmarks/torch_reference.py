"""The same encoder in PyTorch, written as one would write it: the rival of the encoding benchmark.

It reads tokens (`values.npy`, `offsets.npy`) from a folder, encodes them by transformers' BertModel in its fastest
setting (inference_mode, scaled-dot-product attention), writes vectors and prints seconds as JSON. It knows nothing of
JAX or ltrec_jax:

    python benchmarks/torch_reference.py FOLDER '{"encoder": "DIR", "kinds": ["titles"], ...}'
"""

import contextlib
import functools
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
    found = []
    for chosen, ids, mask in work:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask[..., None]
        pooled = (hidden * kept).float().sum(1) / kept.sum(1)
        found.append((chosen, torch.nn.functional.normalize(pooled)))
    # Fetched at the end, so that a GPU is never waited for between batches.
    for chosen, of_batch in found:
        vectors[chosen] = of_batch.cpu().numpy()
    return vectors


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def run(
    folder: Path,
    encoder: str,
    numbers: str,
    kinds: list[str],
    sizes: list[int],
    passes: int,
    batches: int,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Measure one kind of numbers; of several batch sizes the one that is fastest counts.

    `kinds` are folders of tokens, encoded in the given order and sorted; of "batch" `ids.npy` goes through as it is.
    """
    torch.set_num_threads(threads)
    model = load(encoder, numbers)
    found = {}
    # `inference_mode` and the cast of a batch's tokens to tensors are outside of the time.
    with torch.inference_mode(), precision(numbers):
        for kind in kinds:
            for order in ("batch",) if kind == "batch" else ("given", "sorted"):
                place, repeats = folder / kind, batches if kind == "batch" else passes
                works = whole_batch(place) if kind == "batch" else catalogue(place, sizes, order)
                count = sum(len(chosen) for chosen, *_ in next(iter(works.values())))
                vectors, seconds = np.zeros(0), {}
                for size, work in works.items():
                    # A GPU has to have seen every shape; on a CPU the first batch is enough.
                    for _ in range(4 if kind == "batch" else 1):
                        encode(model, work if device() == "cuda" else work[:1], count)
                    began = time.perf_counter()
                    vectors = encode(model, work, count)
                    seconds[size] = time.perf_counter() - began
                size = min(seconds, key=seconds.__getitem__)
                if device() == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                # What chose the size is a measurement as well.
                times = [seconds[size], *timed(functools.partial(encode, model, works[size], count), repeats - 1)]
                np.save(place / f"torch-{order}-{numbers}.npy", vectors)
                found[f"{kind}, {order}"] = {
                    "seconds": times,
                    "median_seconds": statistics.median(times),
                    "batch": size,
                    "torch": torch.__version__,
                    "device_gib": torch.cuda.max_memory_allocated() / (1 << 30) if device() == "cuda" else None,
                    "peak_gib": peak_gib(),
                }
    return found


def whole_batch(folder: Path) -> dict[int, list[Batch]]:
    ids = torch.from_numpy(np.load(folder / "ids.npy").astype(np.int64)).to(device())
    return {len(ids): [(np.arange(len(ids)), ids, torch.ones_like(ids))]}


def catalogue(folder: Path, sizes: list[int], order: str) -> dict[int, list[Batch]]:
    values, offsets = np.load(folder / "values.npy"), np.load(folder / "offsets.npy")
    return {size: list(batches(values, offsets, size, order)) for size in sizes}


def peak_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / (1 << 20)


def main() -> None:
    asked = json.loads(sys.argv[2])
    if "processors" in asked:
        os.sched_setaffinity(0, asked.pop("processors"))
    print(json.dumps(run(Path(sys.argv[1]), **asked)), flush=True)


if __name__ == "__main__":
    main()
