"""Texts with their ids, chunk by chunk and as often as asked: a dataset's items, a table on disk, or a list.

No more than a chunk of a file is in memory. Out of scope: tokens (`store`), what a text is made of (`templates`).
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltrec_jax import storage
from ltrec_jax.data import columns, directory
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.errors import UserError, unknown_name
from ltrec_jax.text import templates

_CHUNK = 16384
_BLOCK_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
Chunk = tuple[list[str], list[str]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """`chunks()` gives (ids, texts), two lists of one length, from the first row at every call.

    `fingerprint` changes whenever an id or a text would; `count` is the number of rows where it is known beforehand.
    """

    name: str
    fingerprint: str
    chunks: Callable[[], Iterator[Chunk]]
    count: int | None = None

    def with_prefix(self, prefix: str) -> "Corpus":
        """The same rows with `prefix` before every text, such as the "query: " that an encoder was trained with."""
        if not prefix:
            return self

        def chunks() -> Iterator[Chunk]:
            return ((ids, [prefix + text for text in texts]) for ids, texts in self.chunks())

        return dataclasses.replace(self, chunks=chunks, fingerprint=storage.content_hash(self.fingerprint, prefix))


def of(source: "Corpus | Dataset | Sequence[str]", template: str = "") -> Corpus:
    """Whatever holds texts as a corpus: a dataset (its items, by `template`), a list of texts, a corpus itself."""
    if isinstance(source, Corpus):
        return source
    return from_dataset(source, template) if isinstance(source, Dataset) else from_texts(source)


def from_texts(texts: Sequence[str], ids: Sequence[str] | None = None) -> Corpus:
    """A list of texts; ids are "0", "1", ... unless given (one per text)."""
    names = [str(number) for number in range(len(texts))] if ids is None else list(ids)
    if len(names) != len(texts):
        raise ValueError(f"{len(names)} ids for {len(texts)} texts")
    starts = range(0, len(texts), _CHUNK)

    def chunks() -> Iterator[Chunk]:
        return ((names[at : at + _CHUNK], list(texts[at : at + _CHUNK])) for at in starts)

    pieces = (storage.content_hash(*chunk) for chunk in chunks())
    return Corpus("texts", storage.content_hash("texts", *pieces), chunks, len(texts))


def from_dataset(dataset: Dataset, template: str = "") -> Corpus:
    """The items of a dataset in their order; without a template the dataset's own, else one by the column names."""
    items = dataset.items

    def frames(wanted: list[str]) -> Iterator[pd.DataFrame]:
        held = items[wanted]
        return (held[at : at + _CHUNK] for at in range(0, len(items), _CHUNK))

    return _of_items(dataset.name, dataset.fingerprint, dataset.info, template, items[:0], frames, len(items))


def from_directory(path: Path, template: str = "") -> Corpus:
    """`from_dataset` of a dataset directory, but of `items.parquet` only the columns in use are read, block by block.

    The same rows, texts and fingerprint. What is no dataset directory, or lacks its items: `UserError`.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    description, table = directory.read_description(path), path / "items.parquet"
    if not table.is_file():
        raise UserError(f"{table} is missing.")
    with _readable(table):
        file = pq.ParquetFile(table)
        count, head = file.metadata.num_rows, file.schema_arrow.empty_table().to_pandas()
    if count != description["counts"]["items"] or columns.ITEM_ID not in head:
        raise UserError(f"{table} is damaged: it does not hold the items that dataset.json counts. Prepare it again.")

    def frames(wanted: list[str]) -> Iterator[pd.DataFrame]:
        with _readable(table):
            yield from _frames(table, wanted)

    name, fingerprint, info = (description[each] for each in ("name", "fingerprint", "info"))
    return _of_items(name, fingerprint, info, template, head, frames, count)


def _of_items(
    name: str,
    fingerprint: str,
    info: Mapping[str, Any],
    template: str,
    head: pd.DataFrame,
    frames: Callable[[list[str]], Iterator[pd.DataFrame]],
    count: int,
) -> Corpus:
    """`head`: the table without its rows; `frames(wanted)`: these columns of all rows, in pieces."""
    chosen = template or str(info.get("template") or templates.default_template(head))
    templates.render(chosen, head)
    wanted = list(dict.fromkeys([columns.ITEM_ID, *templates.field_names(chosen)]))

    def chunks() -> Iterator[Chunk]:
        for frame in frames(wanted):
            yield frame[columns.ITEM_ID].astype(str).tolist(), templates.render(chosen, frame)

    return Corpus(name, storage.content_hash(fingerprint, chosen), chunks, count)


def from_file(path: Path, id_column: str, text_column: str, template: str = "") -> Corpus:
    """A Parquet, CSV or TSV file (CSV also gzipped), read block by block; a template may name any of its columns.

    Without an id column ("") the ids are "0", "1", ... Without a template the text is `text_column`, missing values
    being "". An unknown column, a row without id, a file that is no such table: `UserError`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with _readable(path):
        names, count = _schema(path)
    if id_column and id_column not in names:
        raise unknown_name(f"id column in {path}", id_column, names)
    if not template and text_column not in names:
        raise unknown_name(f"text column in {path}", text_column, names)
    chosen = template or "{" + text_column + "}"
    templates.render(chosen, pd.DataFrame(columns=names, dtype=str))
    fields = templates.field_names(chosen)
    wanted = list(dict.fromkeys([id_column, *fields] if id_column else fields))

    def chunks() -> Iterator[Chunk]:
        row = 0
        with _readable(path):
            for frame in _frames(path, wanted):
                ids = frame[id_column] if id_column else pd.Series(range(row, row + len(frame)))
                if ids.isna().any():
                    raise UserError(f"{path}: row {row + int(ids.isna().argmax()) + 1} has no id ({id_column}).")
                row += len(frame)
                yield ids.astype(str).tolist(), templates.render(chosen, frame)

    return Corpus(str(path), storage.content_hash(storage.sha256_file(path), id_column, chosen), chunks, count)


def from_lines(path: Path) -> Corpus:
    """A UTF-8 text file with one text per line; ids are "0", "1", ... No such file, other bytes: `UserError`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")

    def chunks() -> Iterator[Chunk]:
        row = 0
        with path.open(encoding="utf-8") as stream:
            try:
                while lines := [line.rstrip("\r\n") for line in itertools.islice(stream, _CHUNK)]:
                    yield [str(row + at) for at in range(len(lines))], lines
                    row += len(lines)
            except UnicodeDecodeError as error:
                raise UserError(f"Cannot read {path} as UTF-8: {error}.") from error

    return Corpus(str(path), storage.content_hash(storage.sha256_file(path)), chunks)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {' '.join(str(error).split())}") from error


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind not in (".parquet", *_SEPARATORS):
        raise UserError(f"{path} is none of .parquet, .csv and .tsv (.csv.gz, .tsv.gz).")
    return kind


def _schema(path: Path) -> tuple[list[str], int | None]:
    if _kind(path) == ".parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        return list(file.schema_arrow.names), file.metadata.num_rows
    with _csv(path, None) as reader:
        return list(reader.schema.names), None


def _frames(path: Path, wanted: list[str]) -> Iterator[pd.DataFrame]:
    if _kind(path) == ".parquet":
        import pyarrow.parquet as pq

        # Buffered: else a whole row group's columns are in memory, and a file may have but one group.
        for batch in pq.ParquetFile(path, buffer_size=_BUFFER_BYTES).iter_batches(_CHUNK, columns=wanted):
            # Whole numbers with gaps would otherwise become floats, and 7 the id "7.0".
            yield batch.to_pandas(integer_object_nulls=True)
        return
    with _csv(path, wanted) as reader:
        for batch in reader:
            for at in range(0, len(batch), _CHUNK):
                yield batch.slice(at, _CHUNK).to_pandas()


def _csv(path: Path, wanted: list[str] | None) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    return csv.open_csv(
        path,
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=csv.ParseOptions(delimiter=_SEPARATORS[_kind(path)], newlines_in_values=True),
        # Every column is a text: "007" stays what it is.
        convert_options=csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted or [], pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        ),
    )
