"""Our side of the training benchmarks, and what the PyTorch side needs to train the same model on the same batches.

Out of scope: which sizes are compared (the `bench_*` scripts), the rival itself (`torch_two_tower`).
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ltrec_jax import parallel, storage
from ltrec_jax.config import Config
from ltrec_jax.data import sources, splits
from ltrec_jax.encoder.weights import export_weights
from ltrec_jax.train import phases
from ltrec_jax.train.batches import prefetch
from ltrec_jax.train.phases import Prepared
from ltrec_jax.train.problem import Problem, load_problem
from ltrec_jax.train.state import TrainState, full_params, own_copy

RIVAL = Path(__file__).with_name("torch_two_tower.py")


def configuration(dataset: str = "movielens-100k", *, precision: str = "float32", **train: Any) -> Config:
    """The quickstart's settings without the products' dropout, whose masks could not be the same on both sides."""
    config = Config()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dataset=dataset, split="random"),
        encoder=dataclasses.replace(config.encoder, precision=precision),
        model=dataclasses.replace(config.model, embedding_dropout=0.0),
        train=dataclasses.replace(config.train, **train),
    )


def problem_of(config: Config) -> Problem:
    """The problem on one device; compiled programs are kept as for every run."""
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    dataset = sources.load(config.data.dataset)
    split = splits.random(dataset, test=config.data.test, validation=config.data.validation, seed=config.seed)
    return load_problem(split, config, spread=parallel.choose("jit"))


def write_exchange(
    problem: Problem, prepared: Prepared, folder: Path, batches: int, head: Prepared | None = None
) -> None:
    """Weights, settings, batches, texts and pairs, for the rival to start from the same point.

    With a `head` phase before: from where that starts, and all of its batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = (head or prepared).state
    params = full_params(first)["head"]
    export_weights(problem.encoder, folder / "encoder", formats=("safetensors",), replace=True)
    tables = {name: np.asarray(first.tables[name].values) for name in ("users", "items")}
    start = {name: np.asarray(value) for name, value in params.items()}
    np.savez(folder / "head.npz", **start, **tables, features=problem.features_IxE)
    _write_batches(prepared, folder, "batch", batches)
    if head is not None:
        _write_batches(head, folder, "head", head.phase.epochs * head.source.steps_per_epoch)
    tokens, train, validation = problem.tokens, problem.split.train, problem.split.validation
    np.savez(folder / "texts.npz", values=tokens.values, offsets=tokens.offsets, gate=problem.gate_I)
    np.savez(folder / "pairs.npz", user=train.user, item=train.item, rating=train.rating)
    t, m = problem.config.train, problem.config.model
    np.savez(folder / "validation.npz", user=validation.user, item=validation.item, rating=validation.rating)
    settings = {
        "learning_rate": t.learning_rate,
        "head_learning_rate": t.head_learning_rate,
        "table_learning_rate": t.table_learning_rate,
        "joint_rate": t.joint_rate,
        "weight_decay": t.weight_decay,
        "head_weight_decay": t.head_weight_decay,
        "warmup": t.warmup,
        "total_steps": prepared.phase.epochs * prepared.source.steps_per_epoch,
        "clip_norm": t.clip_norm,
        "l2": {"user": m.user_l2, "item": m.item_l2, "bias": m.bias_l2},
        "normalise": problem.encoder.normalize,
    }
    (folder / "settings.json").write_text(json.dumps(settings))


def _write_batches(prepared: Prepared, folder: Path, name: str, count: int) -> None:
    for number in range(count):
        batch = prepared.source.batch(*divmod(number, prepared.source.steps_per_epoch))
        np.savez(folder / f"{name}-{number:04}.npz", **{k: v[0] for k, v in batch._asdict().items() if v is not None})


def run_ours(problem: Problem, prepared: Prepared, steps: int, *, first: int = 0) -> dict[str, Any]:
    """Losses and seconds of single steps, each blocked on; the first has the compilation in it."""
    key = problem.spread.replicate(phases.stream(problem, prepared.phase.name))
    state, losses, seconds, pairs = prepared.state, [], [], 0.0
    for number in range(first, first + steps):
        batch = problem.spread.shard(prepared.source.batch(*divmod(number, prepared.source.steps_per_epoch)))
        jax.block_until_ready(batch)
        start = time.perf_counter()
        state, metrics = prepared.step(state, batch, key)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        found = jax.device_get(metrics)
        losses.append(float(found["squared_error"] / found["weight"]))
        pairs += float(found["weight"])
    return {"losses": losses, "seconds": seconds, "pairs": pairs}


def curve_of_ours(problem: Problem, prepared: Prepared, every: int) -> tuple[list[dict[str, float]], TrainState]:
    """Validation RMSE of a phase after every so many updates, and the seconds of training until then, compiling left
    out; and the state at its end."""
    key, source = problem.spread.replicate(phases.stream(problem, prepared.phase.name)), prepared.source
    evaluate = phases.validation_rmse(problem, prepared)
    total = prepared.phase.epochs * source.steps_per_epoch
    compiled: set[Any] = set()
    state, seconds, curve = prepared.state, 0.0, []
    for number, batch in prefetch(source, 0, total, problem.spread.shard):
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in compiled:
            prepared.step(own_copy(state), batch, key)
            compiled.add(shapes)
        jax.block_until_ready(state)
        start = time.perf_counter()
        state, _ = prepared.step(state, batch, key)
        jax.block_until_ready(state)
        seconds += time.perf_counter() - start
        if (number + 1) % every == 0 or number + 1 == total:
            curve.append({"updates": number + 1, "seconds": seconds, "rmse": evaluate(state)})
    return curve, state


def epochs_of_ours(problem: Problem, prepared: Prepared, epochs: int) -> dict[str, Any]:
    """Seconds of whole epochs as a run has them, making and sending the batches included, after an unmeasured one.

    The validation RMSE is that after all of them.
    """
    key, source = problem.spread.replicate(phases.stream(problem, prepared.phase.name)), prepared.source
    state, seconds, pairs = prepared.state, [], 0.0
    for epoch in range(epochs + 1):
        start, metrics = time.perf_counter(), []
        first = epoch * source.steps_per_epoch
        for _, batch in prefetch(source, first, first + source.steps_per_epoch, problem.spread.shard):
            state, found = prepared.step(state, batch, key)
            metrics.append(found["weight"])
        pairs = float(sum(jax.device_get(metrics)))
        seconds.append(time.perf_counter() - start)
    return {
        "first_epoch_seconds": seconds[0],
        "seconds": seconds[1:],
        "median_seconds": statistics.median(seconds[1:]),
        "pairs": pairs,
        "rmse": phases.validation_rmse(problem, prepared)(state),
        "updates": source.steps_per_epoch,
        "encodings": source.units_per_epoch,
        "tokens": source.tokens_per_epoch,
    }


def run_rival(folder: Path, torch_python: str, **asked: Any) -> dict[str, Any]:
    """The PyTorch side in a process of its own."""
    command = [torch_python, str(RIVAL), str(folder), json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference of two loss curves."""
    a, b = np.asarray(ours), np.asarray(theirs)
    return float(np.max(np.abs(a - b) / np.abs(b)))


def steady(seconds: list[float], skip: int = 3) -> float:
    """Median without the first steps, which compile and warm up."""
    return statistics.median(seconds[skip:])


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run in the JSON file."""
    kept = {key: value for key, value in result.items() if key not in ("losses",)}
    return kept | {"median_seconds": steady(result["seconds"])}


def middle(runs: list[dict[str, Any]]) -> float:
    """Median over runs of their median step."""
    return statistics.median(run["median_seconds"] for run in runs)


def default_torch_python() -> str:
    return sys.executable
