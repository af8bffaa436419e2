"""Who executes the relational steps: the embedded DuckDB, out of core, or a Spark session. Tables in, tables out.

Out of scope: what the steps are (`relations`).
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ltrec_jax.data.ingest import name
from ltrec_jax.data.sources.reading import run
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import duckdb
    import ibis.expr.types as ir
    import pyarrow as pa

TYPES = {"VARCHAR": "string", "FLOAT": "float32", "BIGINT": "int64", "INTEGER": "int32"}
"""Of ids, codes, ratings and times; attributes of other types take no part in the steps."""


class Engine(Protocol):
    """Makes and counts tables of Ibis expressions; its tables are named as in DuckDB."""

    def table(self, table: str) -> "ir.Table":
        """A table made before, as an expression."""
        ...

    def create(self, table: str, expression: "ir.Table", what: str) -> "ir.Table":
        """Compute a table and keep it under a new name. `what` is shown while it takes long."""
        ...

    def count(self, table: str) -> int:
        """Rows of a table."""
        ...

    def total(self, expression: "ir.Table") -> int:
        """Rows of an expression."""
        ...

    def fetch(self, expression: "ir.Table") -> dict[str, np.ndarray]:
        """The columns of a small table."""
        ...

    def rename(self, table: str, new: str) -> None:
        """Give a table another name."""
        ...

    def drop(self, table: str) -> None:
        """Forget a table and free its place on disk."""
        ...


class DuckEngine:
    """The steps as SQL of the open DuckDB connection. Its tables are temporary ones: what does not fit is spilled."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._connection = connection

    def table(self, table: str) -> "ir.Table":
        import ibis

        # Not Ibis's own backend: it reads tables through functions that DuckDB 2 warns of.
        found = self._connection.execute(f"DESCRIBE {name(table)}").fetchall()
        return ibis.table({column: TYPES[kind] for column, kind, *_ in found if kind in TYPES}, name=table)

    def create(self, table: str, expression: "ir.Table", what: str) -> "ir.Table":
        import ibis

        query = ibis.to_sql(expression, dialect="duckdb")
        run(self._connection, f"CREATE TEMP TABLE {name(table)} AS {query}", what)
        return self.table(table)

    def stream(self, expression: "ir.Table", rows: int, what: str) -> "Iterator[pa.RecordBatch]":
        """The rows of an expression, at most so many at a time, while DuckDB computes the next."""
        import duckdb
        import ibis

        try:
            reader = self._connection.sql(ibis.to_sql(expression, dialect="duckdb")).to_arrow_reader(rows)
            with ThreadPoolExecutor(1) as pool:
                job = pool.submit(next, reader, None)
                while (batch := job.result()) is not None:
                    job = pool.submit(next, reader, None)
                    yield batch
        except (duckdb.Error, OSError) as error:
            # Arrow hands on what DuckDB raises later as OSError.
            raise UserError(f"{what} failed: {' '.join(str(error).split())[:300]}") from error

    def give(self, table: str, columns: Mapping[str, np.ndarray]) -> "ir.Table":
        """Make arrays known as a table."""
        import pyarrow as pa

        self._connection.register(table, pa.table(dict(columns)))
        return self.table(table)

    def count(self, table: str) -> int:
        (row,) = self._connection.execute(f"SELECT count(*) FROM {name(table)}").fetchall()
        return int(row[0])

    def total(self, expression: "ir.Table") -> int:
        import ibis

        query = ibis.to_sql(expression.count().as_table(), dialect="duckdb")
        return int(self._connection.execute(query).fetchall()[0][0])

    def fetch(self, expression: "ir.Table") -> dict[str, np.ndarray]:
        import ibis

        found = self._connection.execute(ibis.to_sql(expression, dialect="duckdb")).fetchnumpy()
        return {column: np.asarray(values) for column, values in found.items()}

    def rename(self, table: str, new: str) -> None:
        self._connection.execute(f"ALTER TABLE {name(table)} RENAME TO {name(new)}")

    def drop(self, table: str) -> None:
        self._connection.execute(f"DROP TABLE {name(table)}")
