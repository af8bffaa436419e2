"""The table between foreign names of weights and our parameter tree, both ways, strict. Files belong to `files`."""

import re
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ltrec_jax.encoder.bert import initialise
from ltrec_jax.encoder.config import EncoderConfig, ModelType
from ltrec_jax.encoder.files import Format, Weights
from ltrec_jax.types import PyTree

# Leaf of our tree -> names it has in a file; the first is the one we write. gamma and beta are TensorFlow's.
_LEAVES: dict[Format, dict[str, tuple[str, ...]]] = {
    "safetensors": {
        "kernel": ("weight",),
        "embedding": ("weight",),
        "scale": ("weight", "gamma"),
        "bias": ("bias", "beta"),
    },
    "flax": {"kernel": ("kernel",), "embedding": ("embedding",), "scale": ("scale",), "bias": ("bias",)},
}
# Module of our tree (dotted) -> module of the file, where they differ. BERT and RoBERTa share our names.
_MODULES: dict[ModelType, tuple[tuple[str, str], ...]] = {
    "distilbert": (
        (r"encoder\.layer\.(\d+)\.attention\.self\.query", r"transformer.layer.\1.attention.q_lin"),
        (r"encoder\.layer\.(\d+)\.attention\.self\.key", r"transformer.layer.\1.attention.k_lin"),
        (r"encoder\.layer\.(\d+)\.attention\.self\.value", r"transformer.layer.\1.attention.v_lin"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"transformer.layer.\1.attention.out_lin"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm", r"transformer.layer.\1.sa_layer_norm"),
        (r"encoder\.layer\.(\d+)\.intermediate\.dense", r"transformer.layer.\1.ffn.lin1"),
        (r"encoder\.layer\.(\d+)\.output\.dense", r"transformer.layer.\1.ffn.lin2"),
        (r"encoder\.layer\.(\d+)\.output\.LayerNorm", r"transformer.layer.\1.output_layer_norm"),
    ),
}
_PREFIXES: dict[ModelType, str] = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "camembert": "roberta.",
    "distilbert": "distilbert.",
}
_HEADS = (
    "cls.",
    "lm_head.",
    "classifier.",
    "qa_outputs.",
    "pre_classifier.",
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
)
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def has_pooler(tensors: Mapping[str, np.ndarray], config: EncoderConfig) -> bool:
    """Whether a file holds any part of the pooler."""
    return any(name.startswith("pooler.") for name in _encoder_part(tensors, config))


def to_tree(weights: Weights, config: EncoderConfig) -> tuple[PyTree, list[str]]:
    """Our parameter tree, float32, from a file's arrays, and what is wrong with them: "missing: ...", "unused: ...".

    Heads and buffers are dropped; nothing else is tolerated. Named are all missing arrays (but those lost with a file),
    all unused ones, and as "misfit" all of a wrong shape or not floating. The tree lacks what is named.
    """
    kind, remaining = weights.kind, _encoder_part(weights.tensors, config)
    lost = {name.removeprefix(_PREFIXES[config.model_type]) for name in weights.lost}
    params, missing, misfits = {}, [], []
    for path, shape in expected_shapes(config).items():
        names = foreign_names(path, config, kind)
        found = next((name for name in names if name in remaining), None)
        if found is None:
            missing += [names[0]] if lost.isdisjoint(names) else []
            continue
        array = remaining.pop(found)
        if kind == "safetensors" and path.endswith("/kernel"):
            array = array.T
        # bfloat16 is a numpy dtype of kind "V" by way of ml_dtypes.
        if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
            misfits.append(f"{found} holds {array.dtype}, not floating-point numbers")
        elif array.shape != shape:
            misfits.append(f"{found} gives {path} the shape {array.shape} instead of {shape}")
        else:
            params[path] = np.ascontiguousarray(array, dtype=np.float32)
    faults = [
        f"{word}: {', '.join(names)}"
        for word, names in (("missing", missing), ("unused", sorted(remaining)), ("misfit", misfits))
        if names
    ]
    return unflatten_dict(params, sep="/"), faults


def from_tree(params: PyTree, config: EncoderConfig, kind: Format, *, prefixed: bool = False) -> dict[str, np.ndarray]:
    """The inverse of `to_tree`: flat dotted foreign names, float32, contiguous.

    `prefixed` puts the family's name before each ("bert."), as files do that hold a head beside the encoder.
    """
    prefix = _PREFIXES[config.model_type] if prefixed else ""
    tensors = {}
    for path, value in flatten_dict(params, sep="/").items():
        array = np.asarray(value, dtype=np.float32)
        if kind == "safetensors" and path.endswith("/kernel"):
            array = array.T
        tensors[prefix + foreign_names(path, config, kind)[0]] = np.ascontiguousarray(array)
    return tensors


def expected_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter under its path ("encoder/layer/0/output/dense/kernel"), without computing any."""
    tree = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def foreign_names(path: str, config: EncoderConfig, kind: Format) -> list[str]:
    """The names one of our parameters may have in a file, the usual one first."""
    *modules, leaf = path.split("/")
    module = ".".join(modules)
    for ours, theirs in _MODULES.get(config.model_type, ()):
        if re.fullmatch(ours, module):
            module = re.sub(ours, theirs, module)
            break
    return [f"{module}.{name}" for name in _LEAVES[kind][leaf]]


def _encoder_part(tensors: Mapping[str, np.ndarray], config: EncoderConfig) -> dict[str, np.ndarray]:
    prefix = _PREFIXES[config.model_type]
    bare = {name.removeprefix(prefix): array for name, array in tensors.items()}
    return {name: array for name, array in bare.items() if not name.startswith(_HEADS) and name not in _BUFFERS}
