"""What a training run will need, found out without running it: its stages, work per epoch, memory, time.

The step of a phase is compiled for the shapes it will have, and the compiler asked for its memory; no text is encoded,
no table made. Out of scope: exact solves (`solve_plan`), showing it (`commands`).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ltrec_jax.config import Config, Precision
from ltrec_jax.data.dataset import Split
from ltrec_jax.solve.anchored_model import Anchors
from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.train import item_phase, layer_cache, phases, schedule, solve_plan, solves
from ltrec_jax.train.cost import encoder_flops, matmul_peak
from ltrec_jax.train.phases import Prepared
from ltrec_jax.train.problem import Problem, load_problem
from ltrec_jax.train.state import TrainState, frozen_layers
from ltrec_jax.types import PyTree

USUAL_SHARE: dict[Precision, float] = {"float32": 0.6, "bfloat16": 0.25}
"""Of the matmul peak that training reaches (MiniLM on a 2-core Xeon with AMX; the rest are passes over memory)."""
ENCODING_SHARE: dict[Precision, float] = {"float32": 0.9, "bfloat16": 0.5}
"""The same where nothing learns."""
ENCODE, HIDDEN, ENCODE_AGAIN = "encode the item texts", "hidden states", "encode again"
REFIT_SOLVE = "solve with validation rows"


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is done once. `bytes`: of the arrays that it holds on one device, at least; `seconds`: an estimate.

    A `phase` of gradient steps has its own figures, in the plan's phases: its `bytes` are those of a step.
    """

    name: str
    bytes: int
    seconds: float
    phase: bool = False
    solve: bool = False


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

    `cache_bytes`: hidden states below the layers that learn, on disk; 0 where none are kept. `stages`: all that is
    done, in order, the phases among it. Shares are of the peak, where the encoder learns and where it does not.
    """

    parameters: int
    cache_bytes: int
    peak: float
    usual_share: float
    encoding_share: float
    phases: tuple[PhasePlan, ...]
    stages: tuple[Stage, ...]

    @property
    def solves(self) -> int:
        """How many of the stages are exact solves."""
        return sum(stage.solve for stage in self.stages)

    def seconds(self, phase: PhasePlan) -> float:
        """An estimate for all epochs of a phase: its operations at the usual share of the peak. 0: not estimated."""
        return phase.epochs * phase.flops_per_epoch / (self.usual_share * self.peak)


def make_plan(split: Split, config: Config) -> Plan:
    """The plan of `fit(split, config)`; of training by gradient its first fit (a refit takes as long again at most)."""
    given, steps = load_problem(split, config, dry=True), config.schedule.steps
    whole = given.on(split.with_validation_in_train()) if config.refit else given
    tries = config.schedule.goal == "explicit" and steps == "solve_tune_solve"
    # Only where fine-tuning is tried on validation rows do those stay out at first (`fit`).
    problem = given if steps == "gradient" or tries else whole
    if steps == "gradient":
        learning, wanted = problem, _gradient(problem)
    elif steps == "solve" or config.schedule.epochs == 0:
        learning, wanted = problem, []
    elif config.schedule.tune_on == "pairs":
        learning = schedule.on_pairs(problem)
        wanted = _gradient(learning)
    else:
        learning, wanted = item_phase.learning(problem), [lambda: _item_phase(problem)]
    heads = 1 if problem.learnt_users is None else 2
    head = problem.encoder.config.hidden_size * (_width(problem) + 1) * heads
    tables = (problem.dataset.num_users + problem.dataset.num_items) * (_width(problem) + 1)
    precision = config.encoder.precision
    plan = Plan(
        parameters=_count(problem.encoder.params) + head + tables,
        cache_bytes=_cache_bytes(learning) if wanted else 0,
        peak=matmul_peak(precision, problem.spread.count),
        usual_share=USUAL_SHARE[precision],
        encoding_share=ENCODING_SHARE[precision],
        phases=tuple(_plan_phase(make) for make in wanted),
        stages=(),
    )
    again = whole if tries and config.refit and len(split.validation_rows) else None
    return dataclasses.replace(plan, stages=tuple(_stages(plan, problem, learning, again)))


def _width(problem: Problem) -> int:
    config = problem.config
    return config.model.embedding_dim if config.schedule.steps == "gradient" else solves.width(problem)


def _stages(plan: Plan, problem: Problem, learning: Problem, again: Problem | None) -> Iterator[Stage]:
    """Everything in order; `again`: the problem that is solved once more at the end, if any."""
    config, precision = problem.encoder.config, problem.config.encoder.precision
    lengths = problem.tokens.take(distinct_texts(problem.tokens)[0]).lengths
    rate = plan.encoding_share * plan.peak
    whole_seconds = encoder_flops(config, lengths, "none") / rate
    below = frozen_layers(learning.config.train.trainable, config.num_layers) / config.num_layers
    # Weights in float32 and as the products take them, and vectors of all texts.
    weights = _count(problem.encoder.params) * (4 + np.dtype(precision).itemsize)
    vectors = 4 * problem.dataset.num_items * config.hidden_size
    solving = problem.config.schedule.steps != "gradient"
    yield Stage(ENCODE, weights + vectors, whole_seconds)
    if solving:
        yield _solve(schedule.FIRST, problem)
    for phase in plan.phases:
        if plan.cache_bytes and phase.tokens_per_epoch:
            yield Stage(HIDDEN, weights, below * whole_seconds)
        yield Stage(phase.name, phase.step_bytes, plan.seconds(phase), phase=True)
    if any(phase.tokens_per_epoch for phase in plan.phases):
        above = (1 - below) if plan.cache_bytes else 1.0
        yield Stage(ENCODE_AGAIN, weights + vectors, above * whole_seconds)
    if solving and plan.phases and problem.config.schedule.solve_again:
        yield _solve(schedule.SECOND, problem)
    if again is not None:
        # With the encoder as it was loaded and as it is left; with the former alone where it did not learn.
        for _ in range(2 if plan.phases else 1):
            yield _solve(REFIT_SOLVE, again)


def _solve(name: str, problem: Problem) -> Stage:
    cost = solve_plan.solve_cost(problem)
    return Stage(name, cost.bytes, cost.seconds, solve=True)


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
