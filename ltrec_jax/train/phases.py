"""The two phases of gradient training, each as an initial state, a compiled step and a way to finished vectors.

*head*: projection, biases and tables learn on frozen text vectors (seconds per epoch). *encoder*: the texts are encoded
anew in every batch and the encoder learns with them. What the head phase reaches is the frozen-text model: the control
that shows what fine-tuning the encoder adds. Out of scope: what a phase minimises (`phase_loss`), its texts as vectors
(`text_vectors`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.config import TrainConfig
from ltrec_jax.errors import UserError
from ltrec_jax.model import two_tower
from ltrec_jax.model.head import Head
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.train import sparse_table
from ltrec_jax.train.batches import BatchSource
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.cost import encoder_flops, matmul_peak
from ltrec_jax.train.loop import Evaluate, Outcome, Phase, Step, run_phase
from ltrec_jax.train.meter import Work
from ltrec_jax.train.optimizer import layer_rate, make_optimizer, make_schedule, rate_at
from ltrec_jax.train.pair_loss import RMSE, row_ids
from ltrec_jax.train.phase_loss import make_contrasted_loss, make_phase_loss
from ltrec_jax.train.problem import Problem
from ltrec_jax.train.profiling import profiled
from ltrec_jax.train.ranking_loss import RANKING
from ltrec_jax.train.state import (
    HEADS,
    WORDS,
    TrainState,
    full_params,
    layout,
    own_copy,
    partition,
    trainable_rule,
    without,
)
from ltrec_jax.train.step import Loss, make_train_step
from ltrec_jax.train.text_vectors import encode_slots, encode_texts, look_up_slots
from ltrec_jax.train.validation import ndcg_loss
from ltrec_jax.types import Array, MetricWriter, PyTree

HEAD, ENCODER = "head", "encoder"
USER_SCALE = 0.03
"""Standard deviation of a fresh user vector. Residuals beside a text start at 0: an item not yet seen is its text."""
_STREAMS = {"parameters": 0, "users": 1, HEAD: 2, ENCODER: 3}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A phase ready to run: its state, its step, its batches, and pooled vectors of any items under a state.

    `pooled_users`: the same of any distinct texts of users, where it learns from them.
    """

    phase: Phase
    state: TrainState
    step: Step
    source: BatchSource
    pooled: Callable[[TrainState, np.ndarray], Array]
    pooled_users: Callable[[TrainState, np.ndarray], Array] | None = None


def stream(problem: Problem, name: str) -> jax.Array:
    """The key of a named random stream of this run."""
    return jax.random.fold_in(jax.random.key(problem.config.seed), _STREAMS[name])


def prepare_head(problem: Problem, epochs: int, *, patience: int) -> Prepared:
    """The phase over frozen text vectors: nothing is encoded, a batch gathers rows of the features table."""
    params = {**_fresh_heads(problem), "features": jnp.asarray(problem.features_IxE)}
    if problem.learnt_users is not None:
        params["profiles"] = jnp.asarray(problem.profiles_TxE)
    source = problem.batches(with_texts=False)

    train = dataclasses.replace(problem.config.train, trainable="none")
    loss = make_phase_loss(problem, look_up_slots("features"), look_up_slots("profiles"), source)
    state, step = state_and_step(problem, train, params, _fresh_tables(problem), loss, source, epochs)
    return Prepared(
        _phase(HEAD, train, epochs, patience, source, train.head_learning_rate),
        state,
        step,
        source,
        lambda state, items: problem.features_IxE[items],
        lambda state, texts: np.asarray(problem.profiles_TxE)[texts],
    )


def prepare_encoder(problem: Problem, epochs: int, *, patience: int, start: TrainState | None) -> Prepared:
    """The phase that encodes the texts of each batch; heads and tables go on from `start`, or begin fresh."""
    train, encoder = problem.config.train, problem.encoder
    if start is None:
        heads, tables = _fresh_heads(problem), _fresh_tables(problem)
    else:
        reached = full_params(problem.spread.local(start))
        heads, tables = {name: reached[name] for name in HEADS if name in reached}, own_copy(start.tables)
    encoder_params: PyTree = jax.tree.map(jnp.asarray, encoder.params)
    if train.trainable == "all":
        table = encoder_params["embeddings"]["word_embeddings"]["embedding"]
        tables = {**tables, "words": sparse_table.make_table(table, train.table_optimizer)}
        encoder_params = without({"encoder": encoder_params}, WORDS)["encoder"]
    hidden, users = problem.hidden_states(), problem.learnt_users
    user_hidden = None if users is None else problem.hidden_states(users.tokens)
    source = problem.batches(with_texts=True, hidden=hidden, user_hidden=user_hidden)
    if start is not None:
        train = dataclasses.replace(
            train,
            head_learning_rate=train.joint_rate * train.head_learning_rate,
            table_learning_rate=train.joint_rate * train.table_learning_rate,
        )
    loss = make_contrasted_loss(problem, encode_slots(problem, hidden), source)
    params = {**heads, "encoder": encoder_params}
    state, step = state_and_step(problem, train, params, tables, loss, source, epochs)

    def pooled(state: TrainState, items: np.ndarray) -> Array:
        current = full_params(problem.spread.local(state))["encoder"]
        return encode_texts(problem, problem.tokens, hidden, current, items)

    def pooled_users(state: TrainState, texts: np.ndarray) -> Array:
        assert users is not None
        current = full_params(problem.spread.local(state))["encoder"]
        return encode_texts(problem, users.tokens, user_hidden, current, texts)

    flops = encoder_flops(encoder.config, source.lengths_per_epoch, train.trainable, cached=hidden is not None)
    work = Work(flops, lambda: matmul_peak(problem.config.encoder.precision, problem.spread.count))
    phase = _phase(ENCODER, train, epochs, patience, source, train.learning_rate)
    return Prepared(dataclasses.replace(phase, work=work), state, step, source, pooled, pooled_users)


def _phase(name: str, train: TrainConfig, epochs: int, patience: int, source: BatchSource, peak: float) -> Phase:
    rate = rate_at(peak, train, _total_steps(epochs, source))
    figures = RMSE if train.predicts_ratings else RANKING
    return Phase(name, epochs, patience, train.log_every, figures, train.save_minutes, rate)


def _total_steps(epochs: int, source: BatchSource) -> int:
    return max(epochs * source.steps_per_epoch, 1)


def run(
    problem: Problem,
    prepared: Prepared,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    *,
    label: str = "",
    trace: tuple[Path, int] | None = None,
) -> Outcome:
    """Run a prepared phase on the problem's devices, with early stopping where the split has validation rows.

    `label` goes before the phase's name in progress bar and metrics; `trace`: a directory, and how many steps of the
    phase are traced into it.
    """
    with profiled(prepared.step, *(trace or (Path(), 0))) as step:
        return run_phase(
            dataclasses.replace(prepared.phase, name=label + prepared.phase.name),
            prepared.state,
            step=step,
            source=prepared.source,
            parallel=problem.spread,
            key=problem.spread.replicate(stream(problem, prepared.phase.name)),
            evaluate=_validation(problem, prepared),
            checkpoints=checkpoints,
            writer=writer,
        )


def finished_vectors(problem: Problem, prepared: Prepared, state: TrainState) -> tuple[Vectors, np.ndarray]:
    """Vectors and biases of all users and items under a state, and the pooled text vectors float32 [I, E] they rest on.

    A user without training events has zeros, or stands where the text does.
    """
    items = np.arange(problem.dataset.num_items)
    pooled_IxE = prepared.pooled(state, items)
    q, b = _items(problem, pooled_IxE, state, items)
    rows = sparse_table.all_rows(state.tables["users"], problem.spread)
    seen = np.bincount(problem.split.train.user, minlength=len(rows))[:, None] > 0
    rows = np.where(seen, rows, 0.0).astype(np.float32)
    if (of_texts := user_text_rows(problem, prepared, state)) is not None:
        rows += of_texts
    rates = problem.config.train.predicts_ratings
    vectors = Vectors(_mu(problem, state), rows[:, :-1], rows[:, -1], np.asarray(q), np.asarray(b), rates)
    return vectors, np.asarray(pooled_IxE)


def parameters(problem: Problem, state: TrainState) -> PyTree:
    """{"encoder": ..., "head": ...} under a state of either phase."""
    params = full_params(problem.spread.local(state))
    return {"head": params["head"], "encoder": params.get("encoder", problem.encoder.params)}


def _items(problem: Problem, pooled_KxE: Array, state: TrainState, items: np.ndarray) -> tuple[jax.Array, jax.Array]:
    head = full_params(problem.spread.local(state))["head"]
    anchor, text_bias = Head(problem.config.model.embedding_dim).apply({"params": head}, pooled_KxE)
    rows = sparse_table.read_rows(state.tables["items"], items, problem.spread)
    q, b = two_tower.item_vectors(anchor, text_bias, rows, problem.gate_I[items])
    return q, b


def user_text_rows(problem: Problem, prepared: Prepared, state: TrainState) -> np.ndarray | None:
    """[p_u | b_u] of all users by their texts alone, float32 [U, D + 1]; None where they have none."""
    if not prepared.source.has_user_texts:
        return None
    return np.asarray(_user_text_rows(problem, prepared, state, np.arange(problem.dataset.num_users)))


def _user_text_rows(problem: Problem, prepared: Prepared, state: TrainState, users: np.ndarray) -> jax.Array:
    assert problem.learnt_users is not None
    assert prepared.pooled_users is not None
    texts, slot = np.unique(problem.learnt_users.text_U[users], return_inverse=True)
    head = full_params(problem.spread.local(state))["user_head"]
    pooled = prepared.pooled_users(state, texts)
    anchor, text_bias = Head(problem.config.model.embedding_dim).apply({"params": head}, pooled)
    return two_tower.user_rows(anchor, text_bias)[slot]


def _validation(problem: Problem, prepared: Prepared) -> Evaluate | None:
    """What early stopping goes by: RMSE, or 1 - nDCG of a model that ranks; None where validation has none of it."""
    if problem.config.train.predicts_ratings:
        return validation_rmse(problem, prepared) if len(problem.split.validation_rows) else None
    loss = ndcg_loss(problem.split, problem.positive_rating, max(problem.config.evaluation.cutoffs))
    return loss and (lambda state: loss(finished_vectors(problem, prepared, state)[0]))


def validation_rmse(problem: Problem, prepared: Prepared) -> Evaluate:
    """A function from a state of the phase to its root mean squared error on the split's validation part."""
    events = problem.split.validation
    items, slot = np.unique(events.item, return_inverse=True)

    def rmse(state: TrainState) -> float:
        q, b = _items(problem, prepared.pooled(state, items), state, items)
        rows = sparse_table.read_rows(state.tables["users"], events.user, problem.spread)
        if prepared.source.has_user_texts:
            rows = rows + _user_text_rows(problem, prepared, state, events.user)
        scores = two_tower.pair_scores(_mu(problem, state), rows, q[slot], b[slot])
        return float(np.sqrt(np.mean((np.asarray(scores, np.float64) - events.rating) ** 2)))

    return rmse


def state_and_step(
    problem: Problem,
    train: TrainConfig,
    params: PyTree,
    tables: dict[str, sparse_table.SparseTable],
    loss: Loss,
    source: BatchSource,
    epochs: int,
) -> tuple[TrainState, Step]:
    """The first state of a phase that minimises `loss` over the batches of `source`, and its compiled step.

    The state owns its arrays, for the step donates it: `params` are copied, `tables` become its own.
    """
    spread = problem.spread
    total = _total_steps(epochs, source)
    num_layers = problem.encoder.config.num_layers
    optimizer = make_optimizer(train, total, num_layers)
    learning, frozen = partition(own_copy(params), trainable_rule(train.trainable, num_layers))
    state = TrainState(
        step=jnp.int32(0),
        trainable=learning,
        frozen=frozen,
        tables=tables,
        optimizer=optimizer.init(learning),
        average=own_copy(learning) if train.average else None,
    )
    body = make_train_step(
        loss=loss,
        row_ids=row_ids,
        optimizer=optimizer,
        table_update=sparse_table.RULES[train.table_optimizer],
        table_rates={
            "users": train.table_learning_rate,
            "items": train.table_learning_rate,
            "words": train.learning_rate * layer_rate(WORDS, num_layers, train.layer_decay),
        },
        table_decay={
            "users": train.table_weight_decay,
            "items": train.table_weight_decay,
            "words": train.weight_decay,
        },
        schedule=make_schedule(train, total),
        accumulate=train.accumulate,
        average=train.average,
        clip_norm=train.clip_norm,
        clipped=("words",),
        axis=spread.axis,
    )
    return spread.place(state, layout(state)), spread.compile(body, layout=layout(state))


def _fresh_heads(problem: Problem) -> dict[str, dict[str, jax.Array]]:
    head = Head(problem.config.model.embedding_dim)

    features = jnp.asarray(problem.features_IxE)

    def fresh(center_E: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        return {**head.init(key, features[:1])["params"], "center": center_E}

    mu = problem.split.train.rating.mean() if problem.config.train.predicts_ratings else 0.0
    heads = {"head": {**fresh(features.mean(axis=0), stream(problem, "parameters")), "mu": jnp.float32(mu)}}
    if (users := problem.learnt_users) is not None:
        shares_T = np.bincount(users.text_U, minlength=len(users.tokens)) / len(users.text_U)
        center_E = jnp.asarray(shares_T @ np.asarray(problem.profiles_TxE), jnp.float32)
        # In the place of users' random rows, and by their key.
        heads["user_head"] = fresh(center_E, stream(problem, "users"))
    return heads


def _fresh_tables(problem: Problem) -> dict[str, sparse_table.SparseTable]:
    train, spread, width = problem.config.train, problem.spread, problem.config.model.embedding_dim + 1
    split, rule = train.shard_tables, train.table_optimizer
    if split and sparse_table.ROWS_MULTIPLE % spread.count:
        raise UserError(f"Setting train.shard_tables cannot split rows evenly over {spread.count} devices.")

    def make() -> dict[str, sparse_table.SparseTable]:
        scale = USER_SCALE if problem.learnt_users is None else 0.0
        users = scale * jax.random.normal(stream(problem, "users"), (problem.dataset.num_users, width))
        items = jnp.zeros((problem.dataset.num_items, width))
        return {
            "users": sparse_table.make_table(users.at[:, -1].set(0.0), rule, split=split),
            "items": sparse_table.make_table(items, rule, split=split),
        }

    if not split:
        return make()
    return spread.create(make, {name: sparse_table.layout(table) for name, table in jax.eval_shape(make).items()})


def _mu(problem: Problem, state: TrainState) -> float:
    return float(full_params(problem.spread.local(state))["head"]["mu"])
