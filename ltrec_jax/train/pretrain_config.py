"""The settings of one pretraining run, validated field by field. Reads no file and no command line."""

import dataclasses
from typing import Annotated

from typing_extensions import Doc

from ltrec_jax import plain_settings
from ltrec_jax.config import AttentionKernel, ParallelMode, Precision, Tracker, TrainConfig, is_trainable_part
from ltrec_jax.errors import UserError
from ltrec_jax.plain_settings import AMOUNT, COUNT, SHARE, Rule, at_least

_PART = Rule("above 0 and below 1", lambda share: 0 < share < 1)
_LENGTH = at_least(3, ": two special tokens and a word")
_VOCABULARY = at_least(100)
_TRAINABLE = Rule("all, bias or top:N with N > 0", is_trainable_part)


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Masked-language-model pretraining on the texts of a catalogue. Every field has a default."""

    seed: Annotated[int, AMOUNT, Doc("the one source of randomness")] = 0
    encoder: Annotated[str, Doc("what to start from: registry name, directory or hub id")] = "all-MiniLM-L6-v2"
    from_scratch: Annotated[bool, Doc("start from a small BERT with a vocabulary of its own instead")] = False
    layers: Annotated[int, COUNT, Doc("of that BERT")] = 4
    hidden_size: Annotated[int, COUNT, Doc("of that BERT; its feed-forward layers are 4 times as wide")] = 256
    heads: Annotated[int, COUNT, Doc("attention heads of that BERT")] = 4
    vocabulary: Annotated[int, _VOCABULARY, Doc("word pieces of that BERT at most")] = 8000
    precision: Annotated[Precision, Doc("operands of the matmuls; sums and master weights stay float32")] = "bfloat16"
    attention: Annotated[AttentionKernel, Doc("on a GPU: by xla, or by cudnn (bfloat16 alone)")] = "xla"
    template: Annotated[str, Doc("item text from its columns, as '{title} ({year})'; empty: the dataset's own")] = ""
    max_length: Annotated[int, _LENGTH, Doc("tokens per text; longer ones are cut and counted")] = 128
    held_out: Annotated[float, _PART, Doc("share of the texts never trained on: half to stop by, half to report")] = 0.1
    mask_share: Annotated[float, _PART, Doc("share of the words hidden, drawn anew in every epoch")] = 0.15
    whole_words: Annotated[bool, Doc("hide all pieces of a word together")] = True
    trainable: Annotated[str, _TRAINABLE, Doc("part of the encoder that learns beside the head: all, top:N, bias")] = (
        "all"
    )
    epochs: Annotated[int, COUNT, Doc("over all texts at most; early stopping may end before")] = 5
    patience: Annotated[int, AMOUNT, Doc("stop after this many epochs without a better validation loss; 0: never")] = 3
    batch_tokens: Annotated[int, COUNT, Doc("tokens per global batch, about")] = 2048
    row_length: Annotated[int, Doc("tokens per packed row at most; shorter where all texts are")] = 128
    learning_rate: Annotated[float, AMOUNT, Doc("peak for the encoder; from scratch wants 5e-4")] = 2e-5
    head_learning_rate: Annotated[float, AMOUNT, Doc("peak for the head")] = 1e-3
    weight_decay: Annotated[float, AMOUNT, Doc("decoupled, on kernels and embeddings")] = 0.01
    warmup: Annotated[float, SHARE, Doc("share of the steps in which the rates rise; a cosine to 0 follows")] = 0.1
    clip_norm: Annotated[float, AMOUNT, Doc("global norm of the gradient is clipped to this; 0: never")] = 1.0
    dropout: Annotated[bool, Doc("use the encoder's own dropout rates")] = False
    remat: Annotated[bool, Doc("compute a layer's activations again backwards: far less memory, a third slower")] = (
        False
    )
    scan_layers: Annotated[bool, Doc("compile one layer for all of them: a deep encoder compiles sooner")] = False
    parallel: Annotated[ParallelMode, Doc("auto: pmap on several local devices, else jit")] = "auto"
    log_every: Annotated[int, COUNT, Doc("steps between two rows of metrics.jsonl")] = 10
    track: Annotated[
        tuple[Tracker, ...], Doc("where metrics go beside metrics.jsonl: tensorboard, wandb (each needs its extra)")
    ] = ()
    checkpoints: Annotated[int, COUNT, Doc("finished checkpoints kept beside the best one")] = 2

    def __post_init__(self) -> None:
        _check(self)

    @property
    def rates(self) -> TrainConfig:
        """What the optimizer reads of these settings."""
        return dataclasses.replace(
            TrainConfig(),
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            weight_decay=self.weight_decay,
            head_weight_decay=self.weight_decay,
            warmup=self.warmup,
        )


def _check(config: PretrainConfig) -> None:
    plain_settings.check_rules(config)
    if config.row_length < config.max_length:
        raise UserError(
            f"Setting row_length ({config.row_length}) must hold a whole text: at least max_length "
            f"({config.max_length})."
        )
    if config.hidden_size % config.heads:
        raise UserError(f"Setting hidden_size ({config.hidden_size}) must be a multiple of heads ({config.heads}).")
