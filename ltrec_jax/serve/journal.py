"""What happened since the bundle was made, kept through kill -9: an append-only log in SQLite.

`append` returns when its events are on the disk; `note` returns at once and writes within a fraction of a second
(impressions: losing the last ones loses no promise). One process holds the log at a time. Out of scope: what events
mean (`service`).
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from ltrec_jax.errors import UserError

ITEM_PUT, ITEM_DELETE, FEEDBACK, IMPRESSION = "item_put", "item_delete", "feedback", "impression"
_FLUSH_SECONDS = 0.25
_MOST_WAITING = 100_000
_SCHEMA = "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, time REAL NOT NULL, "
_SCHEMA += "body TEXT NOT NULL)"


class JournalError(UserError):
    """The log cannot be written or read now."""


class Journal:
    """The log at `path`; None keeps it in memory (for tests and for serving that must not write)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, float, str]] = []
        self._closed = threading.Event()
        self._held = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = filelock.FileLock(path.with_name(path.name + ".lock"))
            try:
                self._held.acquire(timeout=0)
            except filelock.Timeout as error:
                raise UserError(
                    f"Another server writes {path}. Stop it, or give this one its own log with --log."
                ) from error
        self._connection = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        with self._readable():
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(_SCHEMA)
        self._flusher = threading.Thread(target=self._flush_forever, name="journal", daemon=True)
        self._flusher.start()

    def append(self, kind: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Write events, all of them or none; they are on the disk when this returns.

        A full disk is a `UserError`: nothing was written and everything acknowledged before is still there.
        """
        now = time.time()
        self._write([(kind, now, json.dumps(event, ensure_ascii=False, allow_nan=False)) for event in events])

    def note(self, kind: str, event: Mapping[str, Any]) -> None:
        """Write an event soon. Where the disk cannot take them for long, the oldest waiting ones are dropped."""
        row = (kind, time.time(), json.dumps(event, ensure_ascii=False, allow_nan=False))
        with self._lock:
            self._waiting.append(row)
            del self._waiting[: max(0, len(self._waiting) - _MOST_WAITING)]

    def read(self, *kinds: str) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(kind, seconds since 1970, event) of these kinds (none named: all), in the order they were written."""
        self.flush()
        wanted = f"WHERE kind IN ({','.join('?' * len(kinds))})" if kinds else ""
        last = -1
        while True:
            with self._lock, self._readable():
                rows = self._connection.execute(
                    f"SELECT number, kind, time, body FROM (SELECT * FROM events {wanted}) "
                    "WHERE number > ? ORDER BY number LIMIT 10000",
                    (*kinds, last),
                ).fetchall()
            if not rows:
                return
            for number, kind, at, body in rows:
                last = number
                yield kind, at, json.loads(body)

    def flush(self) -> None:
        """Write what `note` was given."""
        with self._lock:
            rows, self._waiting = self._waiting, []
        if rows:
            try:
                self._write(rows)
            except JournalError:
                with self._lock:
                    self._waiting = rows + self._waiting
                raise

    def close(self) -> None:
        """Write what waits and let go of the file."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._flusher.join()
        try:
            self.flush()
        finally:
            with self._lock:
                self._connection.close()
            if self._held is not None:
                self._held.release()

    def _flush_forever(self) -> None:
        while not self._closed.wait(_FLUSH_SECONDS):
            # A full disk: the events wait for the next round, `append` tells the client.
            with contextlib.suppress(JournalError):
                self.flush()

    def _write(self, rows: Sequence[tuple[str, float, str]]) -> None:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT INTO events (kind, time, body) VALUES (?, ?, ?)", rows)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise JournalError(
                    f"The log {self._path} cannot be written ({error}). Free some space; what was acknowledged is kept."
                ) from error

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise JournalError(
                f"The log {self._path} cannot be read ({error}). Move it away, or restore it from a copy."
            ) from error
