"""Learning to guess masked words, as a phase of the loop: its loss, its state and step, and held-out figures.

Parameters are {"encoder", "head"}. The decoder is the word table, so every step moves every row of it: here it is a
dense leaf, not a sparse table.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax import parallel
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.dense import Policy
from ltrec_jax.encoder.mlm import MlmHead
from ltrec_jax.objectives.mlm import masked_cross_entropy, masked_hits
from ltrec_jax.parallel import Parallel
from ltrec_jax.train.loop import Step
from ltrec_jax.train.masked_batches import MaskedBatch, MaskedSource
from ltrec_jax.train.meter import Figures
from ltrec_jax.train.optimizer import make_optimizer, make_schedule
from ltrec_jax.train.pretrain_config import PretrainConfig
from ltrec_jax.train.state import WORDS, Path, TrainState, own_copy, partition, trainable_rule
from ltrec_jax.train.step import Loss, make_train_step
from ltrec_jax.types import PyTree

NOTHING_BUT_THE_HEAD = "none"
"""The `trainable` of the control: the encoder stays as it is."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Figures over masked tokens: mean cross entropy in nats, share guessed right, how many there were."""

    loss: float
    accuracy: float
    masked_tokens: int

    @property
    def pseudo_perplexity(self) -> float:
        """exp(loss): with `mask_share` of the words hidden at a time, not one by one (Salazar et al., ACL 2020)."""
        return math.exp(min(self.loss, 700.0))


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    weight = max(sums["weight"], 1e-12)
    return {"loss": sums["cross_entropy"] / weight, "accuracy": sums["hits"] / weight}


MASKED = Figures(
    of=_means,
    counted="masked tokens",
    remedy="Lower the learning rates (--learning-rate, --head-learning-rate) or set --clip-norm.",
)


def make_masked_loss(
    config: EncoderConfig, policy: Policy, *, dropout: bool = False, remat: bool = False, scan: bool = False
) -> Loss:
    """Cross entropy of a batch's masked tokens; `cross_entropy` and `hits` are reported. `remat`, `scan`: see `Bert`.

    Only masked positions go through the head: M rows of scores over the vocabulary, not R L.
    """
    bert, head = Bert(config, policy, remat=remat, scan=scan), MlmHead(config, policy)

    def loss(
        params: PyTree, rows: dict[str, jax.Array], batch: MaskedBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = bert.apply(
            {"params": params["encoder"]},
            batch.token_ids,
            batch.segment_ids,
            batch.token_position,
            deterministic=not dropout,
            rngs={"dropout": key} if dropout else None,
            text_names_RxL=batch.segment_ids,
        )
        masked_MxE = hidden.reshape(-1, config.hidden_size)[batch.masked_place]
        words_VxE = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        scores_MxV = head.apply({"params": params["head"]}, masked_MxE, words_VxE)
        error, _ = masked_cross_entropy(scores_MxV, batch.target, weights=batch.weight)
        hits, _ = masked_hits(scores_MxV, batch.target, weights=batch.weight)
        return error, {"cross_entropy": error, "hits": hits}

    return loss


def state_and_step(
    params: PyTree, config: EncoderConfig, settings: PretrainConfig, trainable: str, total_steps: int, spread: Parallel
) -> tuple[TrainState, Step]:
    """A fresh state on the devices, and the compiled step that donates it. `trainable`: as configured, or "none"."""
    optimizer = make_optimizer(settings.rates, total_steps, config.num_layers)
    learning, frozen = partition(params, _rule(trainable, config.num_layers))
    state = TrainState(
        step=jnp.int32(0), trainable=learning, frozen=frozen, tables={}, optimizer=optimizer.init(learning)
    )
    body = make_train_step(
        loss=make_masked_loss(
            config,
            settings.precision,
            dropout=settings.dropout,
            remat=settings.remat,
            scan=settings.scan_layers,
        ),
        optimizer=optimizer,
        schedule=make_schedule(settings.rates, total_steps),
        clip_norm=settings.clip_norm,
        axis=spread.axis,
    )
    return spread.replicate(own_copy(state)), spread.compile(body)


def make_held_out(
    source: MaskedSource, draws: int, config: EncoderConfig, policy: Policy, spread: Parallel
) -> Callable[[PyTree], HeldOut]:
    """The figures of parameters on the texts of a source, each masked in `draws` ways: the same ones at every call.

    Equal in all processes, which must all ask. A source that hides nothing at all has no figures: `ValueError`.
    """
    measure = _compiled_sums(config, policy, spread)
    key = spread.replicate(jax.random.key(0))

    def held_out(params: PyTree) -> HeldOut:
        batches = (source.batch(epoch, step) for epoch in range(draws) for step in range(source.steps_per_epoch))
        placed = spread.replicate(params)
        found = jax.device_get([measure(placed, spread.shard(batch), key)[1] for batch in batches])
        sums = {name: float(np.sum([each[name] for each in found], dtype=np.float64)) for name in found[0]}
        if not sums["weight"]:
            raise ValueError("no token of the held-out texts is masked: a loss of 0 would pass for the best")
        means = _means(sums)
        return HeldOut(means["loss"], means["accuracy"], round(sums["weight"]))

    return held_out


@functools.cache
def _compiled_sums(config: EncoderConfig, policy: Policy, spread: Parallel) -> parallel.Body:
    loss = make_masked_loss(config, policy)

    def body(params: PyTree, batch: MaskedBatch, key: jax.Array) -> tuple[None, dict[str, jax.Array]]:
        _, sums = loss(params, {}, batch, key)
        return None, parallel.sum_over_devices({**sums, "weight": jnp.sum(batch.weight)}, spread.axis)

    return spread.compile(body, donate=False)


def _rule(trainable: str, num_layers: int) -> Callable[[Path], bool]:
    of_encoder = trainable_rule(trainable, num_layers)

    def rule(path: Path) -> bool:
        return path[0] == "head" or (path == WORDS and trainable == "all") or of_encoder(path)

    return rule
