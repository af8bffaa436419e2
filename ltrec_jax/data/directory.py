"""The dataset directory on disk: how its tables, its columns and its description are written, read and hashed.

    dataset.json           schema, counts, hashes, the fingerprint
    interactions.parquet   user, item, rating, timestamp
    columns/*.npy          the same columns, memory-mapped for training
    users.parquet, items.parquet

Out of scope: what a dataset is (`dataset`).
"""

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data import columns
from ltrec_jax.errors import UserError

SCHEMA_VERSION = 1
_PIECE = 1 << 20
_AHEAD = 3


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write one Parquet table of users or items (no index). Called inside a directory that is being made."""
    pq.write_table(pa.Table.from_pandas(frame.reset_index(drop=True), preserve_index=False), path, compression="zstd")


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet table; a missing or damaged one is a `UserError` that names it."""
    try:
        return pq.read_table(path).to_pandas()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def write_description(directory: Path, name: str, fingerprint: Callable[[], str], info: Mapping[str, Any]) -> None:
    """Write `dataset.json` over the files already in `directory`: counts and hashes are taken from them."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    counts = {
        kind: pq.read_metadata(directory / f"{kind}.parquet").num_rows for kind in ("users", "items", "interactions")
    }
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(fingerprint)
        digests = list(pool.map(storage.sha256_file, files))
    storage.write_json(
        directory / "dataset.json",
        {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "fingerprint": whole.result(),
            "counts": counts,
            "sha256": dict(zip((p.relative_to(directory).as_posix() for p in files), digests, strict=True)),
            "info": dict(info),
        },
    )


def read_description(directory: Path) -> dict[str, Any]:
    """What `write_description` wrote; a directory without it, or with one of another schema, is a `UserError`."""
    if not (directory / "dataset.json").is_file():
        raise UserError(
            f"{directory} is not a dataset directory: it has no dataset.json. Make one with `ltrec data prepare`."
        )
    description: dict[str, Any] = storage.read_json(directory / "dataset.json")
    if description.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{directory} has schema version {description.get('schema_version')}, this version of ltrec_jax reads "
            f"{SCHEMA_VERSION}. Prepare it again."
        )
    return description


def write_interactions(directory: Path, rows: int, pieces: Iterable[Mapping[str, np.ndarray]]) -> list[bytes]:
    """Write `interactions.parquet` and `columns/*.npy` from pieces, `rows` in all; gives their `column_digests`.

    Plain writes: the dirty pages of a memory map would count as this process's memory.
    """
    schema = pa.schema([(name, pa.from_numpy_dtype(dtype)) for name, dtype in columns.DTYPES.items()])
    (directory / "columns").mkdir()
    with (
        contextlib.ExitStack() as stack,
        tqdm(total=rows, desc="writing interactions", delay=1.0, unit=" rows") as bar,
    ):
        # Half the time of the default encodings, and smaller files.
        whole = [name for name, dtype in columns.DTYPES.items() if np.issubdtype(dtype, np.integer)]
        table = stack.enter_context(
            pq.ParquetWriter(
                directory / "interactions.parquet",
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[columns.RATING],
                column_encoding=dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
            )
        )
        streams = [stack.enter_context((directory / "columns" / f"{name}.npy").open("wb")) for name in columns.DTYPES]
        digests = [_column_digest(name, rows) for name in columns.DTYPES]
        for (_, dtype), stream in zip(columns.DTYPES.items(), streams, strict=True):
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows,)}
            np.lib.format.write_array_header_1_0(stream, header)

        def put(stream: BinaryIO, digest: "hashlib._Hash", column: np.ndarray) -> None:
            stream.write(column.data)
            digest.update(column.data)

        def wait() -> None:
            for job in waiting.popleft():
                job.result()

        # A thread for each file keeps the pieces in order there, while no file waits for the slowest.
        writers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(len(columns.DTYPES) + 1)]
        waiting: deque[list[Future[None]]] = deque()
        for piece in pieces:
            held = [np.ascontiguousarray(piece[name], dtype) for name, dtype in columns.DTYPES.items()]
            batch = pa.table(held, schema=schema)
            jobs = [writers[0].submit(table.write_table, batch, _PIECE)]
            jobs += [
                writer.submit(put, stream, digest, column)
                for writer, stream, digest, column in zip(writers[1:], streams, digests, held, strict=True)
            ]
            waiting.append(jobs)
            if len(waiting) > _AHEAD:
                wait()
            bar.update(len(batch))
        while waiting:
            wait()
    return [digest.digest() for digest in digests]


def read_columns(directory: Path) -> dict[str, np.ndarray]:
    """The columns of the interactions, memory-mapped; a missing or damaged file is a `UserError`."""
    return {name: storage.read_array(directory / "columns" / f"{name}.npy", mapped=True) for name in columns.DTYPES}


def column_digests(interactions: Mapping[str, np.ndarray]) -> list[bytes]:
    """SHA-256 of each column, in the order of `columns.INTERACTION_COLUMNS`, a piece at a time."""

    def one(name: str) -> bytes:
        column = interactions[name]
        digest = _column_digest(name, len(column))
        for start in range(0, len(column), _PIECE):
            digest.update(np.ascontiguousarray(column[start : start + _PIECE]).data)
        return digest.digest()

    with ThreadPoolExecutor(len(columns.DTYPES)) as pool:
        return list(pool.map(one, columns.DTYPES))


def _column_digest(name: str, rows: int) -> "hashlib._Hash":
    return hashlib.sha256(f"{name}{np.dtype(columns.DTYPES[name]).str}{rows}:".encode())


def fingerprint(digests: Sequence[bytes], users: pd.DataFrame, items: pd.DataFrame) -> str:
    """SHA-256 of the `column_digests` of the interactions and of both tables (their columns in any order)."""
    digest = hashlib.sha256(b"".join(digests))
    for kind, frame in (("users", users), ("items", items)):
        digest.update(f"{kind}{len(frame)}:".encode())
        for name in sorted(frame.columns, key=str):
            digest.update(f"{len(str(name))}:{name}".encode())
            _digest_cells(digest, frame[name])
    return digest.hexdigest()


def _digest_cells(digest: "hashlib._Hash", cells: pd.Series) -> None:
    """Numbers as float64 (a missing one is NaN), so that an integer column that Parquet gave as float is the same;
    texts as lengths (in characters) and bytes; anything else as JSON.
    """
    if pd.api.types.is_numeric_dtype(cells.dtype):
        numbers = cells.to_numpy(np.float64, na_value=np.nan)
        digest.update(b"n" + numbers.tobytes())
        return
    for start in range(0, len(cells), _PIECE):
        held = cells.iloc[start : start + _PIECE]
        if isinstance(held.dtype, pd.StringDtype) and not held.hasnans:
            # As below, without an object for each text.
            texts = pa.Table.from_pandas(held.to_frame("_"), preserve_index=False)["_"].cast(pa.large_string())
            texts = texts.combine_chunks()
            digest.update(b"t" + pc.utf8_length(texts).to_numpy().astype(np.int64).tobytes())
            _, offsets, data = texts.buffers()
            ends = np.frombuffer(offsets, np.int64)[texts.offset :]
            digest.update(memoryview(data)[ends[0] : ends[len(texts)]] if data is not None else b"")
            continue
        piece = held.tolist()
        if all(isinstance(cell, str) for cell in piece):
            digest.update(b"t" + np.fromiter(map(len, piece), np.int64, len(piece)).tobytes())
            digest.update("".join(piece).encode("utf-8", "surrogatepass"))
        else:
            digest.update(b"j" + json.dumps(piece, default=_plain, ensure_ascii=False, sort_keys=True).encode())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
