"""BERT in Linen: token ids to hidden states. Attribute names give the parameter tree of Hugging Face's Flax classes.

One block serves BERT, RoBERTa/XLM-R and DistilBERT (`weights` maps their names onto this tree). Out of scope: loading
(`weights`), precision and platform tricks (`dense`), pooling of texts (`pooling`), heads.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltrec_jax.dropout import keep_mask
from ltrec_jax.encoder import attention, dense, int8
from ltrec_jax.encoder.config import EncoderConfig, activation_name
from ltrec_jax.encoder.norm import LayerNorm
from ltrec_jax.types import Array, PyTree


class Dense(nn.Module):
    """activation(x W + b) over the last axis; parameters `kernel` [I, O] and `bias` [O] (int8: see `inference`)."""

    inputs: int
    outputs: int
    policy: dense.Policy
    activation: str = "none"

    def setup(self) -> None:
        shape = (self.inputs, self.outputs)
        self.bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
        if self.policy == "int8":
            self.kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.int8)
            self.kernel_scale = self.param("kernel_scale", nn.initializers.ones, (self.outputs,))
            self.kernel_sums = self.param("kernel_sums", nn.initializers.zeros, (self.outputs,), jnp.int32)
            self.input_scale = self.param("input_scale", nn.initializers.ones, (self.inputs,))
        else:
            self.kernel = self.param("kernel", nn.initializers.normal(0.02), shape)

    def rounded(self, x: jax.Array) -> int8.Rounded:
        """int8: the input as the product takes it. Layers with one `input_scale` may share it."""
        return int8.round_rows(x.reshape(-1, self.inputs) * self.input_scale[None, :])

    def __call__(self, x: jax.Array, rounded: int8.Rounded | None = None) -> jax.Array:
        x_NxI = x.reshape(-1, self.inputs)
        if self.policy == "int8":
            kernel = int8.Kernel(self.kernel, self.kernel_scale, self.kernel_sums)
            y_NxO = dense.affine_int8(rounded or self.rounded(x), kernel, self.bias, self.activation)
        elif self.policy == "bfloat16_kept":
            y_NxO = dense.affine_kept(x_NxI, self.kernel, self.bias, self.activation)
        else:
            y_NxO = dense.affine(x_NxI, self.kernel, self.bias, self.policy, self.activation)
        return y_NxO.reshape(*x.shape[:-1], self.outputs)


class TokenNames(NamedTuple):
    """What the dropout masks of tokens are drawn by: integers [R, L] that name each one's text, and its place in it."""

    text_RxL: jax.Array
    position_RxL: jax.Array


class Dropout(nn.Module):
    """Dropout by token (`ltrec_jax.dropout`): texts have the same masks wherever they are packed. No names: none."""

    rate: float

    def __call__(self, x_RxLxE: jax.Array, names: TokenNames | None) -> jax.Array:
        if names is None or self.rate == 0.0:
            return x_RxLxE
        flat = (each.reshape(-1) for each in names)
        mask = keep_mask(self.make_rng("dropout"), *flat, shape=x_RxLxE.shape[2:], rate=self.rate)
        return x_RxLxE * mask.reshape(x_RxLxE.shape)

    def weights(self, weights_RxHxLxL: jax.Array, names: TokenNames) -> jax.Array:
        """On attention's weights [R, H, L, L], of a text's token for another token of it."""
        rows, heads, length, _ = weights_RxHxLxL.shape
        of_query = (jnp.repeat(each.reshape(-1), length) for each in names)
        of_key = jnp.repeat(names.position_RxL, length, axis=0).reshape(-1)
        mask = keep_mask(self.make_rng("dropout"), *of_query, of_key, shape=(heads,), rate=self.rate)
        return weights_RxHxLxL * jnp.moveaxis(mask.reshape(rows, length, length, heads), 3, 1)


def _layer_norm(config: EncoderConfig, policy: dense.Policy = "float32") -> LayerNorm:
    # E[x^2] - E[x]^2 spares a pass over x (58 against 56 ms for the whole encoder) and loses some of float32's digits,
    # of which the other policies keep fewer still.
    kept = policy == "bfloat16_kept"
    return LayerNorm(config.hidden_size, config.layer_norm_eps, fast=policy != "float32", kept=kept)


class Embeddings(nn.Module):
    config: EncoderConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(0.02)
        self.word_embeddings = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=init)
        self.position_embeddings = nn.Embed(c.position_rows, c.hidden_size, embedding_init=init)
        if c.type_vocab_size:
            self.token_type_embeddings = nn.Embed(c.type_vocab_size, c.hidden_size, embedding_init=init)
        self.LayerNorm = _layer_norm(c)
        self.dropout = Dropout(c.hidden_dropout)

    def __call__(
        self,
        token_ids_RxL: Array,
        position_ids_RxL: Array,
        token_type_ids: Array | None,
        word_embeddings_RxLxE: Array | None,
        names: TokenNames | None,
    ) -> jax.Array:
        word = word_embeddings_RxLxE
        if word is None or self.is_initializing():
            word = self.word_embeddings(token_ids_RxL)
        hidden = word + self.position_embeddings(position_ids_RxL + self.config.position_offset)
        if self.config.type_vocab_size:
            types = jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids
            hidden = hidden + self.token_type_embeddings(types)
        return self.dropout(self.LayerNorm(hidden), names)


class SelfAttention(nn.Module):
    config: EncoderConfig
    policy: dense.Policy

    def setup(self) -> None:
        size = self.config.hidden_size
        self.query = Dense(size, size, self.policy)
        self.key = Dense(size, size, self.policy)
        self.value = Dense(size, size, self.policy)
        self.dropout = Dropout(self.config.attention_dropout)

    def __call__(self, hidden_RxLxE: jax.Array, mask_RxLxL: jax.Array, names: TokenNames | None) -> jax.Array:
        c = self.config
        shape = (*hidden_RxLxE.shape[:2], c.num_heads, c.head_size)
        rounded = self.query.rounded(hidden_RxLxE) if self.policy == "int8" else None
        query, key, value = (f(hidden_RxLxE, rounded).reshape(shape) for f in (self.query, self.key, self.value))
        if names is None or c.attention_dropout == 0.0:
            context = attention.attention(query, key, value, mask_RxLxL, self.policy, c.attention)
        else:
            context = attention.attention_with_dropout(
                query,
                key,
                value,
                mask_RxLxL,
                lambda weights: self.dropout.weights(weights, names),
                self.policy,
                c.attention,
            )
        return context.reshape(hidden_RxLxE.shape)


class Output(nn.Module):
    """Dense, dropout, residual, LayerNorm: the end of both halves of a layer."""

    config: EncoderConfig
    inputs: int
    policy: dense.Policy

    def setup(self) -> None:
        self.dense = Dense(self.inputs, self.config.hidden_size, dense.behind_others(self.policy))
        self.LayerNorm = _layer_norm(self.config, self.policy)
        self.dropout = Dropout(self.config.hidden_dropout)

    def __call__(self, x: jax.Array, residual: jax.Array, names: TokenNames | None) -> jax.Array:
        return self.LayerNorm(self.dropout(self.dense(x), names).astype(jnp.float32) + residual.astype(jnp.float32))


class Attention(nn.Module):
    config: EncoderConfig
    policy: dense.Policy

    def setup(self) -> None:
        self.self = SelfAttention(self.config, self.policy)
        self.output = Output(self.config, self.config.hidden_size, self.policy)

    def __call__(self, hidden_RxLxE: jax.Array, mask_RxLxL: jax.Array, names: TokenNames | None) -> jax.Array:
        context = self.self(hidden_RxLxE, mask_RxLxL, names)
        return self.output(context, hidden_RxLxE, names)


class Intermediate(nn.Module):
    config: EncoderConfig
    policy: dense.Policy

    def setup(self) -> None:
        c = self.config
        self.dense = Dense(c.hidden_size, c.intermediate_size, self.policy, activation_name(c))

    def __call__(self, hidden_RxLxE: jax.Array) -> jax.Array:
        return self.dense(hidden_RxLxE)


class Layer(nn.Module):
    config: EncoderConfig
    policy: dense.Policy

    def setup(self) -> None:
        self.attention = Attention(self.config, self.policy)
        self.intermediate = Intermediate(self.config, self.policy)
        self.output = Output(self.config, self.config.intermediate_size, self.policy)

    def __call__(self, hidden_RxLxE: jax.Array, mask_RxLxL: jax.Array, names: TokenNames | None) -> jax.Array:
        hidden = self.attention(hidden_RxLxE, mask_RxLxL, names)
        return self.output(self.intermediate(hidden), hidden, names)


class LayerStack(nn.Module):
    """The layers under the names "0", "1", ...: `encoder/layer/<i>` in the tree, however they are run."""

    config: EncoderConfig
    policy: dense.Policy
    remat: bool
    scan: bool

    def setup(self) -> None:
        self.layers = [Layer(self.config, self.policy, name=str(i)) for i in range(self.config.num_layers)]

    def __call__(
        self, hidden_RxLxE: jax.Array, mask_RxLxL: jax.Array, first: int, last: int | None, names: TokenNames | None
    ) -> jax.Array:
        if self.is_initializing():
            for layer in self.layers[first:last]:
                hidden_RxLxE = layer(hidden_RxLxE, mask_RxLxL, names)
            return hidden_RxLxE
        key = None if names is None else self.make_rng("dropout")
        layer = Layer(self.config, self.policy, parent=None)

        def run(hidden_RxLxE: jax.Array, each: tuple[PyTree, Array | int]) -> tuple[jax.Array, None]:
            params, number = each
            # By the layer's number: one mask, whether the layers are scanned and whichever of them are run.
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, number)}
            return layer.apply({"params": params}, hidden_RxLxE, mask_RxLxL, names, rngs=rngs), None

        if self.remat:
            run = jax.checkpoint(run)
        params, chosen = self.variables["params"], range(self.config.num_layers)[first:last]
        if self.scan:
            # One compiled layer, run over the layers' stacked parameters: compiles faster, copies the weights once.
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[str(i)] for i in chosen))
            return jax.lax.scan(run, hidden_RxLxE, (stacked, jnp.array(chosen)))[0]
        for i in chosen:
            hidden_RxLxE, _ = run(hidden_RxLxE, (params[str(i)], i))
        return hidden_RxLxE


class Stack(nn.Module):
    config: EncoderConfig
    policy: dense.Policy
    remat: bool
    scan: bool

    def setup(self) -> None:
        self.layer = LayerStack(self.config, self.policy, self.remat, self.scan)

    def __call__(self, *args: Any) -> jax.Array:
        return self.layer(*args)


class Pooler(nn.Module):
    config: EncoderConfig
    policy: dense.Policy

    def setup(self) -> None:
        self.dense = Dense(self.config.hidden_size, self.config.hidden_size, self.policy)

    def __call__(self, first_NxE: jax.Array) -> jax.Array:
        return jnp.tanh(self.dense(first_NxE))


class Bert(nn.Module):
    """The encoder: int32 ids [R, L] to hidden states [R, L, E], float32 ("bfloat16_kept": bfloat16).

    `segment_ids` are integers; 0 is padding, and a token attends only to tokens of its row with the same segment id.
    The one rule serves padded rows (all ones, then zeros) and packed rows (1, 1, 2, 2, 2, 0, 0). Hidden states of
    padding are finite and mean nothing. A segment must not be longer than `config.max_positions`.
    Training passes `deterministic=False` and `rngs={"dropout": key}`; `text_names_RxL`, integers that say which text a
    token is of, then give a text the same masks wherever it is packed (without: they go by its row and segment).
    `remat` keeps no activations inside a layer and computes them again backwards; `scan` compiles one layer for all.
    Neither changes the parameter tree or the result.
    """

    config: EncoderConfig
    policy: dense.Policy = "float32"
    remat: bool = False
    scan: bool = False

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        self.encoder = Stack(self.config, self.policy, self.remat, self.scan)
        if self.config.has_pooler:
            self.pooler = Pooler(self.config, self.policy)

    def __call__(
        self,
        token_ids_RxL: Array,
        segment_ids_RxL: Array,
        position_ids_RxL: Array | None = None,
        *,
        token_type_ids: Array | None = None,
        word_embeddings_RxLxE: Array | None = None,
        deterministic: bool = True,
        text_names_RxL: Array | None = None,
    ) -> jax.Array:
        """Hidden states of the last layer. Positions restart at each segment unless given.

        `word_embeddings_RxLxE` replaces the look-up in the word table, so that a caller who gathered the rows itself
        can differentiate with respect to them.
        """
        hidden = self.embed(
            token_ids_RxL,
            segment_ids_RxL,
            position_ids_RxL,
            token_type_ids=token_type_ids,
            word_embeddings_RxLxE=word_embeddings_RxLxE,
            deterministic=deterministic,
            text_names_RxL=text_names_RxL,
        )
        hidden = self.run_layers(hidden, segment_ids_RxL, deterministic=deterministic, text_names_RxL=text_names_RxL)
        if self.is_initializing() and self.config.has_pooler:
            self.pool(hidden[:, 0])
        return hidden

    def embed(
        self,
        token_ids_RxL: Array,
        segment_ids_RxL: Array,
        position_ids_RxL: Array | None = None,
        *,
        token_type_ids: Array | None = None,
        word_embeddings_RxLxE: Array | None = None,
        deterministic: bool = True,
        text_names_RxL: Array | None = None,
    ) -> jax.Array:
        """What enters the first layer: word, position and type embeddings, summed and normalised."""
        if position_ids_RxL is None:
            position_ids_RxL = restarting_positions(segment_ids_RxL)
        names = None if deterministic else _names(segment_ids_RxL, text_names_RxL)
        return self.embeddings(token_ids_RxL, position_ids_RxL, token_type_ids, word_embeddings_RxLxE, names)

    def run_layers(
        self,
        hidden_RxLxE: jax.Array,
        segment_ids_RxL: Array,
        first: int = 0,
        last: int | None = None,
        *,
        deterministic: bool = True,
        text_names_RxL: Array | None = None,
    ) -> jax.Array:
        """Layers `first` (included) to `last` (excluded; None = to the end) on hidden states that enter `first`."""
        names = None if deterministic else _names(segment_ids_RxL, text_names_RxL)
        return self.encoder(hidden_RxLxE, attention.segment_mask(segment_ids_RxL), first, last, names)

    def pool(self, first_NxE: jax.Array) -> jax.Array:
        """The checkpoint's pooler, tanh(W h + b), on the hidden states of first tokens [N, E]."""
        return self.pooler(first_NxE)


def restarting_positions(segment_ids_RxL: Array) -> jax.Array:
    """Position of each token inside its segment, int32 [R, L]: [5, 5, 7, 7, 7, 0] gives [0, 1, 0, 1, 2, 0]."""
    segments = jnp.asarray(segment_ids_RxL)
    index_L = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return index_L - jax.lax.cummax(jnp.where(starts, index_L, 0), axis=1)


def _names(segment_ids_RxL: Array, text_names_RxL: Array | None) -> TokenNames:
    segments = jnp.asarray(segment_ids_RxL)
    row_Rx1 = jnp.arange(segments.shape[0], dtype=jnp.int32)[:, None]
    text = row_Rx1 * (segments.shape[1] + 1) + segments if text_names_RxL is None else jnp.asarray(text_names_RxL)
    return TokenNames(text, restarting_positions(segments))


def initialise(config: EncoderConfig, key: jax.Array) -> PyTree:
    """Fresh parameters: normal(0, 0.02) kernels and tables, zero biases. The tree of every loaded checkpoint."""
    ids = jnp.zeros((1, 1), jnp.int32)
    # Compiled: the forward pass, of which nothing is wanted, is then not run.
    return jax.jit(lambda key: Bert(config).init(key, ids, ids + 1)["params"])(key)
