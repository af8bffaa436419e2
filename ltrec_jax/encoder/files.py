"""Weight files of a directory, single or sharded, as one flat dict of arrays. Out of scope: what the names mean."""

from pathlib import Path
from typing import Literal

import flax.serialization
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict

from ltrec_jax import storage
from ltrec_jax.errors import UserError

Format = Literal["safetensors", "flax"]
FILE_NAMES: dict[Format, str] = {"safetensors": "model.safetensors", "flax": "flax_model.msgpack"}
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What damaged bytes can raise inside msgpack (its own errors are ValueErrors) and Flax's decoder of arrays.
_MSGPACK_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError)


def find_weights(directory: Path) -> tuple[Format, list[Path]]:
    """The format and the file or shards of the weights; `model.safetensors` is preferred. None at all: `UserError`."""
    for kind, name in FILE_NAMES.items():
        if (directory / name).is_file():
            return kind, [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            return kind, _shards(index)
    if any((directory / name).exists() for name in _PICKLES):
        raise UserError(
            f"{directory} holds its weights as pytorch_model.bin only: a pickle, which can run code: not read. "
            f'Where PyTorch is installed, convert it with: python -c "from transformers import AutoModel as M; '
            f"M.from_pretrained('{directory}').save_pretrained('{directory}')\""
        )
    raise UserError(f"{directory} holds no weights: neither {' nor '.join(FILE_NAMES.values())} (or their shards).")


def read_tensors(kind: Format, files: list[Path]) -> dict[str, np.ndarray]:
    """All arrays under dotted names ("encoder.layer.0..."), in the dtype of the file. Damage is named by file."""
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors.update(_read_safetensors(file) if kind == "safetensors" else _read_msgpack(file))
    return tensors


def _shards(index: Path) -> list[Path]:
    named = storage.read_json(index)
    weight_map = named.get("weight_map") if isinstance(named, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is damaged: it has no weight_map.")
    shards = [index.parent / Path(str(name)).name for name in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {', '.join(missing)}, named in {index.name}. Download it again.")
    return shards


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is truncated or damaged ({' '.join(str(error).split())}). Download it again.")


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(file, framework="np") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except safetensors.SafetensorError as error:
        raise _damaged(file, error) from error


def _read_msgpack(file: Path) -> dict[str, np.ndarray]:
    try:
        flat = flatten_dict(flax.serialization.msgpack_restore(file.read_bytes()), sep=".")
    except _MSGPACK_ERRORS as error:
        raise _damaged(file, error) from error
    strangers = [name for name, value in flat.items() if not isinstance(value, np.ndarray)]
    if strangers:
        raise UserError(f"{file} is not a tree of arrays: {', '.join(strangers)}.")
    return flat
