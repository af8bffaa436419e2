"""A catalogue's vectors on disk: encoded shard by shard, so that a killed run goes on where it was.

While it is made, a directory holds `encode.json` (what was asked for, and the hash of every finished shard), `tokens/`,
`ids.parquet` and `shards/`; when it is done, `encode.json`, `vectors.npy` (row i is text i) and `ids.parquet`. Memory
does not grow with the vectors or the tokens, only by some 100 bytes per text. Out of scope: the calls (`catalogue`).
"""

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ltrec_jax import parallel, storage
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.encoder import calls, catalogue, dense, int8
from ltrec_jax.encoder.weights import Encoder
from ltrec_jax.errors import UserError
from ltrec_jax.parallel import Parallel
from ltrec_jax.text import corpus
from ltrec_jax.text.corpus import Corpus
from ltrec_jax.text.distinct import distinct_texts
from ltrec_jax.text.store import TokenStore, open_store, write_store
from ltrec_jax.text.tokenizer import Tokenizer, load_tokenizer
from ltrec_jax.version import __version__

VectorType = Literal["float32", "float16", "bfloat16"]
MANIFEST, VECTORS, IDS, TOKENS, SHARDS = "encode.json", "vectors.npy", "ids.parquet", "tokens", "shards"
_LOCK = ".lock"
_SHARD_TOKENS = 1 << 19
_ROWS_AT_ONCE = 1 << 16
_BFLOAT16 = np.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Vectors on disk. `info`: counts and settings; `texts` and `tokens` encoded by this call in `seconds`."""

    path: Path
    info: Mapping[str, Any]
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def vectors(self) -> np.ndarray:
        """The vectors [I, E], memory-mapped read-only, in the type they were stored in."""
        stored = storage.read_array(self.path / VECTORS, mapped=True)
        # NumPy's file format has no bfloat16: its bits are stored.
        return stored.view(_BFLOAT16) if self.info["settings"]["dtype"] == "bfloat16" else stored

    @property
    def ids(self) -> list[str]:
        """The external id of every row."""
        found: list[str] = pq.read_table(self.path / IDS, columns=["id"])["id"].to_pylist()
        return found


def open_encoded(path: Path) -> Encoded:
    """Open a finished directory; one that is not there, or not finished, is a `UserError`."""
    manifest = storage.read_json(Path(path) / MANIFEST)
    if not isinstance(manifest, dict) or not manifest.get("finished"):
        raise UserError(f"{path} is not finished: run the same `ltrec encode` again to go on.")
    return Encoded(Path(path), manifest)


def encode_to_disk(
    encoder: Encoder,
    texts: Corpus | Dataset | Sequence[str],
    out: Path,
    *,
    policy: dense.Policy = "bfloat16",
    dtype: VectorType = "float32",
    max_length: int | None = None,
    prompt: str = "",
    tokens_per_call: int | None = None,
    shard_tokens: int = _SHARD_TOKENS,
    spread: Parallel | None = None,
    replace: bool = False,
) -> Encoded:
    """Encode every distinct text once, over `spread` (default: all devices), into a directory of vectors.

    Run again after a kill, it keeps the shards whose content has the recorded hash and makes the others: the result
    is the same, on other devices up to rounding. `max_length` counts tokens (default: what the encoder was made for).
    `prompt` goes before each text, and is left out of the pooling where the encoder says so. A directory made by other
    settings, or begun in int8 on a processor that rounds otherwise, is a `UserError` unless `replace`.
    """
    out, source = Path(out), corpus.of(texts).with_prefix(prompt)
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    length = _checked_length(max_length, encoder)
    settings = {
        "encoder": encoder.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "texts": source.fingerprint,
        "max_length": length,
        "precision": policy,
        "dtype": dtype,
        "shard_tokens": shard_tokens,
    }
    if tokens_per_call is not None:
        # Not the default, which is the device's: what began on a CPU goes on on a GPU, up to the order of sums.
        settings["tokens_per_call"] = tokens_per_call
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out is a directory to make.")
    with storage.lock(out / _LOCK, timeout=1.0):
        manifest = _open_manifest(out, settings, replace)
        if _is_whole(out, manifest):
            _remove_parts(out)
            return open_encoded(out)
        manifest |= {"names": {"encoder": encoder.name, "texts": source.name}}
        store = _tokens(out, source, tokenizer, length, manifest)
        job = _plan(store, shard_tokens, manifest)
        _note_shards(out, job, policy, manifest)
        unpooled = 0 if encoder.prompt_pooled else _prompt_tokens(prompt, tokenizer, length)
        runner = catalogue.make_runner(
            encoder, policy, job.rows, tokens_per_call, spread or parallel.choose(), unpooled
        )
        made = _encode_shards(out, store, job, runner, manifest)
        _finish(out, store, job, encoder.config.hidden_size, manifest)
    return dataclasses.replace(open_encoded(out), **made)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """`first`, `inverse`: as `distinct_texts`; `order[edges[s]:edges[s + 1]]`: places in `first` that shard s holds."""

    first: np.ndarray
    inverse: np.ndarray
    rows: tuple[int, ...]
    order: np.ndarray
    edges: list[int]

    def shards(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name of each shard, and the distinct texts that are its rows."""
        for number, (start, end) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            yield f"{number:06d}.npy", self.order[start:end]


def _plan(store: TokenStore, shard_tokens: int, manifest: Mapping[str, Any]) -> _Plan:
    """Shards of texts that share a row length, in their own order: mixed lengths pack tightly, sorted ones do not."""
    first, inverse = distinct_texts(store)
    lengths = store.lengths[first]
    # Those the first shards were cut by, whatever this version would choose: which texts a shard holds hangs on them.
    rows = tuple(manifest.get("rows") or calls.row_lengths(lengths))
    row_of = np.searchsorted(rows, lengths).astype(np.int16)
    # Texts without tokens are in no shard: their vectors are zero.
    order = np.argsort(row_of, kind="stable")
    order = order[lengths[order] > 0]
    tokens_before = np.cumsum(lengths[order]) - lengths[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(row_of[order]) > 0) | (np.diff(tokens_before // shard_tokens) > 0)
    return _Plan(first, inverse, rows, order, [*np.flatnonzero(starts).tolist(), len(order)])


def _note_shards(out: Path, plan: _Plan, policy: dense.Policy, manifest: dict[str, Any]) -> None:
    """Record by what the shards are made; those that were made by something else go, or are a `UserError`."""
    here = {"rows": list(plan.rows), "rounding": int8.describe() if policy == "int8" else None}
    there = {name: manifest.get(name) for name in here}
    if there == here:
        return
    if there["rows"] and manifest["shards"]:
        raise UserError(
            f"{out} was begun on a processor that rounds int8 otherwise ({there['rounding']} there, "
            f"{here['rounding']} here), and its vectors would be of two kinds. Finish it there, or --replace."
        )
    manifest |= here | {"shards": {}}
    storage.write_json(out / MANIFEST, manifest)


def _checked_length(asked: int | None, encoder: Encoder) -> int:
    most = encoder.config.max_positions
    if asked is not None and not 3 <= asked <= most:
        raise UserError(f"A max_length of {asked} tokens is out of range: this encoder reads 3 to {most}.")
    return asked or encoder.max_length


def _prompt_tokens(prompt: str, tokenizer: Tokenizer, length: int) -> int:
    """Tokens from a text's first one to the end of its prompt: all of the prompt alone but the closing one."""
    # Its last space belongs to the word behind it.
    return len(tokenizer.encode([prompt.strip()], length)[0]) - 1 if prompt else 0


def _open_manifest(out: Path, settings: dict[str, Any], replace: bool) -> dict[str, Any]:
    """What an earlier run recorded, or a new manifest, written at once so that every later file has its settings."""
    path = out / MANIFEST
    # A kill while the manifest is first written leaves no more than its draft.
    drafts = set(out.glob(f".{MANIFEST}{storage.TEMPORARY_MARK}*"))
    if path.exists():
        found = storage.read_json(path)
        there = found.get("settings", {}) if isinstance(found, dict) else {}
        other = [
            _difference(name, there.get(name), value) for name, value in settings.items() if there.get(name) != value
        ]
        if not other:
            for leftover in out.rglob(f".*{storage.TEMPORARY_MARK}*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            return dict(found)
        if not replace:
            raise UserError(
                f"{out} was made with other settings ({'; '.join(other)}). Choose another place or --replace."
            )
        # The old manifest stays until the new one takes its place: a kill in between leaves what --replace replaces.
        for name in (VECTORS, IDS):
            (out / name).unlink(missing_ok=True)
        for name in (TOKENS, SHARDS):
            shutil.rmtree(out / name, ignore_errors=True)
    elif any(entry.name != _LOCK and entry not in drafts for entry in out.iterdir()):
        raise UserError(f"{out} exists and holds something else than vectors. Choose another place.")
    for draft in drafts:
        draft.unlink()
    nothing = dict.fromkeys(("tokens", "rows", "rounding", "finished"))
    manifest = {"version": __version__, "settings": settings, "shards": {}} | nothing
    storage.write_json(path, manifest)
    return manifest


def _is_whole(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the directory is finished and its files are those that were written."""
    if not manifest["finished"]:
        return False
    files = manifest["finished"]["sha256"].items()
    return all((out / name).is_file() and storage.sha256_file(out / name) == digest for name, digest in files)


def _difference(name: str, there: Any, here: Any) -> str:
    """Values are told, fingerprints are not."""
    label, there = name.replace("_", " "), "by default" if there is None else there
    return label if len(str(here)) > 32 else f"{label} {there} there, {here} here"


def _tokens(out: Path, source: Corpus, tokenizer: Tokenizer, length: int, manifest: dict[str, Any]) -> TokenStore:
    """The token store of the directory, made in one pass over the texts together with the list of ids."""
    place = out / TOKENS
    try:
        store = open_store(place)
    except UserError:
        shutil.rmtree(place, ignore_errors=True)
        # The ids are in place before the tokens: a store without them would be taken for finished.
        with storage.new_directory(place) as directory, storage.new_file(out / IDS) as ids:
            write_store(directory, _noting_ids(source, ids), tokenizer, length)
        store = open_store(place)
    digest = storage.content_hash(storage.read_json(place / "store.json")["sha256"])
    if manifest["tokens"] != digest:
        manifest |= {"tokens": digest, "rows": None, "shards": {}}
        storage.write_json(out / MANIFEST, manifest)
    return store


def _noting_ids(source: Corpus, path: Path) -> Iterator[list[str]]:
    """The texts in chunks; on the way, row and id of each are written as Parquet."""
    schema = pa.schema([("row", pa.int64()), ("id", pa.string())])
    row = 0
    with (
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
        tqdm(total=source.count, desc="tokenise", unit=" texts", delay=1.0) as bar,
    ):
        for ids, texts in source.chunks():
            writer.write_table(pa.table({"row": np.arange(row, row + len(ids)), "id": ids}, schema=schema))
            row += len(ids)
            yield texts
            bar.update(len(texts))


def _encode_shards(
    out: Path, store: TokenStore, plan: _Plan, runner: catalogue.Runner, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Make the shards that are not there with the recorded hash; what was done is returned."""
    dtype = _numpy_type(manifest["settings"]["dtype"])
    start, encoded, tokens = time.perf_counter(), 0, 0
    with catalogue.Progress(len(plan.order)) as bar:
        for name, places in plan.shards():
            path = out / SHARDS / name
            if path.is_file() and storage.sha256_file(path) == manifest["shards"].get(name):
                bar.skip(len(places))
                continue
            part = store.take(plan.first[places])
            storage.write_array(path, _bits(runner.vectors(part, bar.advance).astype(dtype)))
            manifest["shards"][name] = storage.sha256_file(path)
            storage.write_json(out / MANIFEST, manifest)
            encoded, tokens = encoded + len(places), tokens + int(part.offsets[-1])
    return {"texts": encoded, "tokens": tokens, "seconds": time.perf_counter() - start}


def _finish(out: Path, store: TokenStore, plan: _Plan, width: int, manifest: dict[str, Any]) -> None:
    """Shards to one array in the order of the texts; then the manifest says so, and what is not needed goes."""
    stored_as = _bits(np.zeros(0, _numpy_type(manifest["settings"]["dtype"]))).dtype
    by_place = np.argsort(plan.inverse, kind="stable")
    counts = np.bincount(plan.inverse, minlength=len(plan.first))
    starts = np.cumsum(counts) - counts
    with storage.new_file(out / VECTORS) as temporary:
        target = np.lib.format.open_memmap(temporary, mode="w+", dtype=stored_as, shape=(len(store), width))
        for name, places in tqdm(list(plan.shards()), desc="join", unit="shard", delay=1.0):
            values = storage.read_array(out / SHARDS / name, mapped=True)
            # Row r of the shard goes to each text that equals it; those may be many more than the shard has rows.
            each = counts[places]
            row = np.repeat(np.arange(len(places)), each)
            texts = by_place[starts[places][row] + np.arange(len(row)) - (np.cumsum(each) - each)[row]]
            for at in range(0, len(row), _ROWS_AT_ONCE):
                target[texts[at : at + _ROWS_AT_ONCE]] = values[row[at : at + _ROWS_AT_ONCE]]
        target.flush()
    manifest["finished"] = {
        "texts": len(store),
        "distinct": len(plan.first),
        "tokens": int(store.offsets[-1]),
        "truncated": store.truncated,
        "width": width,
        "sha256": {name: storage.sha256_file(out / name) for name in (VECTORS, IDS)},
    }
    storage.write_json(out / MANIFEST, manifest)
    _remove_parts(out)


def _remove_parts(out: Path) -> None:
    for name in (SHARDS, TOKENS):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / _LOCK).unlink(missing_ok=True)


def _numpy_type(name: VectorType) -> Any:
    return _BFLOAT16 if name == "bfloat16" else np.dtype(name)


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint16) if values.dtype == _BFLOAT16 else values
