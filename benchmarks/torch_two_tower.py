"""The same two-tower model in PyTorch, written as one would write it: the rival of the training benchmarks.

It reads what `exchange.write` left in a folder (weights, batches, settings), trains, and prints losses and seconds as
JSON. It knows nothing of JAX or ltrec_jax:  python benchmarks/torch_two_tower.py FOLDER '{"variant": "deduplicated"}'

Variants: `plain` encodes the text of every pair of a random batch, padded to the batch's longest, with dense Adam, as
the field's tutorials do; `deduplicated` takes the very batches that ltrec_jax uses, each text once, packed. With
`head_steps` it first learns head and tables on frozen text vectors, in the batches that ltrec_jax uses for that.
Everything is on a GPU where there is one; batches are sent there outside of the time, and every step is waited for.
"""

import contextlib
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch_reference import device, peak_gib, settle
from transformers import AutoModel

Batch = dict[str, torch.Tensor]


class TwoTower(nn.Module):
    """score(u, i) = mu + b_u + b_i + <p_u, q_i> over BertModel; tables hold vector and bias side by side."""

    def __init__(self, folder: Path, *, sparse: bool) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(folder / "encoder", add_pooling_layer=False).eval()
        self.bert.embeddings.word_embeddings.sparse = sparse
        head = np.load(folder / "head.npz")
        self.register_buffer("mu", torch.from_numpy(head["mu"]))
        self.register_buffer("center", torch.from_numpy(head["center"]))
        self.register_buffer("features", torch.from_numpy(head["features"]))
        self.projection = nn.Parameter(torch.from_numpy(head["projection"]))
        self.text_bias = nn.Parameter(torch.from_numpy(head["text_bias"]))
        # One row more than there are users and items: padding.
        self.users = _table(head["users"], sparse=sparse)
        self.items = _table(head["items"], sparse=sparse)

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Mean-pooled text vectors [K, E] of the batch's packed or padded texts, or the frozen ones if it has none."""
        if "token_ids" not in batch:
            return self.features[batch["item"].clamp(max=len(self.features) - 1)]
        hidden = self.bert(
            input_ids=batch["token_ids"], attention_mask=batch["mask"], position_ids=batch["position"]
        ).last_hidden_state
        # Autocast leaves bfloat16 behind; sums over tokens want float32.
        hidden = hidden.float().flatten(0, 1)
        slots = len(batch["item"])
        sums = hidden.new_zeros(slots + 1, hidden.shape[1]).index_add(0, batch["slot"], hidden)
        counts = torch.bincount(batch["slot"], minlength=slots + 1).clamp(min=1)
        return (sums / counts[:, None])[:slots]

    def loss(self, batch: Batch, l2: dict[str, float], *, normalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(objective, squared error), both means over the weighted pairs."""
        pooled = self.pooled(batch)
        if normalise:
            pooled = nn.functional.normalize(pooled, dim=1)
        z = nn.functional.normalize(pooled - self.center, dim=1, eps=1e-6)
        user, item, weight = self.users(batch["pair_user"]), self.items(batch["item"]), batch["weight"]
        gated = batch["gate"][:, None] * item
        q, b = z @ self.projection + gated[:, :-1], z @ self.text_bias + gated[:, -1]
        slot = batch["pair_item"]
        score = self.mu + user[:, -1] + b[slot] + (user[:, :-1] * q[slot]).sum(1)
        error = (weight * (score - batch["target"]) ** 2).sum()
        per_user = l2["user"] * (user[:, :-1] ** 2).sum(1) + l2["bias"] * user[:, -1] ** 2
        per_item = l2["item"] * (item[:, :-1] ** 2).sum(1) + l2["bias"] * item[:, -1] ** 2
        penalty = (weight * (per_user + per_item[slot])).sum()
        total = weight.sum()
        return (error + penalty) / total, (error / total).detach()


def _table(rows: np.ndarray, *, sparse: bool) -> nn.Embedding:
    table = nn.Embedding(len(rows) + 1, rows.shape[1], padding_idx=len(rows), sparse=sparse)
    with torch.no_grad():
        table.weight.copy_(torch.from_numpy(np.concatenate([rows, np.zeros_like(rows[:1])])))
    return table


def optimizers(model: TwoTower, settings: dict[str, Any], *, sparse: bool) -> list[torch.optim.Optimizer]:
    """AdamW over encoder and head, Adam over the tables; with `sparse`, SparseAdam over all three tables."""
    words = model.bert.embeddings.word_embeddings.weight
    tables = [model.users.weight, model.items.weight]
    encoder = [p for p in model.bert.parameters() if not (sparse and p is words)]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in encoder if (p.ndim == 2) == decays], "lr": settings["learning_rate"]}
        | {"weight_decay": settings["weight_decay"] if decays else 0.0}
        for decays in (True, False)
    ]
    groups.append(head_group(model, settings))
    rate = settings["table_learning_rate"]
    if sparse:
        return [
            torch.optim.AdamW(groups, fused=True),
            torch.optim.SparseAdam(tables, lr=rate),
            torch.optim.SparseAdam([words], lr=settings["learning_rate"]),
        ]
    return [torch.optim.AdamW([*groups, {"params": tables, "lr": rate, "weight_decay": 0.0}], fused=True)]


def head_group(model: TwoTower, settings: dict[str, Any]) -> dict[str, Any]:
    """Projection and text bias as a group of AdamW."""
    return {
        "params": [model.projection, model.text_bias],
        "lr": settings["head_learning_rate"],
        "weight_decay": settings["head_weight_decay"],
    }


def factor(step: int, settings: dict[str, Any]) -> float:
    """Linear warm-up, then a cosine to 0, over `total_steps`."""
    total, warm = settings["total_steps"], round(settings["total_steps"] * settings["warmup"])
    if step < warm:
        return (step + 1) / max(warm, 1)
    return 0.5 * (1 + math.cos(math.pi * min(max((step - warm) / max(total - warm, 1), 0.0), 1.0)))


def clip(parameters: list[torch.Tensor], largest: float) -> None:
    """`clip_grad_norm_`, which takes no sparse gradient, over encoder, its words and head: what our step clips."""
    sparse = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
    if not sparse:
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    for p in sparse:
        p.grad = p.grad.coalesce()
    gradients = [p.grad._values() if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))


def head_batches(folder: Path) -> Callable[[int], Batch]:
    """Batch number n of the exchanged ones for the head: nothing to encode."""
    stored = [dict(np.load(path)) for path in sorted(folder.glob("head-*.npz"))]
    wide = ("item", "pair_user", "pair_item")

    def make(number: int) -> Batch:
        raw = {name: torch.from_numpy(value) for name, value in stored[number % len(stored)].items()}
        return {name: value.long() if name in wide else value for name, value in raw.items()}

    return make


def packed_batches(folder: Path) -> Callable[[int], Batch]:
    """Batch number n of the exchanged ones: packed rows, a token sees the tokens of its text."""
    stored = [dict(np.load(path)) for path in sorted(folder.glob("batch-*.npz"))]

    def make(number: int) -> Batch:
        raw = {name: torch.from_numpy(value) for name, value in stored[number % len(stored)].items()}
        slot = raw["token_slot"].long()
        return {
            "token_ids": raw["token_ids"].long(),
            "position": raw["token_position"].long(),
            "mask": (slot[:, :, None] == slot[:, None, :])[:, None],
            "slot": slot.flatten(),
            "item": raw["item"].long(),
            "gate": raw["gate"],
            "pair_user": raw["pair_user"].long(),
            "pair_item": raw["pair_item"].long(),
            "target": raw["target"],
            "weight": raw["weight"],
        }

    return make


def padded_texts(texts: Mapping[str, np.ndarray], item: np.ndarray) -> Batch:
    """The texts of these items, one each, padded to the longest."""
    values, offsets = texts["values"], texts["offsets"]
    lengths = (offsets[item + 1] - offsets[item]).astype(np.int64)
    ids = np.zeros((len(item), int(lengths.max())), np.int64)
    for row, i in enumerate(item):
        ids[row, : lengths[row]] = values[offsets[i] : offsets[i + 1]]
    mask = torch.from_numpy(np.arange(ids.shape[1])[None] < lengths[:, None])
    count = len(item)
    return {
        "token_ids": torch.from_numpy(ids),
        "position": torch.arange(ids.shape[1])[None],
        "mask": mask.long(),
        "slot": torch.where(mask, torch.arange(count)[:, None], count).flatten(),
        "item": torch.from_numpy(item).long(),
        "gate": torch.from_numpy(texts["gate"][item]),
    }


def plain_batches(folder: Path, size: int, *, like_packed: bool = False) -> Callable[[int], Batch]:
    """Random batches of `size` pairs, every pair with its own copy of its item's text, padded to the longest.

    `like_packed` takes the pairs of the exchanged batches instead, for the comparison of losses.
    """
    texts, pairs = dict(np.load(folder / "texts.npz")), np.load(folder / "pairs.npz")
    order = np.random.default_rng(0).permutation(len(pairs["user"]))
    stored = [dict(np.load(path)) for path in sorted(folder.glob("batch-*.npz"))] if like_packed else []

    def make(number: int) -> Batch:
        if stored:
            raw = stored[number % len(stored)]
            used = raw["weight"] > 0
            user, item, rating = raw["pair_user"][used], raw["item"][raw["pair_item"][used]], raw["target"][used]
        else:
            rows = order[(number * size) % len(order) :][:size]
            user, item, rating = (pairs[name][rows] for name in ("user", "item", "rating"))
        return padded_texts(texts, item) | {
            "pair_user": torch.from_numpy(user).long(),
            "pair_item": torch.arange(len(item)),
            "target": torch.from_numpy(rating),
            "weight": torch.ones(len(item)),
        }

    return make


def placed(batch: Batch) -> Batch:
    """The batch where the model is, and there for good: nothing of it is still under way."""
    found = {name: value.to(device()) for name, value in batch.items()}
    settle()
    return found


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    with torch.autocast(device(), dtype=torch.bfloat16) if name == "bfloat16" else contextlib.nullcontext():
        yield


@torch.inference_mode()
def validation_rmse(model: TwoTower, folder: Path, *, normalise: bool, frozen: bool) -> float:
    """Root mean squared error on the validation pairs, in float32; `frozen`: on the frozen text vectors."""
    texts, pairs = dict(np.load(folder / "texts.npz")), np.load(folder / "validation.npz")
    items, slot = np.unique(pairs["item"], return_inverse=True)
    squared = 0.0
    for start in range(0, len(items), 256):
        chosen = np.flatnonzero((slot >= start) & (slot < start + 256))
        batch = padded_texts(texts, items[start : start + 256]) | {
            "pair_user": torch.from_numpy(pairs["user"][chosen]).long(),
            "pair_item": torch.from_numpy(slot[chosen] - start),
            "target": torch.from_numpy(pairs["rating"][chosen]),
            "weight": torch.ones(len(chosen)),
        }
        if frozen:
            del batch["token_ids"]
        _, error = model.loss(placed(batch), {"user": 0.0, "item": 0.0, "bias": 0.0}, normalise=normalise)
        squared += float(error) * len(chosen)
    return math.sqrt(squared / len(slot))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training: where its batches come from, how many, what learns, and after how many it is evaluated."""

    make: Callable[[int], Batch]
    steps: int
    steppers: list[torch.optim.Optimizer]
    settings: dict[str, Any]
    every: int
    frozen: bool = False


def stages(model: TwoTower, folder: Path, asked: dict[str, Any], settings: dict[str, Any]) -> Iterator[Stage]:
    """The stages that were asked for. Each is made when the one before is done: its optimizers go on from there."""
    sparse, every = asked.get("sparse", False), asked.get("every", 0)
    if asked["variant"] == "plain":
        make = plain_batches(folder, asked.get("batch", 64), like_packed=asked.get("like_packed", False))
    else:
        make = packed_batches(folder)
    if not (head_steps := asked.get("head_steps", 0)):
        yield Stage(make, asked["steps"], optimizers(model, settings, sparse=sparse), settings, every)
        return
    tables = torch.optim.SparseAdam([model.users.weight, model.items.weight], lr=settings["table_learning_rate"])
    head = torch.optim.AdamW([head_group(model, settings)], fused=True)
    horizon = settings | {"total_steps": head_steps}
    yield Stage(head_batches(folder), head_steps, [head, tables], horizon, asked["head_every"], frozen=True)
    slower = {name: settings["joint_rate"] * settings[name] for name in ("head_learning_rate", "table_learning_rate")}
    dense, _, words = optimizers(model, settings | slower, sparse=True)
    tables.param_groups[0]["lr"] = slower["table_learning_rate"]
    yield Stage(make, asked["steps"], [dense, tables, words], settings, every)


def encoding_seconds(model: TwoTower, folder: Path, numbers: str) -> float:
    """Median of 3 encodings of all texts without gradient: batches of 64 sorted by length, padded to their longest."""
    texts = np.load(folder / "texts.npz")
    values, offsets = texts["values"].astype(np.int64), texts["offsets"]
    order = np.argsort(-np.diff(offsets), kind="stable")
    work = []
    for start in range(0, len(order), 64):
        rows = [torch.from_numpy(values[offsets[text] : offsets[text + 1]]) for text in order[start : start + 64]]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
        work.append((ids.to(device()), mask.to(device())))
    taken = []
    with torch.inference_mode(), precision(numbers):
        for _ in range(4):
            start_time = time.perf_counter()
            for ids, mask in work:
                hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                nn.functional.normalize(pooled, dim=1)
            settle()
            taken.append(time.perf_counter() - start_time)
    return statistics.median(taken[1:])


def train(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Losses and seconds of all steps; making the batch is not timed."""
    settings = json.loads((folder / "settings.json").read_text())
    torch.manual_seed(0)
    torch.set_num_threads(asked.get("threads", 2))
    model = TwoTower(folder, sparse=asked.get("sparse", False)).to(device())
    tables = (model.users.weight, model.items.weight)
    encoding = encoding_seconds(model, folder, asked["precision"]) if asked.get("head_steps") else 0.0
    losses, seconds, pairs, curve = [], [], 0, []
    until, limit, done = asked.get("until", 0.0), asked.get("limit", math.inf), False
    for stage in stages(model, folder, asked, settings):
        peaks = [[group["lr"] for group in stepper.param_groups] for stepper in stage.steppers]
        learning = [p for stepper in stage.steppers for group in stepper.param_groups for p in group["params"]]
        clipped = [p for p in learning if not any(p is table for table in tables)]
        for number in range(stage.steps):
            batch = placed(stage.make(number))
            start = time.perf_counter()
            for stepper, own in zip(stage.steppers, peaks, strict=True):
                for group, peak in zip(stepper.param_groups, own, strict=True):
                    group["lr"] = peak * factor(number, stage.settings)
                stepper.zero_grad(set_to_none=True)
            with precision(asked.get("precision", "float32")):
                loss, error = model.loss(batch, settings["l2"], normalise=settings["normalise"])
            loss.backward()
            if settings["clip_norm"]:
                clip(clipped, settings["clip_norm"])
            for stepper in stage.steppers:
                stepper.step()
            losses.append(float(error))
            settle()
            seconds.append(time.perf_counter() - start)
            pairs += int((batch["weight"] > 0).sum())
            # What has taken too long without getting there is evaluated once more and given up.
            late = sum(seconds) > limit
            if late or (stage.every and (number + 1) % stage.every == 0):
                rmse = validation_rmse(model, folder, normalise=settings["normalise"], frozen=stage.frozen)
                curve.append({"updates": len(seconds), "seconds": sum(seconds), "rmse": rmse})
                if done := late or rmse <= until:
                    break
        if done:
            break
    return {
        "curve": curve,
        "encoding": encoding,
        "losses": losses,
        "seconds": seconds,
        "pairs": pairs,
        "peak_gib": peak_gib(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]), json.loads(sys.argv[2]))))
