"""What a dataset is: int-coded interactions, the tables of its users and items, and a split of it. Frozen.

Out of scope: reading raw files (`prepare`, `sources`), choosing a split (`splits`), counting (`popularity`).

A dataset directory holds `dataset.json` (schema, counts, hashes), `interactions.parquet`, `users.parquet`,
`items.parquet` and `columns/{user,item,rating,timestamp}.npy` (the same interactions, memory-mapped for training).
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data import columns
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    from ltrec_jax.data.leaks import LeakReport

SCHEMA_VERSION = 1
_PIECE = 1 << 20
_DTYPES: dict[str, type[np.generic]] = {
    columns.USER: np.int32,
    columns.ITEM: np.int32,
    columns.RATING: np.float32,
    columns.TIMESTAMP: np.int64,
}


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Columns of N events: user int32[N], item int32[N], rating float32[N], timestamp int64[N] (perhaps mapped)."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in _DTYPES}
        if len(lengths) != 1:
            raise ValueError(f"interaction columns differ in length: {sorted(lengths)}")
        for name, dtype in _DTYPES.items():
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"interaction column {name!r} is {getattr(self, name).dtype}, not {np.dtype(dtype)}")

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Self:
        """The events of these rows (indices or a boolean mask), copied into memory."""
        return type(self)(*(np.asarray(getattr(self, name)[rows]) for name in _DTYPES))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Interactions with the tables of users and items. Row u of `users` is user u, row i of `items` is item i.

    `users` has the column `user_id`, `items` has `item_id` (strings, unique); the other columns are text and
    attributes as the source gave them. `info` is free-form provenance (source, licence, citation, what was rejected).
    """

    name: str
    interactions: Interactions
    users: pd.DataFrame
    items: pd.DataFrame
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        for kind, frame, key in (("users", self.users, columns.USER_ID), ("items", self.items, columns.ITEM_ID)):
            if key not in frame.columns:
                raise UserError(f"Dataset {self.name!r}: the table of {kind} has no column {key!r}.")
            if not frame[key].is_unique:
                twice = frame[key][frame[key].duplicated()].iloc[0]
                raise UserError(f"Dataset {self.name!r}: {key} {twice!r} stands twice in the table of {kind}.")
        for kind, codes, count in (
            ("user", self.interactions.user, self.num_users),
            ("item", self.interactions.item, self.num_items),
        ):
            if len(codes) and (codes.min() < 0 or codes.max() >= count):
                raise UserError(f"Dataset {self.name!r}: an interaction's {kind} code is outside 0..{count - 1}.")

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the interactions and of both tables: equal data, equal fingerprint, wherever it lies."""
        if self.path is not None:
            recorded = storage.read_json(self.path / "dataset.json").get("fingerprint")
            if isinstance(recorded, str):
                return recorded
        return fingerprint(column_digests(self.interactions), self.users, self.items)

    def user_index(self, user_id: str) -> int:
        """The internal id of an external user id; `UserError` if there is none."""
        return _position(self.users[columns.USER_ID], user_id, "user", self.name)

    def item_index(self, item_id: str) -> int:
        """The internal id of an external item id; `UserError` if there is none."""
        return _position(self.items[columns.ITEM_ID], item_id, "item", self.name)

    def save(self, path: Path, *, replace: bool = False) -> "Dataset":
        """Write the dataset directory, whole or not at all, and return the dataset read back from it (mapped)."""
        with storage.new_directory(Path(path), replace=replace) as directory:
            table = pa.table({name: getattr(self.interactions, name) for name in _DTYPES})
            pq.write_table(table, directory / "interactions.parquet", compression="zstd")
            (directory / "columns").mkdir()
            for name in _DTYPES:
                np.save(directory / "columns" / f"{name}.npy", getattr(self.interactions, name), allow_pickle=False)
            write_table(self.users, directory / "users.parquet")
            write_table(self.items, directory / "items.parquet")
            recorded = fingerprint(column_digests(self.interactions), self.users, self.items)
            write_description(directory, self.name, recorded, dict(self.info))
        return Dataset.load(path)

    @staticmethod
    def from_pandas(
        interactions: pd.DataFrame,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        **settings: Any,
    ) -> "Dataset":
        """The dataset of data frames of events, items and users: see `prepare.from_pandas` for rules and settings."""
        from ltrec_jax.data import prepare

        return prepare.from_pandas(interactions, items, users, **settings)

    @classmethod
    def load(cls, path: Path) -> "Dataset":
        """Open a dataset directory; the interaction columns are memory-mapped. Anything missing or damaged is named."""
        path = Path(path)
        if not (path / "dataset.json").is_file():
            raise UserError(
                f"{path} is not a dataset directory: it has no dataset.json. Make one with `ltrec data prepare`."
            )
        description = storage.read_json(path / "dataset.json")
        if description.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {description.get('schema_version')}, this version of ltrec_jax reads "
                f"{SCHEMA_VERSION}. Prepare it again."
            )
        interactions = read_columns(path)
        counts = description["counts"]
        dataset = cls(
            name=description["name"],
            interactions=interactions,
            users=read_table(path / "users.parquet"),
            items=read_table(path / "items.parquet"),
            info=description["info"],
            path=path,
        )
        found = {"users": dataset.num_users, "items": dataset.num_items, "interactions": len(interactions)}
        if found != counts:
            raise UserError(
                f"{path} is damaged: dataset.json counts {counts}, the files hold {found}. Prepare it again."
            )
        return dataset


@dataclasses.dataclass(frozen=True)
class Split:
    """Disjoint row numbers (int64, ascending) of a dataset's interactions: what may be learnt from, chosen on, scored.

    `name` says how it was made ("official/u1", "random", ...), `settings` with what. A row in none of the three is
    unused. `Split` knows nothing of the rules; `splits` makes and checks them.
    """

    dataset: Dataset
    name: str
    train_rows: np.ndarray
    validation_rows: np.ndarray
    test_rows: np.ndarray
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def train(self) -> Interactions:
        return self.dataset.interactions.take(self.train_rows)

    @property
    def validation(self) -> Interactions:
        return self.dataset.interactions.take(self.validation_rows)

    @property
    def test(self) -> Interactions:
        return self.dataset.interactions.take(self.test_rows)

    def with_validation_in_train(self) -> "Split":
        """The split for the final fit: validation joins training, the test stays as it is."""
        rows = np.sort(np.concatenate([self.train_rows, self.validation_rows]))
        return dataclasses.replace(self, train_rows=rows, validation_rows=np.zeros(0, np.int64))

    def check(self) -> "LeakReport":
        """What leaks from one part into another: `leaks.check`, which stands above this module."""
        from ltrec_jax.data import leaks

        return leaks.check(self)


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


def write_description(directory: Path, name: str, fingerprint: str, info: Mapping[str, Any]) -> None:
    """Write `dataset.json` over the files already in `directory`: counts and hashes are taken from them."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    counts = {
        kind: pq.read_metadata(directory / f"{kind}.parquet").num_rows for kind in ("users", "items", "interactions")
    }
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(storage.sha256_file, files))
    storage.write_json(
        directory / "dataset.json",
        {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "fingerprint": fingerprint,
            "counts": counts,
            "sha256": dict(zip((p.relative_to(directory).as_posix() for p in files), digests, strict=True)),
            "info": dict(info),
        },
    )


def write_interactions(directory: Path, rows: int, pieces: Iterable[Mapping[str, np.ndarray]]) -> list[bytes]:
    """Write `interactions.parquet` and `columns/*.npy` from pieces, `rows` in all; gives their `column_digests`.

    Plain writes: the dirty pages of a memory map would count as this process's memory.
    """
    schema = pa.schema([(name, pa.from_numpy_dtype(dtype)) for name, dtype in _DTYPES.items()])
    (directory / "columns").mkdir()
    with (
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(len(_DTYPES) + 1) as pool,
        tqdm(total=rows, desc="writing interactions", delay=1.0, unit=" rows") as bar,
    ):
        # Half the time of the default encodings, and smaller files.
        encodings = {name: "DELTA_BINARY_PACKED" for name, dtype in _DTYPES.items() if np.issubdtype(dtype, np.integer)}
        table = stack.enter_context(
            pq.ParquetWriter(
                directory / "interactions.parquet",
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[columns.RATING],
                column_encoding=encodings,
            )
        )
        streams = [stack.enter_context((directory / "columns" / f"{name}.npy").open("wb")) for name in _DTYPES]
        digests = [_column_digest(name, rows) for name in _DTYPES]
        for (_, dtype), stream in zip(_DTYPES.items(), streams, strict=True):
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows,)}
            np.lib.format.write_array_header_1_0(stream, header)

        def put(stream: BinaryIO, digest: "hashlib._Hash", column: np.ndarray) -> None:
            stream.write(column.data)
            digest.update(column.data)

        for piece in pieces:
            held = [np.ascontiguousarray(piece[name], dtype) for name, dtype in _DTYPES.items()]
            batch = pa.table(held, schema=schema)
            jobs = [pool.submit(table.write_table, batch, _PIECE)]
            jobs += [pool.submit(put, *each) for each in zip(streams, digests, held, strict=True)]
            for job in jobs:
                job.result()
            bar.update(len(batch))
    return [digest.digest() for digest in digests]


def read_columns(directory: Path) -> Interactions:
    """The interactions of a dataset directory, memory-mapped; a missing or damaged file is a `UserError`."""
    mapped = {name: storage.read_array(directory / "columns" / f"{name}.npy", mapped=True) for name in _DTYPES}
    try:
        return Interactions(**mapped)
    except ValueError as error:
        raise UserError(f"{directory}/columns is damaged: {error}. Prepare the dataset again.") from error


def column_digests(interactions: Interactions) -> list[bytes]:
    """SHA-256 of each column, in the order of `columns.INTERACTION_COLUMNS`, a piece at a time."""

    def one(name: str) -> bytes:
        column = getattr(interactions, name)
        digest = _column_digest(name, len(column))
        for start in range(0, len(column), _PIECE):
            digest.update(np.ascontiguousarray(column[start : start + _PIECE]).data)
        return digest.digest()

    with ThreadPoolExecutor(len(_DTYPES)) as pool:
        return list(pool.map(one, _DTYPES))


def _column_digest(name: str, rows: int) -> "hashlib._Hash":
    return hashlib.sha256(f"{name}{np.dtype(_DTYPES[name]).str}{rows}:".encode())


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
        piece = cells.iloc[start : start + _PIECE].tolist()
        if all(isinstance(cell, str) for cell in piece):
            digest.update(b"t" + np.fromiter(map(len, piece), np.int64, len(piece)).tobytes())
            digest.update("".join(piece).encode("utf-8", "surrogatepass"))
        else:
            digest.update(b"j" + json.dumps(piece, default=_plain, ensure_ascii=False, sort_keys=True).encode())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def _position(ids: pd.Series, wanted: str, kind: str, name: str) -> int:
    found = np.flatnonzero(ids.to_numpy() == str(wanted))
    if len(found) == 0:
        examples = ", ".join(repr(x) for x in ids.head(3))
        raise UserError(
            f"Unknown {kind} {wanted!r} in dataset {name!r}. Its {len(ids)} {kind} ids look like {examples}."
        )
    return int(found[0])
