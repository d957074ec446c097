# SPDX-License-Identifier: Apache-2.0
"""The D-Box's database in one SQLite file: connections, transactions, errors. The queries are `dboxlib.store`'s.

WAL with synchronous=FULL: a commit that returned survives a power cut. Each thread has its own connection. Who reads
opens the file read-only and needs the writer to be there, which owns the -wal and -shm files beside it.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dre.errors import DreError, MissingError

from dboxlib.storage import DuplicateError, FullError, StorageError

BUSY = 10.0  # seconds to wait for dbox-init, the only other writer
PAGE = 8192  # octets: two dozen records of the usual size with little waste
NEW = "INSERT OR IGNORE INTO"


class Engine:
    """One SQLite file."""

    new = NEW
    serial = "INTEGER"

    def __init__(self, path: Path, write: bool) -> None:
        if not path.is_file():
            raise MissingError(f"{path}: no such database; dbox-init makes it")
        self.path = path
        self.name = str(path)
        self.write = write
        self._local = threading.local()
        self._lock: int | None = None

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        database: sqlite3.Connection | None = getattr(self._local, "database", None)
        if database is None:
            mode = "rw" if self.write else "ro"
            quoted = str(self.path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
            database = sqlite3.connect(f"file:{quoted}?mode={mode}", timeout=BUSY, isolation_level=None, uri=True)
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA secure_delete=ON")  # erased octets are overwritten
            self._local.database = database
        return database

    def close(self) -> None:
        """Close this thread's connection."""
        database = getattr(self._local, "database", None)
        if database is not None:
            database.close()
            self._local.database = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._errors():
            return self.connection().execute(query, values).fetchall()

    def walk(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, read while they are asked for."""
        with self._errors():
            yield from self.connection().execute(query, values)

    def change(self, query: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement and return how many rows it changed."""
        with self._errors():
            return self.connection().execute(query, values).rowcount

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; durable afterwards."""
        database = self.connection()
        with self._errors():
            database.execute("BEGIN IMMEDIATE")
            try:
                yield
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def entries(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add entries: number, source, seq, time, type, digest, leaf, octets, salt."""
        with self._errors():
            self.connection().executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def scrub(self) -> None:
        """Move the journal, which has erased octets too, into the database, as far as readers let it."""
        self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def take(self) -> None:
        """Be the only sequencer on this host for as long as this is open. Raises DreError."""
        path = self.path.with_name("sequencer.lock")
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DreError(f"{self.path}: another sequencer writes this log") from None

    def free(self) -> tuple[int, int] | None:
        """Octets that are free for the database, and all of that disk."""
        try:
            found = os.statvfs(self.path)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise DuplicateError(f"{self.path}: {error}") from None
        except sqlite3.Error as error:
            kind = FullError if "is full" in str(error) else StorageError
            raise kind(f"{self.path}: {error}") from None


def create(path: Path) -> Engine:
    """An empty database with the present tables."""
    schema = Path(__file__).with_name("schema.sql").read_text()
    database = sqlite3.connect(path)
    try:
        database.execute(f"PRAGMA page_size={PAGE}")
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(schema)
    finally:
        database.close()
    return Engine(path, True)
