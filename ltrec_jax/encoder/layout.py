"""What a sentence-transformers directory says beside the weights: pooling, normalisation, length, prompts.

A directory without these files is a plain encoder: mean pooling, not normalised. A module that this library does not
compute is an error, because skipping it would give other vectors than the checkpoint's authors meant.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltrec_jax import storage
from ltrec_jax.encoder.pooling import POOLINGS, Pooling
from ltrec_jax.errors import UserError, unknown_name
from ltrec_jax.text import sentence_config

_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How texts become vectors. `transformer` is the directory with config.json, weights and tokenizer.

    `default_prompt` names the one of `prompts` that goes before a text unless another is asked for. Without
    `prompt_pooled` the tokens of a prompt are read, but do not enter the pooled vector.
    """

    transformer: Path
    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    prompt_pooled: bool = True


def read_layout(directory: Path) -> Layout:
    """The layout of a local directory.

    Unsupported modules and pooling modes, and files that are malformed, are `UserError`s that name the file.
    """
    layout = Layout(directory)
    path = directory / "modules.json"
    if path.is_file():
        modules = storage.read_json(path)
        if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
            raise UserError(f"{path} is damaged: it is no list of modules.")
        for module in modules:
            layout = _with_module(layout, directory, module)
    noted = sentence_config.read_sentence_config(layout.transformer)
    return _with_prompts(
        dataclasses.replace(layout, max_length=noted.max_length), directory / "config_sentence_transformers.json"
    )


def write_layout(directory: Path, layout: Layout, *, width: int, lower_case: bool) -> None:
    """Write the files that `read_layout` (and sentence-transformers) read. Called inside a directory being made.

    `width`: numbers of a vector; `lower_case`: whether texts are lowered before the tokenizer sees them.
    """
    kinds = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *([("2_Normalize", "Normalize")] if layout.normalize else []),
    ]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    # What every version reads: the newest ones know the flags, and what a file does not say is the default.
    pooling = {"word_embedding_dimension": width, **{flag: k == layout.pooling for flag, k in _POOLING_FLAGS.items()}}
    prompts: dict[str, Any] = {"prompts": dict(layout.prompts)}
    if not layout.prompt_pooled:
        pooling["include_prompt"] = False
    if layout.default_prompt is not None:
        prompts["default_prompt_name"] = layout.default_prompt
    storage.write_json(directory / "modules.json", modules)
    storage.write_json(directory / "1_Pooling" / "config.json", pooling)
    storage.write_json(
        directory / sentence_config.FILE_NAME, {"max_seq_length": layout.max_length, "do_lower_case": lower_case}
    )
    storage.write_json(directory / "config_sentence_transformers.json", prompts)


def _with_module(layout: Layout, directory: Path, module: Mapping[str, Any]) -> Layout:
    kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], directory / str(module.get("path", ""))
    if kind == "Transformer":
        return dataclasses.replace(layout, transformer=path)
    if kind == "Pooling":
        return _with_pooling(layout, path / "config.json")
    if kind == "Normalize":
        return dataclasses.replace(layout, normalize=True)
    raise UserError(
        f"{directory / 'modules.json'} has a {kind or 'nameless'} module, which is not supported "
        "(only Transformer, Pooling, Normalize)."
    )


def _with_pooling(layout: Layout, path: Path) -> Layout:
    raw = storage.read_json_object(path)
    prompt_pooled = raw.get("include_prompt", True)
    if not isinstance(prompt_pooled, bool):
        raise UserError(f"{path}: include_prompt = {prompt_pooled!r} is neither true nor false.")
    named = "pooling_mode" in raw
    if named:
        chosen = list(map(str, raw["pooling_mode"] if isinstance(raw["pooling_mode"], list) else [raw["pooling_mode"]]))
    else:
        chosen = [key for key, value in raw.items() if key.startswith("pooling_mode_") and value is True]
    known: Mapping[str, Pooling] = dict(zip(POOLINGS, POOLINGS, strict=True)) if named else _POOLING_FLAGS
    if len(chosen) != 1 or chosen[0] not in known:
        raise UserError(
            f"{path} asks for {' + '.join(chosen) or 'no pooling at all'}; exactly one of "
            f"{', '.join(known)} is supported."
        )
    return dataclasses.replace(layout, pooling=known[chosen[0]], prompt_pooled=prompt_pooled)


def _with_prompts(layout: Layout, path: Path) -> Layout:
    if not path.is_file():
        return layout
    raw = storage.read_json_object(path)
    prompts, default = raw.get("prompts") or {}, raw.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{path} is damaged: its prompts are not texts by name.")
    if default is not None and default not in prompts:
        raise unknown_name(f"default_prompt_name in {path}", str(default), prompts)
    return dataclasses.replace(layout, prompts=prompts, default_prompt=default)
