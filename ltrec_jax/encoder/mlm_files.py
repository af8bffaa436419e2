"""The masked-language-model head in a checkpoint's files: found and checked, or written, under the family's own names.

The decoder is the word table ("tied"), as in every checkpoint of these families that the hub knows; an untied one is
refused. Out of scope: what the head computes (`mlm`), the encoder's own weights (`names`).
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ltrec_jax.encoder import files
from ltrec_jax.encoder.config import EncoderConfig, ModelType
from ltrec_jax.encoder.files import Format
from ltrec_jax.encoder.mlm import fresh_head
from ltrec_jax.errors import UserError
from ltrec_jax.types import Array, PyTree

_ROBERTA = ("lm_head.dense", "lm_head.layer_norm", ("lm_head.bias", "lm_head.decoder.bias"), "lm_head.decoder")
# Modules of the file: transform, LayerNorm; names of the output bias, the one we write first; the decoder.
_PLACES: dict[ModelType, tuple[str, str, tuple[str, ...], str]] = {
    "bert": (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        "cls.predictions.decoder",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": ("vocab_transform", "vocab_layer_norm", ("vocab_projector.bias",), "vocab_projector"),
}


def load_head(directory: Path, config: EncoderConfig, words_VxE: Array) -> PyTree | None:
    """The head that lies beside the encoder's weights in a directory, float32, or None where there is none at all.

    `words_VxE` is the encoder's word table. A part of a head, an array of the wrong shape and a decoder that is not the
    word table are named in one `UserError`.
    """
    kind, paths = files.find_weights(directory)
    tensors = files.read_tensors(kind, paths)
    names, decoder = _names(config, kind), _decoder(config, kind)
    known = {name for each in names.values() for name in each} | {decoder}
    if not known & tensors.keys():
        return None
    source = ", ".join(map(str, paths))
    shapes = jax.eval_shape(lambda: fresh_head(config, jax.random.key(0)))
    params, faults = {}, []
    for path, leaf in flatten_dict(shapes, sep="/").items():
        found = next((name for name in names[path] if name in tensors), None)
        if found is None:
            faults.append(f"{names[path][0]} is missing")
            continue
        array = np.asarray(tensors[found], np.float32)
        array = array.T if _is_transposed(path, kind) else array
        if array.shape != leaf.shape:
            faults.append(f"{found} has the shape {array.shape} instead of {leaf.shape}")
        params[path] = np.ascontiguousarray(array)
    if decoder in tensors and not _is_tied(tensors[decoder], words_VxE, kind):
        faults.append(f"{decoder} is not the word table (an untied decoder is not supported)")
    if faults:
        raise UserError(f"{source} holds no whole head for masked words: {'; '.join(faults)}.")
    return unflatten_dict(params, sep="/")


def head_tensors(head: PyTree, config: EncoderConfig, kind: Format) -> dict[str, np.ndarray]:
    """The head under dotted foreign names, float32, contiguous: the inverse of `load_head`."""
    names = _names(config, kind)
    tensors = {}
    for path, value in flatten_dict(head, sep="/").items():
        array = np.asarray(value, np.float32)
        tensors[names[path][0]] = np.ascontiguousarray(array.T if _is_transposed(path, kind) else array)
    return tensors


def _names(config: EncoderConfig, kind: Format) -> Mapping[str, tuple[str, ...]]:
    transform, norm, bias, _ = _PLACES[config.model_type]
    if kind == "flax":
        return {
            "transform/kernel": (f"{transform}.kernel",),
            "transform/bias": (f"{transform}.bias",),
            "LayerNorm/scale": (f"{norm}.scale",),
            "LayerNorm/bias": (f"{norm}.bias",),
            "bias": bias[:1],
        }
    return {
        "transform/kernel": (f"{transform}.weight",),
        "transform/bias": (f"{transform}.bias",),
        "LayerNorm/scale": (f"{norm}.weight", f"{norm}.gamma"),
        "LayerNorm/bias": (f"{norm}.bias", f"{norm}.beta"),
        "bias": bias,
    }


def _decoder(config: EncoderConfig, kind: Format) -> str:
    return f"{_PLACES[config.model_type][3]}.{'kernel' if kind == 'flax' else 'weight'}"


def _is_transposed(path: str, kind: Format) -> bool:
    return kind == "safetensors" and path.endswith("/kernel")


def _is_tied(decoder: np.ndarray, words_VxE: Array, kind: Format) -> bool:
    found = np.asarray(decoder, np.float32)
    return np.array_equal(found.T if kind == "flax" else found, np.asarray(words_VxE))
