"""What a sentence-transformers directory says beside the weights: pooling, normalisation, length, prompts.

A directory without these files is a plain encoder: mean pooling, not normalised. A module that this library does not
compute is an error, because skipping it would give other vectors than the checkpoint's authors meant.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltrec_jax import storage
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.pooling import Pooling
from ltrec_jax.errors import UserError

_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How texts become vectors. `transformer` is the directory with config.json, weights and tokenizer."""

    transformer: Path
    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_layout(directory: Path) -> Layout:
    """The layout of a local directory; unsupported modules and pooling modes are `UserError`s that name the file."""
    layout = Layout(directory)
    if (directory / "modules.json").is_file():
        for module in storage.read_json(directory / "modules.json"):
            layout = _with_module(layout, directory, module)
    lengths = layout.transformer / "sentence_bert_config.json"
    if lengths.is_file():
        layout = dataclasses.replace(layout, max_length=storage.read_json(lengths).get("max_seq_length"))
    prompts = directory / "config_sentence_transformers.json"
    if prompts.is_file():
        layout = dataclasses.replace(layout, prompts=storage.read_json(prompts).get("prompts") or {})
    return layout


def write_layout(
    directory: Path,
    config: EncoderConfig,
    pooling: Pooling,
    normalize: bool,
    max_length: int,
    prompts: Mapping[str, str],
) -> None:
    """Write the files that `read_layout` (and sentence-transformers) read. Called inside a directory being made."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    storage.write_json(
        directory / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    flags = {flag: kind == pooling for flag, kind in _POOLING_FLAGS.items()}
    storage.write_json(
        directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, **flags}
    )
    storage.write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    storage.write_json(directory / "config_sentence_transformers.json", {"prompts": dict(prompts)})


def _with_module(layout: Layout, directory: Path, module: Mapping[str, Any]) -> Layout:
    kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], directory / str(module.get("path", ""))
    if kind == "Transformer":
        return dataclasses.replace(layout, transformer=path)
    if kind == "Pooling":
        return dataclasses.replace(layout, pooling=_pooling(path / "config.json"))
    if kind == "Normalize":
        return dataclasses.replace(layout, normalize=True)
    raise UserError(
        f"{directory / 'modules.json'} has a {kind or 'nameless'} module, which is not supported "
        "(only Transformer, Pooling, Normalize)."
    )


def _pooling(path: Path) -> Pooling:
    raw = storage.read_json(path)
    chosen = [key for key, value in raw.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _POOLING_FLAGS:
        raise UserError(
            f"{path} asks for {' + '.join(chosen) or 'no pooling at all'}; exactly one of {', '.join(_POOLING_FLAGS)} "
            "is supported."
        )
    return _POOLING_FLAGS[chosen[0]]
