"""Weight files of a directory, single or sharded, as one flat dict of arrays. Out of scope: what the names mean."""

import dataclasses
from collections.abc import Iterable, Mapping
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


@dataclasses.dataclass(frozen=True)
class Weights:
    """All arrays of a directory under dotted names ("encoder.layer.0..."), in the dtype of the file.

    `source` names the files for a message. `faults` says of each file that is absent or unreadable what is wrong with
    it, and `lost` has the names of the arrays that the index promises in these files.
    """

    kind: Format
    source: str
    tensors: Mapping[str, np.ndarray]
    faults: tuple[str, ...] = ()
    lost: frozenset[str] = frozenset()


def read_weights(directory: Path) -> Weights:
    """Read the weights of a directory, single or sharded; `model.safetensors` is preferred.

    None at all, a pickle, a damaged index and files of which none can be read are `UserError`s. Where some can be read,
    the others are told in `faults`, so that the caller can name whatever else is wrong beside them.
    """
    kind, files, promised = _find(directory)
    tensors: dict[str, np.ndarray] = {}
    faults, lost = [], set()
    for file in files:
        try:
            tensors.update(_read_safetensors(file) if kind == "safetensors" else _read_msgpack(file))
        except _UnreadableError as error:
            faults.append(str(error))
            lost |= {name.replace("/", ".") for name, shard in promised.items() if shard == file.name}
    if not tensors and faults:
        raise UserError(download_again(faults))
    return Weights(kind, ", ".join(map(str, files)), tensors, tuple(faults), frozenset(lost))


def download_again(faults: Iterable[str]) -> str:
    """The sentence that tells which files are absent or unreadable."""
    return f"{'; '.join(faults)}. Download it again."


def refused_pickle(place: str, directory: str, fetch: str = "") -> UserError:
    """The error for a place that holds its weights as a pickle only: how to convert them in a local directory.

    `fetch` is Python that makes the directory first.
    """
    load = f"from transformers import AutoModel as M; M.from_pretrained('{directory}')"
    return UserError(
        f"{place} holds its weights as pytorch_model.bin only: a pickle, which can run code: not read. Where PyTorch "
        f"is installed, convert it with: python -c \"{fetch}{load}.save_pretrained('{directory}')\""
    )


class _UnreadableError(Exception):
    """What is wrong with one file of weights; the message names it."""


def _find(directory: Path) -> tuple[Format, list[Path], dict[str, str]]:
    """The format, the file or shards, and which shard should hold which array."""
    for kind, name in FILE_NAMES.items():
        if (directory / name).is_file():
            return kind, [directory / name], {}
        index = directory / f"{name}.index.json"
        if index.is_file():
            promised = _promised(index)
            return kind, [directory / shard for shard in sorted(set(promised.values()))], promised
    if any((directory / name).exists() for name in _PICKLES):
        raise refused_pickle(str(directory), str(directory))
    raise UserError(f"{directory} holds no weights: neither {' nor '.join(FILE_NAMES.values())} (or their shards).")


def _promised(index: Path) -> dict[str, str]:
    weight_map = storage.read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is damaged: it has no weight_map.")
    return {name: Path(str(shard)).name for name, shard in weight_map.items()}


def _damaged(file: Path, error: Exception) -> _UnreadableError:
    if not file.exists():
        return _UnreadableError(f"{file.parent} lacks {file.name}, named in its index")
    return _UnreadableError(f"{file} is truncated or damaged ({' '.join(str(error).split())})")


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(file, framework="np") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise _damaged(file, error) from error


def _read_msgpack(file: Path) -> dict[str, np.ndarray]:
    try:
        flat = flatten_dict(flax.serialization.msgpack_restore(file.read_bytes()), sep=".")
    except (*_MSGPACK_ERRORS, FileNotFoundError) as error:
        raise _damaged(file, error) from error
    strangers = [name for name, value in flat.items() if not isinstance(value, np.ndarray)]
    if strangers:
        raise _UnreadableError(f"{file} is not a tree of arrays: {', '.join(strangers)}")
    return flat
