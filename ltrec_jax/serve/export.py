"""A bundle in formats that other systems read: a `jax.export` program of the encoder, npy, Parquet and FAISS.

Nothing of ltrec_jax is needed to use them; `export.json` says how. Out of scope: answering (`service`).
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax import export as jax_export

from ltrec_jax import storage
from ltrec_jax.bundle import Bundle, save_tensors
from ltrec_jax.data import columns
from ltrec_jax.data.popularity import GROUPS
from ltrec_jax.encoder import pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.encoder.catalogue import finish
from ltrec_jax.errors import UserError
from ltrec_jax.model.head import Head
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.serve.faiss_index import FaissKind, faiss_index
from ltrec_jax.serve.index import agreement, exact_index
from ltrec_jax.types import PyTree
from ltrec_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "tpu")
COMPATIBILITY = "a jax.export program can be run by versions of JAX of up to 6 months after the one that wrote it"
_SEPARATOR = "/"


def export_bundle(bundle: Bundle, out: Path, *, faiss: FaissKind | None = None) -> None:
    """Write the directory `out`, whole or not at all:

    encoder.jaxexport      serialised program: (parameters, ids int32 [B, L], lengths int32 [B]) -> (text vector [B, E],
                           anchor [B, D], text bias [B]), float32, any B; L = `config.data.max_length`
    parameters.safetensors its parameters: a dict of arrays by these names is the first argument
    tokenizer files        of the encoder
    item_vectors.npy, item_biases.npy, user_vectors.npy, user_biases.npy     score = mu + b_u + b_i + <p_u, q_i>
    items.parquet          item_id, text, group, training count, vector, bias
    index.faiss            with `faiss`: inner products of [q_i | b_i] (extra: faiss)
    export.json            versions, shapes, how to call, hashes, what the FAISS index finds by popularity group
    """
    with storage.new_directory(out) as directory:
        parameters = _flat({"encoder": bundle.encoder.params, "head": dict(bundle.head), "words": _words(bundle)})
        length = min(bundle.config.data.max_length, bundle.encoder.config.max_positions)
        (directory / "encoder.jaxexport").write_bytes(_program(bundle, parameters, length))
        save_tensors(parameters, directory / "parameters.safetensors")
        for file in sorted(bundle.encoder.directory.glob("*token*")) + sorted(bundle.encoder.directory.glob("vocab*")):
            shutil.copyfile(file, directory / file.name)
        vectors = bundle.vectors
        for name in ("item_vectors", "item_biases", "user_vectors", "user_biases"):
            np.save(directory / f"{name}.npy", np.asarray(getattr(vectors, name), np.float32), allow_pickle=False)
        _write_items(bundle, vectors, directory / "items.parquet")
        kept = None
        if faiss is not None:
            index = faiss_index(vectors, faiss)
            index.save(directory / "index.faiss")
            kept = agreement(index, exact_index(vectors), vectors, bundle.group, GROUPS)
        files = sorted(path for path in directory.iterdir() if path.is_file())
        storage.write_json(
            directory / "export.json",
            {
                "ltrec_jax": __version__,
                "jax": jax.__version__,
                "compatibility": COMPATIBILITY,
                "platforms": list(PLATFORMS),
                "mu": float(vectors.mu),
                "score": "mu + user_biases[u] + item_biases[i] + user_vectors[u] @ item_vectors[i]",
                "encoder": {
                    "file": "encoder.jaxexport",
                    "load": "jax.export.deserialize(bytes).call(parameters, ids, lengths)",
                    "ids": f"int32 [B, {length}], padded with {bundle.encoder.config.pad_token_id}",
                    "lengths": "int32 [B], tokens of each text",
                    "result": "text vector [B, E], anchor [B, D], text bias [B]; a new item's vector and bias",
                    "max_length": length,
                },
                "faiss": kept and {"kind": faiss, "found_of_exact_20": kept},
                "users": bundle.users[columns.USER_ID].astype(str).tolist(),
                "sha256": {path.name: storage.sha256_file(path) for path in files},
            },
        )


def _program(bundle: Bundle, parameters: dict[str, np.ndarray], length: int) -> bytes:
    encoder, head = bundle.encoder, Head(bundle.vectors.item_vectors.shape[1])
    bert = Bert(encoder.config, "float32")

    def place(flat: dict[str, jax.Array], ids_BxL: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, ...]:
        params = _nested(flat)
        count = ids_BxL.shape[0]
        position_BxL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], ids_BxL.shape)
        real_BxL = position_BxL < lengths_B[:, None]
        slot_BxL = jnp.where(real_BxL, jnp.arange(count, dtype=jnp.int32)[:, None], count)
        hidden = bert.apply({"params": params["encoder"]}, ids_BxL, real_BxL.astype(jnp.int32), position_BxL)
        text_BxE = finish(encoder, pooling.pool(hidden, slot_BxL, count, encoder.pooling))
        anchor_BxD, bias_B = head.apply({"params": params["head"]}, text_BxE)
        if "words" in params:
            words_BxR = _of_words(params["words"], ids_BxL, real_BxL)
            anchor_BxD = anchor_BxD + words_BxR @ params["words"]["projection"]
            bias_B = bias_B + words_BxR @ params["words"]["text_bias"]
        return text_BxE, anchor_BxD, bias_B

    try:
        import flatbuffers  # noqa: F401 - jax.export asks for it late, with an error of its own
    except ImportError as error:
        raise UserError("Export needs one more package: pip install 'ltrec-jax[export]'.") from error
    (batch,) = jax_export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in parameters.items()}
    ids, lengths = jax.ShapeDtypeStruct((batch, length), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    return bytes(jax_export.export(jax.jit(place), platforms=PLATFORMS)(shapes, ids, lengths).serialize())


def _words(bundle: Bundle) -> dict[str, np.ndarray]:
    if bundle.words is None:
        return {}
    words, channel = bundle.words, bundle.words.channel
    maps = {"projection": words.projection, "text_bias": words.text_bias}
    return {"idf": channel.idf, "components": channel.components, **maps}


def _of_words(words: dict[str, jax.Array], ids_BxL: jax.Array, real_BxL: jax.Array) -> jax.Array:
    """Vectors of words [B, R], as `text.lexical` has them, without an array of the vocabulary's length for each text.

    A token that comes c times has a c-th of its word's weight each time.
    """
    same_BxLxL = (ids_BxL[:, :, None] == ids_BxL[:, None, :]) & real_BxL[:, None, :]
    count_BxL = jnp.maximum(jnp.sum(same_BxLxL, axis=-1), 1).astype(jnp.float32)
    weight_BxL = jnp.where(real_BxL, (1 + jnp.log(count_BxL)) * words["idf"][ids_BxL], 0.0)
    square_B = jnp.sum(weight_BxL**2 / count_BxL, axis=1)
    weight_BxL = weight_BxL / count_BxL * jax.lax.rsqrt(jnp.maximum(square_B, 1e-24))[:, None]
    dense_BxR = jnp.einsum("bl,blr->br", weight_BxL, words["components"][ids_BxL])
    length_Bx1 = jnp.linalg.norm(dense_BxR, axis=1, keepdims=True)
    return dense_BxR / jnp.maximum(length_Bx1, 1e-6)


def _write_items(bundle: Bundle, vectors: Vectors, path: Path) -> None:
    flat = pa.array(np.asarray(vectors.item_vectors, np.float32).ravel())
    table = pa.table(
        {
            "item_id": bundle.items[columns.ITEM_ID].astype(str).tolist(),
            "text": bundle.items[columns.TEXT].astype(str).tolist(),
            "group": [GROUPS[code] for code in bundle.group],
            "training_count": bundle.counts,
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.item_vectors.shape[1]),
            "bias": np.asarray(vectors.item_biases, np.float32),
        }
    )
    pq.write_table(table, path, compression="zstd")


def _flat(tree: PyTree, prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}{_SEPARATOR}")
        else:
            flat[f"{prefix}{name}"] = np.asarray(value, np.float32)
    return flat


def _nested(flat: dict[str, Any]) -> PyTree:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(_SEPARATOR)
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree
