"""One training step as a pure function, (state, batch, key) -> (state, metrics), under any wrapper of `parallel`.

Dense leaves: local gradient, then the mean over devices. Table rows: their gradients are gathered from all devices,
merged, and every replica makes the same update. Losses are divided by the *global* weight, so that slices of unequal
weight give the gradient of the undivided batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ltrec_jax import parallel
from ltrec_jax.config import ModelConfig
from ltrec_jax.model import two_tower
from ltrec_jax.train import sparse_table
from ltrec_jax.train.batches import Batch
from ltrec_jax.train.optimizer import Schedule
from ltrec_jax.train.state import TrainState, merge
from ltrec_jax.types import Array, Objective, PyTree

PooledTexts = Callable[[PyTree, Batch, Array | None, jax.Array], jax.Array]
"""(params, batch, gathered word rows or None, dropout key) -> pooled text vectors of the K slots, [K, E]."""


def make_train_step(
    *,
    pooled_texts: PooledTexts,
    head: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    table_update: sparse_table.Update,
    table_rates: dict[str, float],
    table_decay: dict[str, float],
    schedule: Schedule,
    model: ModelConfig,
    axis: str | None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The body of one step. `table_rates` and `table_decay` give each table's peak learning rate and lazy weight decay.

    The objective of a batch with global weight w = sum_p w_p:

        1/w sum_p w_p [ (s_p - y_p)^2 + user_l2 |p_u|^2 + item_l2 |v_i|^2 + bias_l2 (b_u^2 + c_i^2) ]

    Metrics are sums over the global batch: `squared_error`, `weight`, and the norm of the dense gradient.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = parallel.device_key(jax.random.fold_in(key, state.step), axis)
        text_key, keep_key = jax.random.split(key)
        ids = {"users": batch.pair_user, "items": batch.item}
        if batch.token_ids is not None and "words" in state.tables:
            ids["words"] = batch.token_ids.reshape(-1)
        rows = {name: sparse_table.gather(state.tables[name], ids[name]) for name in state.tables}
        weight = parallel.sum_over_devices(jnp.sum(batch.weight), axis)
        scale = parallel.axis_size(axis) / jnp.maximum(weight, 1e-12)

        def loss(trainable: PyTree, rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            params = merge(trainable, state.frozen)
            pooled = pooled_texts(params, batch, rows.get("words"), text_key)
            anchor, text_bias = head.apply({"params": params["head"]}, pooled)
            q_KxD, b_K = two_tower.item_vectors(anchor, text_bias, rows["items"], batch.gate)
            keep = _keep_mask(keep_key, (batch.pair_user.shape[0], q_KxD.shape[1]), model.embedding_dropout)
            scores = two_tower.pair_scores(
                params["head"]["mu"], rows["users"], q_KxD[batch.pair_item], b_K[batch.pair_item], keep
            )
            error, _ = objective(scores, batch.target, weights=batch.weight)
            penalty = _penalty(rows["users"], rows["items"], batch, model)
            return scale * (error + penalty), error

        (dense, sparse), error = jax.grad(loss, argnums=(0, 1), has_aux=True)(state.trainable, rows)
        dense = parallel.mean_over_devices(dense, axis)
        updates, optimizer_state = optimizer.update(dense, state.optimizer, state.trainable)
        tables = {
            name: table_update(
                table,
                ids[name],
                sparse[name],
                learning_rate=table_rates[name] * schedule(state.step),
                weight_decay=table_decay[name],
                axis=axis,
            )
            for name, table in state.tables.items()
        }
        metrics = {
            "squared_error": parallel.sum_over_devices(error, axis),
            "weight": weight,
            "gradient_norm": optax.tree.norm(dense),
        }
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            tables=tables,
            optimizer=optimizer_state,
        )
        return state, metrics

    return step


def _penalty(user_rows: jax.Array, item_rows: jax.Array, batch: Batch, model: ModelConfig) -> jax.Array:
    weight_K = jax.ops.segment_sum(batch.weight, batch.pair_item, num_segments=item_rows.shape[0])
    per_user = model.user_l2 * jnp.sum(user_rows[:, :-1] ** 2, axis=-1) + model.bias_l2 * user_rows[:, -1] ** 2
    per_item = model.item_l2 * jnp.sum(item_rows[:, :-1] ** 2, axis=-1) + model.bias_l2 * item_rows[:, -1] ** 2
    return jnp.sum(batch.weight * per_user) + jnp.sum(weight_K * per_item)


def _keep_mask(key: jax.Array, shape: tuple[int, int], rate: float) -> jax.Array | None:
    if rate == 0.0:
        return None
    return jax.random.bernoulli(key, 1.0 - rate, shape) / (1.0 - rate)
