"""One training step as a pure function, (state, batch, key) -> (state, metrics), under any wrapper of `parallel`.

Dense leaves: local gradient, then the mean over devices. Table rows: their gradients are gathered from all devices,
merged, and every replica makes the same update. Losses are divided by the *global* weight, so that slices of unequal
weight give the gradient of the undivided batch. All devices and slices have one key: masks are drawn by what they
belong to (`dropout`), so that they do not depend on the division either.

Out of scope: what is minimised (`pair_loss`, `ranking_loss`, `masked_phase`).
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ltrec_jax import parallel
from ltrec_jax.train import sparse_table
from ltrec_jax.train.optimizer import Schedule
from ltrec_jax.train.state import TrainState, merge
from ltrec_jax.types import Array, PyTree

Rows = dict[str, jax.Array]
Loss = Callable[[PyTree, Rows, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters, gathered table rows, batch, key) -> (weighted sum to minimise, sums to report) of one device's slice.

A batch has `weight` float32, one for each thing predicted, 0 for padding."""
RowIds = Callable[[Any], Mapping[str, Array]]
"""The rows of each table that a batch touches, int32 [n]; the number of rows stands for padding."""


def make_train_step(
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    axis: str | None,
    schedule: Schedule,
    row_ids: RowIds = lambda batch: {},
    table_update: sparse_table.Update = sparse_table.lazy_adam,
    table_rates: Mapping[str, float] | None = None,
    table_decay: Mapping[str, float] | None = None,
    accumulate: int = 1,
    average: float = 0.0,
    clip_norm: float = 0.0,
    clipped: Collection[str] = (),
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The body of one step. `table_rates` and `table_decay` give each table's peak learning rate and lazy weight decay.

    What is minimised is the loss of the global batch divided by its weight. Metrics are sums over the global batch:
    what the loss reports, `weight`, and `gradient_norm`: the global norm of the gradient of the dense leaves and of the
    tables named `clipped` (none of them split), whose duplicate rows have been summed. `clip_norm` above 0 scales that
    gradient down to this norm.

    With `accumulate` = A above 1 every leaf of a batch has a leading axis A: the slices go through one after the other,
    their gradients are summed and applied once, as for the undivided batch.

    `average` = b above 0 keeps a moving average of the dense leaves (Polyak & Juditsky, 1992) in states that have one,
    the first weights w_0 not among them: the average from 0 on, corrected for that start (Kingma & Ba, 2015, 7.2),

        a_t = (1 - b) sum_(s=1..t) b^(t - s) w_s / (1 - b^t) = a_(t-1) + (1 - b) / (1 - b^t) (w_t - a_(t-1))

    Rows of tables are not averaged: whoever evaluates the average does so beside the rows of the last step.
    """
    rates, decay = table_rates or {}, table_decay or {}

    def gradients(
        state: TrainState, batch: Any, key: jax.Array, scale: jax.Array
    ) -> tuple[PyTree, dict[str, Array], Rows, dict[str, jax.Array]]:
        """Of one slice: dense gradient, touched rows and their gradients, sums to report."""
        ids = {name: found for name, found in row_ids(batch).items() if name in state.tables}
        rows = {name: sparse_table.gather(state.tables[name], ids[name], axis) for name in state.tables}

        def scaled(trainable: PyTree, rows: Rows) -> tuple[jax.Array, dict[str, jax.Array]]:
            value, sums = loss(merge(trainable, state.frozen), rows, batch, key)
            return scale * value, sums

        (dense, sparse), sums = jax.grad(scaled, argnums=(0, 1), has_aux=True)(state.trainable, rows)
        return dense, ids, sparse, sums

    def accumulated(
        state: TrainState, batch: Any, key: jax.Array, scale: jax.Array
    ) -> tuple[PyTree, dict[str, Array], Rows, dict[str, jax.Array]]:
        def add(total: PyTree, each: Any) -> tuple[PyTree, tuple[dict[str, Array], Rows]]:
            dense, ids, sparse, sums = gradients(state, each, key, scale)
            return jax.tree.map(jnp.add, total, (dense, sums)), (ids, sparse)

        first = jax.tree.map(lambda leaf: leaf[0], batch)
        shapes = jax.eval_shape(lambda slice_: gradients(state, slice_, key, scale), first)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes[0], shapes[3]))
        (dense, sums), touched = jax.lax.scan(add, start, batch)
        ids, sparse = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), touched)
        return dense, ids, sparse, sums

    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        weight = parallel.sum_over_devices(jnp.sum(batch.weight), axis)
        scale = parallel.axis_size(axis) / jnp.maximum(weight, 1e-12)
        of_batch = gradients if accumulate == 1 else accumulated
        dense, ids, sparse, sums = of_batch(state, batch, key, scale)
        dense = parallel.mean_over_devices(dense, axis)
        counted = {name: table for name, table in state.tables.items() if name in clipped}
        for name, table in counted.items():
            ids[name], sparse[name] = sparse_table.merged(table, ids[name], sparse[name], axis)
        norm = optax.tree.norm((dense, {name: sparse[name] for name in counted}))
        if clip_norm:
            # One factor for all leaves. A select between a leaf and its scaled copy (`optax.clip_by_global_norm`) makes
            # XLA store that copy and read both for each moment: on a CPU, 14 passes over arrays of the parameters' size
            # in an update of Adam instead of 10.
            factor = clip_norm / jnp.maximum(norm, clip_norm)
            dense = jax.tree.map(lambda leaf: leaf * factor, dense)
            sparse = {name: rows * factor if name in counted else rows for name, rows in sparse.items()}
        updates, optimizer_state = optimizer.update(dense, state.optimizer, state.trainable)
        tables = {
            name: table_update(
                table,
                ids[name],
                sparse[name],
                learning_rate=rates[name] * schedule(state.step),
                weight_decay=decay[name],
                axis=axis,
                distinct=name in counted,
            )
            for name, table in state.tables.items()
        }
        metrics = {
            **parallel.sum_over_devices(sums, axis),
            "weight": weight,
            "gradient_norm": norm,
        }
        trainable = optax.apply_updates(state.trainable, updates)
        if state.average is not None:
            share = (1 - average) / -jnp.expm1((state.step + 1) * math.log(average))
            averaged = jax.tree.map(lambda a, w: a + share * (w - a), state.average, trainable)
        else:
            averaged = None
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            trainable=trainable,
            tables=tables,
            optimizer=optimizer_state,
            average=averaged,
        )
        return state, metrics

    return step
