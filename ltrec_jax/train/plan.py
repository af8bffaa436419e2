"""What a training run will need, found out without running it: parameters, work per epoch, memory of a step, time.

The step is compiled for the shapes it will have, and the compiler asked for its memory; no text is encoded, no table
made. Out of scope: showing it (`commands`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ltrec_jax.config import Config, Precision
from ltrec_jax.data.dataset import Split
from ltrec_jax.solve.anchored_model import Anchors
from ltrec_jax.train import item_phase, layer_cache, phases, schedule, solves
from ltrec_jax.train.cost import matmul_peak
from ltrec_jax.train.phases import Prepared
from ltrec_jax.train.problem import Problem, load_problem
from ltrec_jax.train.state import TrainState
from ltrec_jax.types import PyTree

USUAL_SHARE: dict[Precision, float] = {"float32": 0.6, "bfloat16": 0.25}
"""Of the matmul peak that training reaches (MiniLM on a 2-core Xeon with AMX; the rest are passes over memory)."""


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """One phase. Bytes are those of one device; `step_bytes`: what the compiled step holds at once, state included."""

    name: str
    epochs: int
    steps_per_epoch: int
    pairs_per_epoch: int
    encodings_per_epoch: int
    tokens_per_epoch: int
    trainable: int
    table_rows: int
    table_bytes: int
    optimizer_bytes: int
    step_bytes: int
    flops_per_epoch: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """`parameters` of encoder, head and tables together; `peak`: measured operations per second; the phases in order.

    `cache_bytes`: hidden states below the layers that learn, on disk; 0 where none are kept. `solves`: exact solves
    before and after the phases, which are no part of them.
    """

    parameters: int
    cache_bytes: int
    peak: float
    usual_share: float
    solves: int
    phases: tuple[PhasePlan, ...]

    def seconds(self, phase: PhasePlan) -> float:
        """An estimate for all epochs of a phase: its operations at the usual share of the peak. 0: not estimated."""
        return phase.epochs * phase.flops_per_epoch / (self.usual_share * self.peak)


def make_plan(split: Split, config: Config) -> Plan:
    """The plan of `fit(split, config)` (its first fit; a refit takes as long again at most)."""
    problem, steps = load_problem(split, config, dry=True), config.schedule.steps
    if steps == "gradient":
        learning, wanted = problem, _gradient(problem)
    elif steps == "solve" or config.schedule.epochs == 0:
        learning, wanted = problem, []
    elif config.schedule.tune_on == "pairs":
        learning = schedule.on_pairs(problem)
        wanted = _gradient(learning)
    else:
        learning, wanted = item_phase.learning(problem), [lambda: _item_phase(problem)]
    encoder = sum(leaf.size for leaf in jax.tree.leaves(problem.encoder.params))
    width = config.model.embedding_dim if steps == "gradient" else solves.width(problem)
    head = problem.encoder.config.hidden_size * (width + 1) * (1 if problem.learnt_users is None else 2)
    tables = (problem.dataset.num_users + problem.dataset.num_items) * (width + 1)
    precision = config.encoder.precision
    return Plan(
        parameters=encoder + head + tables,
        cache_bytes=_cache_bytes(learning) if wanted else 0,
        peak=matmul_peak(precision, problem.spread.count),
        usual_share=USUAL_SHARE[precision],
        solves=0 if steps == "gradient" else 2 if wanted else 1,
        phases=tuple(_plan_phase(make) for make in wanted),
    )


def _gradient(problem: Problem) -> list[Callable[[], Prepared]]:
    train = problem.config.train
    wanted: list[Callable[[], Prepared]] = []
    if train.head_epochs:
        wanted.append(lambda: phases.prepare_head(problem, train.head_epochs, patience=0))
    if train.epochs and train.trainable != "none":
        wanted.append(lambda: phases.prepare_encoder(problem, train.epochs, patience=0, start=None))
    return wanted


def _item_phase(problem: Problem) -> Prepared:
    """The phase as it is after a solve, whose vectors are zeros here."""
    items, hidden, width = problem.dataset.num_items, problem.encoder.config.hidden_size, solves.width(problem)
    rows = width + (problem.config.schedule.goal == "explicit")
    zeros = np.zeros((hidden, rows), np.float32)
    anchors = Anchors(zeros[:, 0], np.broadcast_to(np.float32(0), (items, hidden)), zeros)
    targets = np.broadcast_to(np.float32(0), (items, rows))
    return item_phase.prepare(problem, anchors, targets, solves.counts(problem))


def _plan_phase(make: Callable[[], Prepared]) -> PhasePlan:
    kept: list[Prepared] = []

    def state_of() -> TrainState:
        kept.append(make())
        return kept[0].state

    state = jax.eval_shape(state_of)
    prepared = kept[0]
    phase, source = prepared.phase, prepared.source
    tables = state.tables.values()
    weights = sum(len(table) * table.widths[0] for table in tables)
    return PhasePlan(
        name=phase.name,
        epochs=phase.epochs,
        steps_per_epoch=source.steps_per_epoch,
        pairs_per_epoch=source.pairs_per_epoch,
        encodings_per_epoch=len(source.lengths_per_epoch),
        tokens_per_epoch=source.tokens_per_epoch,
        trainable=_count(state.trainable) + weights,
        table_rows=sum(map(len, tables)),
        table_bytes=4 * weights,
        optimizer_bytes=_bytes(state.optimizer) + _bytes(state.tables) - 4 * weights,
        step_bytes=_step_bytes(prepared, state),
        flops_per_epoch=phase.work.flops_per_epoch if phase.work else 0.0,
    )


def _step_bytes(prepared: Prepared, state: TrainState) -> int:
    batch = jax.eval_shape(lambda: prepared.source.batch(0, 0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    step: Any = prepared.step
    found = step.lower(state, batch, key).compile().memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(held + found.temp_size_in_bytes)


def _cache_bytes(problem: Problem) -> int:
    if problem.hidden_states() is None:
        return 0
    stores = [problem.tokens, *([] if problem.learnt_users is None else [problem.learnt_users.tokens])]
    precision = problem.config.encoder.precision
    return sum(layer_cache.stored_bytes(problem.encoder, tokens, precision) for tokens in stores)


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
