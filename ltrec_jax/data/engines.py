"""Who executes the relational steps: the embedded DuckDB, out of core, or a Spark session. Tables in, tables out.

Out of scope: what the steps are (`relations`).
"""

from typing import TYPE_CHECKING, Protocol

from ltrec_jax.data.ingest import name
from ltrec_jax.data.sources.reading import run

if TYPE_CHECKING:
    import duckdb
    import ibis.expr.types as ir


class Engine(Protocol):
    """Makes and counts tables of Ibis expressions; its tables are named as in DuckDB."""

    def table(self, table: str) -> "ir.Table":
        """A table made before, as an expression."""
        ...

    def create(self, table: str, expression: "ir.Table", what: str) -> "ir.Table":
        """Compute a table and keep it under a new name; `what` is shown while it takes long."""
        ...

    def count(self, table: str) -> int:
        """Rows of a table."""
        ...

    def total(self, expression: "ir.Table") -> int:
        """Rows of an expression."""
        ...

    def drop(self, table: str) -> None:
        """Forget a table and free its place on disk."""
        ...


class DuckEngine:
    """The steps as SQL of the open DuckDB connection."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        import ibis

        self._connection = connection
        self._backend = ibis.duckdb.from_connection(connection)

    def table(self, table: str) -> "ir.Table":
        return self._backend.table(table)

    def create(self, table: str, expression: "ir.Table", what: str) -> "ir.Table":
        import ibis

        run(self._connection, f"CREATE TABLE {name(table)} AS {ibis.to_sql(expression, dialect='duckdb')}", what)
        return self.table(table)

    def count(self, table: str) -> int:
        (row,) = self._connection.execute(f"SELECT count(*) FROM {name(table)}").fetchall()
        return int(row[0])

    def total(self, expression: "ir.Table") -> int:
        return int(self._backend.execute(expression.count()))

    def drop(self, table: str) -> None:
        self._connection.execute(f"DROP TABLE {name(table)}")
