"""The masked-language-model head in a checkpoint's files: found and checked, or written, under the family's own names.

The decoder is the word table ("tied"), as in every checkpoint of these families that the hub knows. A head with another
decoder, or with a part of one alone, is not taken. Out of scope: what the head computes (`mlm`), the encoder's own
weights (`names`).
"""

import warnings
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
    """The head that lies beside the encoder's weights in a directory, float32, or None where there is none to take.

    `words_VxE` is the encoder's word table. A head that lacks a part, or whose decoder is not the word table, is left
    with a warning that names what is wrong. Arrays of the wrong shape are damage: they are named in one `UserError`.
    """
    weights = files.read_weights(directory)
    if weights.faults:
        raise UserError(files.download_again(weights.faults))
    kind, tensors = weights.kind, weights.tensors
    names, decoder = _names(config, kind), _decoder(config, kind)
    known = {name for each in names.values() for name in each} | {decoder}
    if not known & tensors.keys():
        return None
    shapes = jax.eval_shape(lambda: fresh_head(config, jax.random.key(0)))
    params, lacking, misfits = {}, [], []
    for path, leaf in flatten_dict(shapes, sep="/").items():
        found = next((name for name in names[path] if name in tensors), None)
        if found is None:
            lacking.append(f"{names[path][0]} is missing")
            continue
        array = np.asarray(tensors[found], np.float32)
        array = array.T if _is_transposed(path, kind) else array
        if array.shape != leaf.shape:
            misfits.append(f"{found} has the shape {array.shape} instead of {leaf.shape}")
        params[path] = np.ascontiguousarray(array)
    if misfits:
        raise UserError(f"{weights.source} holds a damaged head for masked words: {'; '.join(misfits)}.")
    if decoder in tensors and not _is_tied(tensors[decoder], words_VxE, kind):
        lacking.append(f"{decoder} is not the word table")
    if lacking:
        warnings.warn(
            f"The head for masked words in {weights.source} is not taken, a new one on the word table is: "
            f"{'; '.join(lacking)}.",
            stacklevel=2,
        )
        return None
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
