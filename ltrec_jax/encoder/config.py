"""The shape of one encoder, read from a Hugging Face `config.json`. Out of scope: weights, tokenizer, pooling."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from ltrec_jax.errors import UserError, unknown_name

ModelType = Literal["bert", "roberta", "xlm-roberta", "camembert", "distilbert"]
AttentionKernel = Literal["xla", "cudnn"]
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "position_rows": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "pad_token_id": "pad_token_id",
}
_DISTILBERT_KEYS = _BERT_KEYS | {
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "pad_token_id": 0,
}
_UNSUPPORTED = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "sinusoidal_pos_embds": (False, True, None),
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of a BERT-like encoder. `from_dict` validates; the constructor trusts its caller.

    `type_vocab_size` is 0 where the family has no token types (DistilBERT). `position_rows` counts the rows of the
    position table, `max_positions` the tokens a text may have: RoBERTa's first `pad_token_id + 1` rows are unused.
    `has_pooler` says whether the parameter tree holds the pooler's dense layer. `attention` is how it is computed
    on a GPU, a choice of the process and in no file.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    position_rows: int
    model_type: ModelType = "bert"
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    pad_token_id: int = 0
    has_pooler: bool = False
    attention: AttentionKernel = "xla"

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def position_offset(self) -> int:
        """The row of the position table that a text's first token takes."""
        return self.pad_token_id + 1 if self.model_type in _ROBERTA_LIKE else 0

    @property
    def max_positions(self) -> int:
        """The longest text in tokens, special tokens included."""
        return self.position_rows - self.position_offset

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str = "config.json") -> Self:
        """Read the keys of a Hugging Face configuration; `source` names the file in errors.

        An unknown model type or activation, a missing or non-positive size, and what this encoder does not compute
        (relative positions, decoders) are `UserError`s. Other keys are ignored.
        """
        model_type = str(raw.get("model_type", "bert"))
        if model_type not in ("bert", "distilbert", *_ROBERTA_LIKE):
            raise unknown_name(f"model_type in {source}", model_type, ("bert", "distilbert", *_ROBERTA_LIKE))
        for key, allowed in _UNSUPPORTED.items():
            if raw.get(key) not in allowed:
                raise UserError(f"{source}: {key} = {raw[key]!r} is not supported (only {allowed[0]!r}).")
        values = _read_values(raw, _keys(model_type), model_type, source)
        activation = str(values["hidden_act"])
        if activation not in _ACTIVATIONS:
            raise unknown_name(f"hidden_act in {source}", activation, _ACTIVATIONS)
        config = cls(model_type=model_type, **values)  # type: ignore[arg-type]
        config._check(source)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The Hugging Face configuration that `from_dict` reads back (without `has_pooler`)."""
        raw = {key: getattr(self, name) for name, key in _keys(self.model_type).items()}
        if self.model_type == "distilbert":
            for key in ("type_vocab_size", "layer_norm_eps"):
                del raw[key]
        return {"model_type": self.model_type, "architectures": [_ARCHITECTURES[self.model_type]], **raw}

    def _check(self, source: str) -> None:
        for name, key in _keys(self.model_type).items():
            value = getattr(self, name)
            if name.endswith("dropout"):
                good = isinstance(value, int | float) and 0.0 <= value < 1.0
            elif name == "layer_norm_eps":
                good = isinstance(value, int | float) and value > 0.0
            elif name in ("pad_token_id", "type_vocab_size"):
                good = isinstance(value, int) and value >= 0
            else:
                good = name == "hidden_act" or (isinstance(value, int) and value > 0)
            if not good:
                raise UserError(f"{source}: {key} = {value!r} is out of range.")
        if self.hidden_size % self.num_heads:
            raise UserError(f"{source}: hidden size {self.hidden_size} is not a multiple of {self.num_heads} heads.")
        if self.max_positions <= 0:
            raise UserError(f"{source}: max_position_embeddings = {self.position_rows} leaves no room for a token.")


_ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "distilbert": "DistilBertModel",
}


def activation_name(config: EncoderConfig) -> str:
    """The function of `dense` that computes the configured activation: "gelu", "gelu_tanh" or "relu"."""
    return _ACTIVATIONS[config.hidden_act]


def head_activation_name(config: EncoderConfig) -> str:
    """The same of the head for masked words: RoBERTa's family has exact GELU there, whatever `hidden_act` says."""
    return "gelu" if config.model_type in _ROBERTA_LIKE else activation_name(config)


def _keys(model_type: str) -> dict[str, str]:
    return _DISTILBERT_KEYS if model_type == "distilbert" else _BERT_KEYS


def _read_values(raw: Mapping[str, Any], keys: Mapping[str, str], model_type: str, source: str) -> dict[str, Any]:
    defaults = dict(_DEFAULTS)
    if model_type == "distilbert":
        raw = {**raw, "type_vocab_size": 0, "layer_norm_eps": 1e-12}
    elif model_type in _ROBERTA_LIKE:
        defaults["pad_token_id"] = 1
    values: dict[str, Any] = {}
    missing = []
    for name, key in keys.items():
        value = raw.get(key)
        if value is None:
            value = defaults.get(name)
        if value is None:
            missing.append(key)
        values[name] = value
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}: it is not the configuration of a {model_type} encoder.")
    return values
