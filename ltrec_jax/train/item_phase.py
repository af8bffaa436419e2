"""Fine-tuning on solved item vectors: the encoder learns where the solve has put the items, one encoding per item.

    minimise  sum_i sqrt(n_i) |x_i(theta) - q_i|^2        x_i = projection^T unit(pool(BERT(text_i)) - center)

over warm items i with n_i training events. It is the item block of the whole-data objective with all else fixed, but
costs an epoch of the catalogue's texts instead of one of the interactions'. Out of scope: the solves (`schedule`).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.data.dataset import Interactions
from ltrec_jax.solve.anchored_model import Anchors
from ltrec_jax.train import phases, sparse_table
from ltrec_jax.train.batches import Batch, BatchSource
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.cost import encoder_flops, matmul_peak
from ltrec_jax.train.layer_cache import HiddenStates
from ltrec_jax.train.loop import Phase, run_phase
from ltrec_jax.train.meter import Figures, Work
from ltrec_jax.train.optimizer import rate_at
from ltrec_jax.train.pair_loss import PooledTexts
from ltrec_jax.train.phases import Prepared
from ltrec_jax.train.problem import Problem
from ltrec_jax.train.profiling import profiled
from ltrec_jax.train.state import WORDS, TrainState, full_params, without
from ltrec_jax.train.step import Loss
from ltrec_jax.train.text_vectors import encode_slots, encode_texts
from ltrec_jax.types import Array, MetricWriter, PyTree

ITEMS = "items"
_STREAM = 4


def _distance(sums: Mapping[str, float]) -> dict[str, float]:
    return {"squared_distance": sums["squared_distance"] / max(sums["weight"], 1e-12)}


DISTANCE = Figures(of=_distance, counted="items", remedy="Lower schedule.learning_rate, or set train.clip_norm.")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The encoder's parameters after the phase, its text vectors float32 [I, E], and the anchors they give."""

    params: PyTree
    features_IxE: np.ndarray
    anchors: Anchors


def prepare(problem: Problem, anchors: Anchors, item_vectors_IxD: np.ndarray, counts_I: np.ndarray) -> Prepared:
    """`schedule.epochs` epochs from the loaded encoder and the given projection on, towards warm item vectors.

    `item_vectors_IxD` are the solved ones, `counts_I` the training events of each item: those with none are left out.
    A linear map next to the projection learns with the encoder, from 0 on; the centre and what words say stay.
    """
    problem = learning(problem)
    train, epochs = problem.config.train, problem.config.schedule.epochs
    hidden = problem.hidden_states()
    source = _warm_items(problem, hidden, counts_I)
    start_ExD = anchors.encoder_map
    params: PyTree = {
        "head": {
            "projection": jnp.zeros_like(start_ExD),
            "start": jnp.asarray(start_ExD),
            "center": jnp.asarray(anchors.center_E),
            "targets": jnp.asarray(item_vectors_IxD - anchors.of_words, jnp.float32),
        },
        "encoder": jax.tree.map(jnp.asarray, problem.encoder.params),
    }
    tables = {}
    if train.trainable == "all":
        words = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        tables = {"words": sparse_table.make_table(words, train.table_optimizer)}
        params = without(params, WORDS)
    loss = item_loss(encode_slots(problem, hidden))
    state, step = phases.state_and_step(problem, train, params, tables, loss, source, epochs)

    def pooled(state: TrainState, items: np.ndarray) -> Array:
        current = full_params(problem.spread.local(state))["encoder"]
        return encode_texts(problem, problem.tokens, hidden, current, items)

    rate = rate_at(train.learning_rate, train, max(epochs * source.steps_per_epoch, 1))
    flops = encoder_flops(problem.encoder.config, source.lengths_per_epoch, train.trainable, cached=hidden is not None)
    work = Work(flops, lambda: matmul_peak(problem.config.encoder.precision, problem.spread.count))
    # A batch of rare items, which stay at their texts, starts with a distance near 0: not so, vectors of zeros.
    squares_W = (np.asarray(item_vectors_IxD)[counts_I > 0] ** 2).sum(axis=1)
    figures = dataclasses.replace(DISTANCE, usual=float(np.mean(_weights(counts_I[counts_I > 0]) * squares_W)))
    phase = Phase(ITEMS, epochs, 0, train.log_every, figures, train.save_minutes, rate, work)
    return Prepared(phase, state, step, source, pooled)


def tune(
    problem: Problem,
    anchors: Anchors,
    item_vectors_IxD: np.ndarray,
    counts_I: np.ndarray,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    *,
    trace: tuple[Path, int] | None = None,
) -> Tuned:
    """Run the phase (arguments as `prepare`), resuming from `checkpoints`; `trace` as in `phases.run`."""
    prepared = prepare(problem, anchors, item_vectors_IxD, counts_I)
    key = jax.random.fold_in(jax.random.key(problem.config.seed), _STREAM)
    with profiled(prepared.step, *(trace or (Path(), 0))) as step:
        outcome = run_phase(
            prepared.phase,
            prepared.state,
            step=step,
            source=prepared.source,
            parallel=problem.spread,
            key=problem.spread.replicate(key),
            evaluate=None,
            checkpoints=checkpoints,
            writer=writer,
        )
    found = jax.tree.map(np.asarray, full_params(problem.spread.local(outcome.state)))
    features = np.asarray(prepared.pooled(outcome.state, np.arange(problem.dataset.num_items)))
    moved = anchors.with_encoder(features, found["head"]["start"] + found["head"]["projection"])
    return Tuned(found["encoder"], features, moved)


def learning(problem: Problem) -> Problem:
    """The problem with the settings of `[schedule]` where those of gradient training are read."""
    schedule = problem.config.schedule
    train = dataclasses.replace(
        problem.config.train,
        trainable=schedule.trainable,
        learning_rate=schedule.learning_rate,
        head_learning_rate=schedule.head_learning_rate,
        head_weight_decay=problem.config.train.weight_decay,
    )
    return dataclasses.replace(problem, config=dataclasses.replace(problem.config, train=train))


def item_loss(pooled_texts: PooledTexts) -> Loss:
    """The sum over the items of a batch, each with its weight in the place of a rating; reports `squared_distance`."""

    def loss(
        params: PyTree, rows: dict[str, jax.Array], batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        head = params["head"]
        shifted_KxE = pooled_texts(params, batch.texts, rows.get("words"), key) - head["center"][None, :]
        # As in `model.head`: a floored square, since the gradient of a norm at zero is NaN.
        z_KxE = shifted_KxE * jax.lax.rsqrt(jnp.maximum(jnp.sum(shifted_KxE**2, axis=-1, keepdims=True), 1e-12))
        x_KxD = z_KxE @ (head["start"] + head["projection"])
        wanted_KxD = jnp.take(head["targets"], batch.item, axis=0, mode="fill", fill_value=0.0)
        distance_K = jnp.sum((x_KxD - wanted_KxD) ** 2, axis=-1)
        total = jnp.sum(batch.weight * batch.target * distance_K[batch.pair_item])
        return total, {"squared_distance": total}

    return loss


def _warm_items(problem: Problem, hidden: HiddenStates | None, counts_I: np.ndarray) -> BatchSource:
    """Batches with one pair for each warm item, whose rating is the item's weight."""
    warm = np.flatnonzero(counts_I).astype(np.int32)
    weight = _weights(counts_I[warm])
    events = Interactions(np.zeros(len(warm), np.int32), warm, weight, np.zeros(len(warm), np.int64))
    size = problem.config.schedule.batch_items
    return problem.batches(with_texts=True, hidden=hidden, events=events, size=size)


def _weights(counts_W: np.ndarray) -> np.ndarray:
    """sqrt(n) of mean 1, float32 [W]; no item, no weight."""
    weight = np.sqrt(counts_W)
    return (weight / weight.mean()).astype(np.float32) if len(weight) else weight.astype(np.float32)
