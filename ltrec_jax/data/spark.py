"""The relational steps on a Spark session (extra `spark`, Java 17): the running one, else a local one of this machine.

Tables pass through Parquet files in a folder beside the output; on a cluster that folder must be one that every worker
sees. Out of scope: what the steps are (`relations`), reading and judging rows, which stays DuckDB's.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ltrec_jax.data.engines import TYPES
from ltrec_jax.data.ingest import name
from ltrec_jax.data.prepare_options import PrepareOptions
from ltrec_jax.data.sources.reading import run, text
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb
    import ibis.expr.types as ir

_GIVEN = ("events", "items_kept")
_RESULTS = ("final", "final_users_codes", "final_items_codes")


class SparkEngine:
    """The steps as Spark SQL; every table is a folder of Parquet files."""

    def __init__(self, session: Any, folder: Path) -> None:
        import ibis

        self._session, self._folder = session, folder
        # Naming the backend registers its options, which its compiler reads.
        self._dialect = ibis.pyspark.name

    def table(self, table: str) -> "ir.Table":
        import ibis

        kinds = {field.name: _KINDS.get(field.dataType.typeName()) for field in self._session.table(table).schema}
        return ibis.table({column: kind for column, kind in kinds.items() if kind}, name=table)

    def create(self, table: str, expression: "ir.Table", what: str) -> "ir.Table":
        with tqdm(total=1, desc=what, delay=1.0, bar_format="{desc}: {elapsed}"):
            self._run(expression).write.parquet(str(self._folder / table))
        self._show(table, self._folder / table)
        return self.table(table)

    def count(self, table: str) -> int:
        return int(self._session.table(table).count())

    def total(self, expression: "ir.Table") -> int:
        return int(self._run(expression).count())

    def fetch(self, expression: "ir.Table") -> dict[str, np.ndarray]:
        frame = self._run(expression)
        rows = frame.collect()
        return {column: np.array([row[column] for row in rows]) for column in frame.columns}

    def rename(self, table: str, new: str) -> None:
        self._session.catalog.dropTempView(table)
        (self._folder / table).rename(self._folder / new)
        self._show(new, self._folder / new)

    def drop(self, table: str) -> None:
        self._session.catalog.dropTempView(table)
        shutil.rmtree(self._folder / table)

    def take(self, connection: "duckdb.DuckDBPyConnection", table: str) -> None:
        """Make a table of DuckDB known here."""
        target = self._folder / table
        target.mkdir()
        # Several files, so that several workers read.
        kinds = connection.execute(f"DESCRIBE {name(table)}").fetchall()
        wanted = ", ".join(name(column) for column, kind, *_ in kinds if kind in TYPES)
        run(
            connection,
            f"COPY (SELECT {wanted} FROM {name(table)}) TO {text(str(target))} (FORMAT parquet, PER_THREAD_OUTPUT)",
            f"handing {table} to Spark",
        )
        self._show(table, target)

    def give(self, connection: "duckdb.DuckDBPyConnection", table: str) -> None:
        """Make a table known to DuckDB, in a table of its own."""
        files = text(str(self._folder / table / "*.parquet"))
        run(connection, f"CREATE TABLE {name(table)} AS FROM read_parquet({files})", f"taking {table} from Spark")

    def _run(self, expression: "ir.Table") -> Any:
        import ibis

        return self._session.sql(ibis.to_sql(expression, dialect=self._dialect))

    def _show(self, table: str, folder: Path) -> None:
        self._session.read.parquet(str(folder)).createOrReplaceTempView(table)


_KINDS = {
    "string": "string",
    "float": "float32",
    "long": "int64",
    "bigint": "int64",
    "integer": "int32",
    "int": "int32",
}


@contextlib.contextmanager
def spark_engine(
    connection: "duckdb.DuckDBPyConnection", beside: Path, options: PrepareOptions
) -> Iterator[SparkEngine]:
    """An engine that knows the given tables of the connection, and hands the results back when the block ends."""
    with _session(options) as session, tempfile.TemporaryDirectory(dir=beside, prefix=".spark-") as folder:
        engine = SparkEngine(session, Path(folder))
        for table in _GIVEN:
            engine.take(connection, table)
        yield engine
        for table in _RESULTS:
            engine.give(connection, table)


@contextlib.contextmanager
def _session(options: PrepareOptions) -> Iterator[Any]:
    """The active Spark session; without one, a local one that ends with the block."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UserError("engine = spark needs the extra: pip install 'ltrec-jax[spark]', and Java 17.") from error
    running = SparkSession.getActiveSession()
    if running is not None:
        yield running
        return
    try:
        session = (
            SparkSession.builder.master(f"local[{options.threads or '*'}]")
            .appName("ltrec data prepare")
            .config("spark.driver.memory", f"{int(options.memory_gib * 1024)}m")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "8")
            .getOrCreate()
        )
    except PySparkException as error:
        raise UserError(
            f"Spark does not start (is Java 17 installed?): {' '.join(str(error).split())[:200]}"
        ) from error
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    finally:
        session.stop()
