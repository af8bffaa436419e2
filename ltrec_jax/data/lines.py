"""Which line of a text file a record stands on. Records are counted by DuckDB, lines by whoever opens the file.

The two differ where a quoted value holds a line break and where lines are blank; only then is the file read again.
"""

import contextlib
import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ltrec_jax.data.ingest import Dialect

_CHUNK = 1 << 20


def lines_of(
    path: Path,
    accepted: np.ndarray,
    broken: np.ndarray,
    *,
    total: int,
    dialect: Dialect,
) -> tuple[np.ndarray, np.ndarray]:
    """Line numbers (from 1) of accepted records and of broken ones.

    `accepted` int64: numbers, from 0, among the `total` records that DuckDB took from the file; `broken` int64: its
    own record numbers, from 1 and with the header, of all those it did not take.
    """
    broken = np.sort(broken)
    header = dialect.header
    if dialect.skip == 0 and _count_lines(path) == total + len(broken) + header:
        # The record number of accepted k: every broken one before it shifts it by one.
        record = accepted + 1 + header
        shift = np.searchsorted(broken - np.arange(len(broken)), record, side="right")
        return record + shift, broken
    starts, blank = _record_starts(path, dialect)
    number = np.arange(1, len(starts) + 1)
    taken = number[~blank & ~np.isin(number, broken)][header:]
    inside = np.clip(broken - 1, 0, len(starts) - 1)
    return starts[taken[np.clip(accepted, 0, len(taken) - 1)] - 1], starts[inside]


def _count_lines(path: Path) -> int:
    count, last = 0, b"\n"
    with _open(path) as stream:
        while chunk := stream.read(_CHUNK):
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")


def _record_starts(path: Path, dialect: Dialect) -> tuple[np.ndarray, np.ndarray]:
    """The line on which each record starts, int64[records], and whether it says nothing (blank, comment, skipped)."""
    starts, blank, end = [], [], 0
    with _open(path) as stream:
        readable = io.TextIOWrapper(stream, encoding=dialect.encoding, errors="replace", newline="")
        if len(dialect.delimiter) == 1 and dialect.quote:
            reader = csv.reader(readable, delimiter=dialect.delimiter, quotechar=dialect.quote)
            for row in reader:
                starts.append(end + 1)
                blank.append(not row or _is_comment(row[0], dialect))
                end = reader.line_num
        else:
            for number, row_text in enumerate(readable, start=1):
                starts.append(number)
                blank.append(not row_text.strip("\r\n") or _is_comment(row_text, dialect))
    blank[: dialect.skip] = [True] * dialect.skip
    return np.array(starts, np.int64), np.array(blank, bool)


def _is_comment(start: str, dialect: Dialect) -> bool:
    return bool(dialect.comment) and start.startswith(dialect.comment)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as stream:
            yield io.BufferedReader(stream)
    elif path.suffix.lower() == ".zst":
        import pyarrow as pa

        with pa.input_stream(path, compression="zstd") as stream:
            yield stream
    else:
        with path.open("rb") as stream:
            yield stream
