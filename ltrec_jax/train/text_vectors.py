"""Texts as pooled vectors under the parameters of a state: those of a batch inside a loss, any others between steps.

Both go through all layers of the encoder, or only those above the stored hidden states of its frozen layers. Out of
scope: what stands on the vectors (`model`), storing hidden states (`layer_cache`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.encoder import catalogue, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.text.store import TokenStore
from ltrec_jax.train.layer_cache import HiddenStates, pooled_texts, run_above
from ltrec_jax.train.pair_loss import PooledTexts
from ltrec_jax.train.problem import Problem
from ltrec_jax.train.user_texts import Texts
from ltrec_jax.types import Array, PyTree


def look_up_slots(name: str) -> PooledTexts:
    """Of texts that are not encoded: rows of params[`name`], float32 [texts, E]; zeros of padding."""
    return lambda params, texts, *_: jnp.take(params[name], texts.name, axis=0, mode="fill", fill_value=0.0)


def encode_slots(problem: Problem, hidden: HiddenStates | None) -> PooledTexts:
    """Of texts that are: through all layers, or those above the stored `hidden` states."""
    cached_layers = 0 if hidden is None else hidden.layers
    train, encoder = problem.config.train, problem.encoder
    bert = Bert(encoder.config, problem.config.encoder.precision, remat=train.remat, scan=train.scan_layers)

    def pooled(params: PyTree, texts: Texts, words: Array | None, key: jax.Array) -> jax.Array:
        assert texts.token_ids is not None
        assert texts.token_slot is not None
        slots = texts.name.shape[0]
        if texts.hidden is not None:
            states = run_above(bert, params["encoder"], texts.hidden, texts.token_slot, slots, cached_layers)
            return catalogue.finish(encoder, pooling.pool(states, texts.token_slot, slots, encoder.pooling))
        segments = jnp.where(texts.token_slot < slots, texts.token_slot + 1, 0)
        states = bert.apply(
            {"params": params["encoder"]},
            texts.token_ids,
            segments,
            texts.token_position,
            word_embeddings_RxLxE=None if words is None else words.reshape(*texts.token_ids.shape, -1),
            deterministic=not train.encoder_dropout,
            rngs={"dropout": key} if train.encoder_dropout else None,
            text_names_RxL=jnp.append(texts.name, problem.dataset.num_items)[texts.token_slot],
        )
        return catalogue.finish(encoder, pooling.pool(states, texts.token_slot, slots, encoder.pooling))

    return pooled


def encode_texts(
    problem: Problem, tokens: TokenStore, hidden: HiddenStates | None, params: PyTree, texts: np.ndarray
) -> np.ndarray:
    """Vectors of these `texts` among the `tokens` under the encoder's `params`, float32 [n, E].

    `hidden`: states of all of them below the layers that learn, where those are stored.
    """
    policy = problem.config.encoder.precision
    if hidden is not None:
        return pooled_texts(problem.encoder, params, hidden, tokens, texts, policy)
    current = dataclasses.replace(problem.encoder, params=params)
    return catalogue.encode_catalogue(current, tokens.take(texts), policy=policy, progress=False)
