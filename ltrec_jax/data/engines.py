"""Who executes the relational steps: the embedded DuckDB, out of core, or a Spark session. Tables in, tables out.

Out of scope: what the steps are (`relations`).
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm import tqdm

from ltrec_jax.data.ingest import name
from ltrec_jax.data.sources.reading import run

if TYPE_CHECKING:
    import duckdb
    import ibis.expr.types as ir

TYPES = {"VARCHAR": "string", "FLOAT": "float32", "BIGINT": "int64", "INTEGER": "int32"}
"""Of ids, codes, ratings and times; attributes of other types take no part in the steps."""


class Engine(Protocol):
    """Makes and counts tables of Ibis expressions; its tables are named as in DuckDB."""

    def table(self, table: str) -> "ir.Table":
        """A table made before, as an expression."""
        ...

    def create(self, table: str, expression: "ir.Table | list[ir.Table]", what: str) -> "ir.Table":
        """Compute a table (or the union of several, one after the other) and keep it under a new name.

        `what` is shown while it takes long.
        """
        ...

    def define(self, table: str, expression: "ir.Table", what: str) -> None:
        """The same for a table that is read once: an engine may compute it only then."""
        ...

    def repeated(self, table: str, keys: "list[ir.Table]", what: str) -> "ir.Table":
        """`several` of all `keys`, which have no key in common, kept under a new name."""
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


def several(keys: "ir.Table") -> "ir.Table":
    """(key, events): each `key`, int64, that stands in several rows, and in how many."""
    counts = keys.group_by("key").agg(events=keys.count())
    return counts.filter(counts.events > 1)


class DuckEngine:
    """The steps as SQL of the open DuckDB connection.

    With `in_memory` the tables are not compressed into the database file, which takes as long as joining them does;
    what does not fit is spilled.
    """

    def __init__(self, connection: "duckdb.DuckDBPyConnection", *, in_memory: bool = False) -> None:
        self._connection = connection
        self._kind = "TEMP TABLE" if in_memory else "TABLE"

    def table(self, table: str) -> "ir.Table":
        import ibis

        # Not Ibis's own backend: it reads tables through functions that DuckDB 2 warns of.
        found = self._connection.execute(f"DESCRIBE {name(table)}").fetchall()
        return ibis.table({column: TYPES[kind] for column, kind, *_ in found if kind in TYPES}, name=table)

    def create(self, table: str, expression: "ir.Table | list[ir.Table]", what: str) -> "ir.Table":
        import ibis

        parts = expression if isinstance(expression, list) else [expression]
        for number, part in enumerate(parts, start=1):
            verb = f"CREATE {self._kind} {name(table)} AS" if number == 1 else f"INSERT INTO {name(table)}"
            place = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
            run(self._connection, f"{verb} {ibis.to_sql(part, dialect='duckdb')}", what + place)
        return self.table(table)

    def define(self, table: str, expression: "ir.Table", what: str) -> None:
        import ibis

        run(self._connection, f"CREATE TEMP VIEW {name(table)} AS {ibis.to_sql(expression, dialect='duckdb')}", what)

    def repeated(self, table: str, keys: "list[ir.Table]", what: str) -> "ir.Table":
        import pyarrow as pa

        found, events = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for part in tqdm(keys, desc=what, delay=1.0):
            # Almost every key is a group of its own: sorting them takes a third of the time that `several` does.
            key = np.sort(self.fetch(part)["key"])
            again, times = np.unique(key[1:][key[1:] == key[:-1]], return_counts=True)
            found.append(again)
            events.append(times + 1)
        self._connection.register("found", pa.table({"key": np.concatenate(found), "events": np.concatenate(events)}))
        self._connection.execute(f"CREATE {self._kind} {name(table)} AS FROM found")
        self._connection.unregister("found")
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
