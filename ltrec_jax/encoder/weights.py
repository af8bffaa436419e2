"""Encoders from and to disk: a directory's configuration, weights and pooling as one value, strictly checked.

Formats, single or sharded, with or without heads: `model.safetensors` (PyTorch's names, old or new) and
`flax_model.msgpack`. Pickles are refused. Out of scope: tokenizing (`text`), downloading (`registry`).
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import flax.serialization
import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from ltrec_jax import storage
from ltrec_jax.encoder import files, mlm_files, names
from ltrec_jax.encoder.config import AttentionKernel, EncoderConfig
from ltrec_jax.encoder.layout import Layout, read_layout, write_layout
from ltrec_jax.encoder.pooling import Pooling
from ltrec_jax.encoder.registry import resolve
from ltrec_jax.errors import UserError
from ltrec_jax.text.sentence_config import read_sentence_config
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.types import PyTree

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder ready to run: `Bert(encoder.config, policy).apply({"params": encoder.params}, ...)`.

    `directory` holds the tokenizer. `pooling` and `normalize` say how hidden states become a text's vector,
    `max_length` how many tokens of a text are read, `prompts` what goes before a text by purpose ("query: "),
    `default_prompt` which of them unless another is asked for, `prompt_pooled` whether its tokens enter the vector.
    `fingerprint` identifies configuration, parameters and pooling, in whatever format they were stored.
    """

    name: str
    config: EncoderConfig
    params: PyTree
    directory: Path
    pooling: Pooling
    normalize: bool
    max_length: int
    fingerprint: str
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    prompt_pooled: bool = True

    @property
    def layout(self) -> Layout:
        """How texts become vectors, as a directory says it."""
        return Layout(
            self.directory,
            self.pooling,
            self.normalize,
            self.max_length,
            self.prompts,
            self.default_prompt,
            self.prompt_pooled,
        )

    def with_params(self, params: PyTree) -> Self:
        """The same encoder with other parameters (fetched to the host as float32) and their fingerprint."""
        host = jax.tree.map(lambda leaf: np.asarray(leaf, dtype=np.float32), params)
        fingerprint = _fingerprint(self.config, host, self.layout)
        return dataclasses.replace(self, params=host, fingerprint=fingerprint)

    def with_attention(self, kernel: AttentionKernel) -> Self:
        """The same encoder, its attention computed on a GPU by this kernel (`attention`)."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, attention=kernel))


def load_encoder(name_or_path: str | Path) -> Encoder:
    """Load an encoder from a local directory, by its registry name, or from the hub ("organisation/name").

    Parameters are float32 numpy arrays. Everything wrong with the files is a `UserError`: all truncated files, missing,
    unused and wrongly shaped arrays and a foreign vocabulary at once, a pickle with the way to convert it.
    """
    directory = resolve(str(name_or_path))
    layout = read_layout(directory)
    source = layout.transformer
    if not (source / "config.json").is_file():
        raise UserError(f"{source} is not an encoder's directory: it has no config.json.")
    raw = storage.read_json_object(source / "config.json")
    config = EncoderConfig.from_dict(raw, source=str(source / "config.json"))
    weights = files.read_weights(source)
    config = dataclasses.replace(config, has_pooler=names.has_pooler(weights.tensors, config))
    params, faults = names.to_tree(weights, config)
    if faults or weights.faults:
        raise UserError(_everything_wrong(source, config, weights, faults))
    return Encoder(
        name=str(name_or_path),
        config=config,
        params=params,
        directory=source,
        pooling=layout.pooling,
        normalize=layout.normalize,
        max_length=min(layout.max_length or config.max_positions, config.max_positions),
        fingerprint=_fingerprint(config, params, layout),
        prompts=layout.prompts,
        default_prompt=layout.default_prompt,
        prompt_pooled=layout.prompt_pooled,
    )


def export_weights(
    encoder: Encoder,
    directory: Path,
    *,
    formats: Sequence[files.Format] = ("safetensors", "flax"),
    replace: bool = False,
    head: PyTree | None = None,
) -> None:
    """Write a directory that `transformers`, sentence-transformers and `load_encoder` read, whole or not at all.

    `model.safetensors` has PyTorch's names, `flax_model.msgpack` those of the Flax classes of transformers 4; config,
    tokenizer and pooling lie beside them. With the parameters of a `head` (`mlm`) it is a whole masked-language model.
    An existing directory is a `UserError` unless `replace`.
    """

    def tensors_of(kind: files.Format) -> dict[str, np.ndarray]:
        bare = names.from_tree(encoder.params, encoder.config, kind, prefixed=head is not None)
        return bare if head is None else bare | mlm_files.head_tensors(head, encoder.config, kind)

    with storage.new_directory(Path(directory), replace=replace) as target:
        raw = encoder.config.to_dict()
        if head is not None:
            raw["architectures"] = [name.replace("Model", "ForMaskedLM") for name in raw["architectures"]]
        storage.write_json(target / "config.json", raw)
        if "safetensors" in formats:
            tensors = tensors_of("safetensors")
            # transformers refuses files that do not say which framework's layout they have.
            safetensors.numpy.save_file(tensors, target / files.FILE_NAMES["safetensors"], {"format": "pt"})
        if "flax" in formats:
            tree = unflatten_dict(tensors_of("flax"), sep=".")
            (target / files.FILE_NAMES["flax"]).write_bytes(flax.serialization.msgpack_serialize(tree))
        for name in _TOKENIZER_FILES:
            if (encoder.directory / name).is_file():
                shutil.copyfile(encoder.directory / name, target / name)
        write_layout(
            target,
            encoder.layout,
            width=encoder.config.hidden_size,
            lower_case=read_sentence_config(encoder.directory).lower_case,
        )


def _everything_wrong(source: Path, config: EncoderConfig, weights: files.Weights, faults: Sequence[str]) -> str:
    """One message of what is wrong with the files and with the arrays, and with the tokenizer if it lies there."""
    said = [files.download_again(weights.faults)] if weights.faults else []
    if faults:
        said.append(f"{weights.source} does not fit its config.json ({config.model_type}). {'; '.join(faults)}.")
    if (source / "tokenizer.json").is_file():
        try:
            load_tokenizer(source, config.vocab_size)
        except UserError as error:
            said.append(str(error))
    return " ".join(said)


def _fingerprint(config: EncoderConfig, params: PyTree, layout: Layout) -> str:
    flat = flatten_dict(params, sep="/")
    arrays = [part for path in sorted(flat) for part in (path, flat[path])]
    # How attention is computed changes no vector but by rounding.
    shape = {name: value for name, value in dataclasses.asdict(config).items() if name != "attention"}
    unusual = [] if layout.prompt_pooled else ["prompt not pooled"]
    return storage.content_hash(shape, layout.pooling, layout.normalize, *unusual, *arrays)
