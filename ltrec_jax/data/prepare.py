"""Any CSV, TSV, JSONL or Parquet files, larger than memory and dirty, to a dataset directory; data frames to a dataset.

The order is fixed: rows that cannot be used are rejected (`validate`), then time range, one event for each user and
item, implicit threshold, k-core, coding. Internal ids follow the external ids (whole numbers by value, then texts);
interactions are ordered by user, time and item. So equal data give an equal dataset, whatever files it came in.

Items of the catalogue without interactions stay (they are the cold ones); users without interactions do not.
Out of scope: public data sets (`sources`), texts (`text.templates`).
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltrec_jax import storage
from ltrec_jax.data import columns as names
from ltrec_jax.data import directory as files
from ltrec_jax.data import ingest, inputs, relations
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.data.engines import DuckEngine
from ltrec_jax.data.prepare_options import ColumnMap, PrepareOptions, options_from_dict
from ltrec_jax.data.settle import Settled, settle, settled_elsewhere
from ltrec_jax.data.sources import reading
from ltrec_jax.data.sources.reading import run
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

__all__ = ["ColumnMap", "PrepareOptions", "from_pandas", "options_from_dict", "prepare"]

# DuckDB's own limit leaves room for the interpreter, Arrow and what DuckDB holds outside it.
_SHARE_OF_MEMORY = 0.6


def prepare(
    interactions: str | Path,
    items: str | Path | None = None,
    users: str | Path | None = None,
    *,
    out: str | Path,
    columns: ColumnMap | None = None,
    options: PrepareOptions | None = None,
    replace: bool = False,
) -> Dataset:
    """Write the dataset directory `out` from files, whole or not at all, and open it.

    Each input is a file, a glob pattern or a folder of shards: CSV, TSV, JSONL (also .gz, .zst) or Parquet. Rows that
    cannot be used go to `rejected.parquet` in the directory; more than `options.max_rejected` of them, missing columns,
    or nothing left after filtering is a `UserError`. `dataset.info["steps"]` counts what each step kept.
    """
    out = Path(out)
    options = options or PrepareOptions()
    with storage.new_directory(out, replace=replace) as directory, _folder(out.parent) as folder:
        with _connection(out.parent, options) as connection:
            sources = {"interactions": interactions, "items": items, "users": users}
            info, settled = _prepare(connection, sources, columns or ColumnMap(), options, folder)
            _write_tables(connection, directory)
        # DuckDB's memory is free by now.
        digests = files.write_interactions(directory, settled.rows, settled.pieces())
        info["scale"] = _scale(options, files.read_columns(directory)[names.RATING])

        def fingerprint() -> str:
            tables = (files.read_table(directory / f"{kind}.parquet") for kind in ("users", "items"))
            return files.fingerprint(digests, *tables)

        files.write_description(directory, options.name or out.name, fingerprint, info)
    return Dataset.load(out)


def from_pandas(
    interactions: "pd.DataFrame",
    items: "pd.DataFrame | None" = None,
    users: "pd.DataFrame | None" = None,
    *,
    name: str = "data frame",
    columns: ColumnMap | None = None,
    options: PrepareOptions | None = None,
) -> Dataset:
    """The same from data frames, in memory: same rules, same messages, and `info["rejected"]` counts the reasons."""
    options = options or PrepareOptions()
    with _folder(None) as folder, _connection(folder, options) as connection:
        sources = {"interactions": interactions, "items": items, "users": users}
        info, settled = _prepare(connection, sources, columns or ColumnMap(), options, folder)
        pieces = list(settled.pieces())
        frames = {
            kind: connection.sql(_table(connection, kind)).to_arrow_table().to_pandas() for kind in ("users", "items")
        }
    arrays = {key: np.concatenate([piece[key] for piece in pieces]) for key in names.INTERACTION_COLUMNS}
    return Dataset(
        name=options.name or name,
        interactions=Interactions(**arrays),
        users=frames["users"],
        items=frames["items"],
        info=info | {"scale": _scale(options, arrays[names.RATING])},
    )


@contextlib.contextmanager
def _folder(beside: Path | None) -> Iterator[Path]:
    """A folder for what does not fit into memory, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=".prepare-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _connection(beside: Path, options: PrepareOptions) -> Iterator["duckdb.DuckDBPyConnection"]:
    import duckdb

    with reading.connection(beside) as connection:
        connection.execute(f"SET memory_limit = '{options.memory_gib * _SHARE_OF_MEMORY * 1024:.0f}MiB'")
        connection.execute("SET TimeZone = 'UTC'")
        if options.threads is not None:
            connection.execute(f"SET threads = {options.threads}")
        try:
            yield connection
        except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.InvalidInputException) as error:
            # Files that break off in the middle, a full disk: whichever statement meets them first.
            raise UserError(f"Preparing failed: {' '.join(str(error).split())[:300]}") from error


def _prepare(
    connection: "duckdb.DuckDBPyConnection",
    sources: dict[str, Any],
    mapping: ColumnMap,
    options: PrepareOptions,
    folder: Path,
) -> tuple[dict[str, Any], Settled]:
    """The dataset's `info` but for the scale, and its interactions; `_table` tells its users and items."""
    judged = inputs.read(connection, sources, mapping, options)
    steps, missing, settled = _settle(connection, options, folder, listed=sources["items"] is not None)
    steps = {"read": judged[0].read, "kept": judged[0].kept, **steps}
    if steps["interactions"] == 0:
        told = ", ".join(f"{step.replace('_', ' ')}: {count:,}" for step, count in steps.items())
        raise UserError(f"No interaction is left after filtering ({told}). Loosen the options.")
    info: dict[str, Any] = {
        "source": "files" if isinstance(sources["interactions"], (str, Path)) else "data frames",
        "steps": steps,
        "rejected": {
            table.what: {"read": table.read, "rejected": table.rejected, "reasons": table.reasons} for table in judged
        },
        "items_without_metadata": missing,
        "options": dataclasses.asdict(options),
    }
    if options.template is not None:
        info["template"] = options.template
    if options.positive_rating is not None:
        info["positive_rating"] = options.positive_rating
    return info, settled


def _settle(
    connection: "duckdb.DuckDBPyConnection", options: PrepareOptions, folder: Path, *, listed: bool
) -> tuple[dict[str, int], int, Settled]:
    """The interactions that stay, counted step by step, and how many of their items the table of items lacks."""
    engine = DuckEngine(connection)
    if options.engine == "duckdb":
        return settle(engine, options, folder, listed=listed)
    from ltrec_jax.data.spark import spark_engine

    with spark_engine(connection, folder, options) as spark:
        steps, missing = relations.relate(spark, options, listed=listed)
    return steps, missing, settled_elsewhere(engine, options, folder)


def _scale(options: PrepareOptions, rating: np.ndarray) -> list[float]:
    """The lowest and the highest rating: as told, or as found."""
    if options.scale is not None and options.implicit_threshold is None:
        return list(options.scale)
    return [float(rating.min()), float(rating.max())]


def _table(connection: "duckdb.DuckDBPyConnection", kind: str) -> str:
    """The query for the users or items that are left, with their attributes, in the order of their codes."""
    key, code = {"users": (names.USER_ID, names.USER), "items": (names.ITEM_ID, names.ITEM)}[kind]
    shown = [f"c.{key}"]
    for column, type_, *_ in connection.execute(f"DESCRIBE {kind}_kept").fetchall():
        if column != key:
            n = ingest.name(column)
            shown.append(f"coalesce(k.{n}, '') AS {n}" if type_ == "VARCHAR" else f"k.{n}")
    return f"""SELECT {", ".join(shown)} FROM final_{kind}_codes c LEFT JOIN {kind}_kept k USING ({key})
        ORDER BY c.{ingest.name(code)}"""


def _write_tables(connection: "duckdb.DuckDBPyConnection", directory: Path) -> None:
    for name, query in (
        ("users", _table(connection, "users")),
        ("items", _table(connection, "items")),
        ("rejected", 'SELECT * FROM rejected ORDER BY "table", file, line'),
    ):
        target = reading.text(str(directory / f"{name}.parquet"))
        run(
            connection,
            f"COPY ({query}) TO {target} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)",
            f"writing {name}",
        )
