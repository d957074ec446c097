# SPDX-License-Identifier: Apache-2.0
"""The SQLite database of the D-Box: rows in, rows out. It trusts nothing to be signed and signs nothing itself.

WAL with synchronous=FULL: a commit that returned survives a power cut. One connection writes (the sequencer's), each
reading thread has its own.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre.errors import DreError, MissingError

VERSION = 1
BUSY = 10.0  # seconds to wait for dbox-init, the only other writer
_SEARCH = {"stream": "stream = ?", "type": "type = ?", "writer": "writer = ?", "after": "number > ?"}
_FIELDS = "number, writer, stream, seq, time, type"
_CLIENT = "number, fingerprint, name, role, time, streams, local, until"


@dataclass(frozen=True)
class Row:
    """A new entry on its way into the database."""

    number: int
    writer: str
    stream: str
    seq: int
    time: str
    header: bytes
    octets: bytes
    leaf: bytes


def create(path: Path, origin: str, box: str, certificates: Sequence[tuple[str, str, str]]) -> None:
    """Make the database of the log *origin*; *certificates* are kind, fingerprint, PEM."""
    schema = Path(__file__).with_name("schema.sql").read_text()
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(schema)
        with database:
            database.execute("INSERT INTO log VALUES (?, ?, ?)", (VERSION, origin, box))
            database.executemany("INSERT INTO certificate (kind, fingerprint, pem) VALUES (?, ?, ?)", certificates)
    finally:
        database.close()


class Store:
    """An open database."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingError(f"{path}: no such database; dbox-init makes it")
        self.path = path
        self._local = threading.local()
        try:
            row = self._one("SELECT version, origin, box FROM log")
        except sqlite3.DatabaseError as error:
            raise DreError(f"{path}: not a database of the D-Box: {error}") from None
        if row is None or row[0] != VERSION:
            raise DreError(f"{path}: not a database of the D-Box of version {VERSION}")
        self.origin, self.box = str(row[1]), str(row[2])

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        database: sqlite3.Connection | None = getattr(self._local, "database", None)
        if database is None:
            database = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
            database.execute("PRAGMA synchronous=FULL")
            self._local.database = database
        return database

    def close(self) -> None:
        """Close this thread's connection."""
        database = getattr(self._local, "database", None)
        if database is not None:
            database.close()
            self._local.database = None

    def _one(self, query: str, values: Sequence[Any] = ()) -> Any:
        return self.connection().execute(query, values).fetchone()

    # --- What the sequencer writes ---

    def append(
        self, rows: Sequence[Row], size: int, note: str, certificate: tuple[str, str, str] | None = None
    ) -> None:
        """Add entries, the tree head over them, and a certificate that one of them tells of: all or nothing."""
        database = self.connection()
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany(
                "INSERT INTO entry (number, writer, stream, seq, time, type, header, octets, leaf)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (row.number, row.writer, row.stream, row.seq, row.time, event_type(row.octets))
                    + (row.header, row.octets, row.leaf)
                    for row in rows
                ),
            )
            if certificate is not None:
                database.execute("INSERT INTO certificate (kind, fingerprint, pem) VALUES (?, ?, ?)", certificate)
            database.execute("INSERT INTO head VALUES (?, ?)", (size, note))
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def headers(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Number, header and leaf of all entries in order."""
        yield from self.connection().execute("SELECT number, header, leaf FROM entry ORDER BY number")

    def head(self) -> str | None:
        """The note of the newest tree head."""
        row = self._one("SELECT note FROM head ORDER BY size DESC LIMIT 1")
        return str(row[0]) if row else None

    def find(self, writer: str, stream: str, seq: int) -> tuple[int, bytes] | None:
        """Number and header of the entry that *writer* gave this sequence number."""
        row = self._one(
            "SELECT number, header FROM entry WHERE writer = ? AND stream = ? AND seq = ?", (writer, stream, seq)
        )
        return (row[0], row[1]) if row else None

    def last_seq(self, writer: str, stream: str) -> int:
        """The highest sequence number of a writer's stream; 0 when it has none."""
        row = self._one("SELECT max(seq) FROM entry WHERE writer = ? AND stream = ?", (writer, stream))
        return int(row[0] or 0)

    # --- What readers ask ---

    def entry(self, number: int) -> dict[str, Any] | None:
        """The fields of an entry."""
        row = self._one(f"SELECT {_FIELDS}, header FROM entry WHERE number = ?", (number,))  # noqa: S608
        return {**_named(row), "header": row[-1].decode()} if row else None

    def payload(self, number: int) -> tuple[bytes, bytes, bytes] | None:
        """Header, octets and salt of an entry."""
        row = self._one("SELECT header, octets, salt FROM entry WHERE number = ?", (number,))
        return (row[0], row[1], row[2]) if row else None

    def search(self, wanted: Mapping[str, str | int], limit: int) -> Iterator[dict[str, Any]]:
        """Entries whose fields are as *wanted* (stream, type, writer; number after), in order."""
        terms = " AND ".join(_SEARCH[key] for key in wanted) or "1"
        query = f"SELECT {_FIELDS} FROM entry WHERE {terms} ORDER BY number LIMIT ?"  # noqa: S608
        for row in self.connection().execute(query, (*wanted.values(), limit)):
            yield _named(row)

    def chain(self) -> str:
        """All certificates below the root, PEM, the newest first."""
        rows = self.connection().execute("SELECT pem FROM certificate ORDER BY number DESC")
        return "".join(pem for (pem,) in rows)

    def certificate(self, kind: str) -> str:
        """The newest certificate of a kind, PEM."""
        row = self._one("SELECT pem FROM certificate WHERE kind = ? ORDER BY number DESC LIMIT 1", (kind,))
        return str(row[0]) if row else ""

    # --- Clients and signatures ---

    def client(self, fingerprint: str) -> tuple[Any, ...] | None:
        """A client as registered last: the fields of `clients.Client`."""
        query = f"SELECT {_CLIENT} FROM client WHERE fingerprint = ? ORDER BY number DESC LIMIT 1"  # noqa: S608
        row = self._one(query, (fingerprint,))
        return tuple(row) if row else None

    def clients(self, after: int) -> list[tuple[Any, ...]]:
        """The registrations after number *after*, in order: the fields of `clients.Client`."""
        query = f"SELECT {_CLIENT} FROM client WHERE number > ? ORDER BY number"  # noqa: S608
        return [tuple(row) for row in self.connection().execute(query, (after,))]

    def register(
        self, fingerprint: str, name: str, role: str, time: str, streams: str = "", local: str = "", until: str = ""
    ) -> None:
        """Give the holder of a certificate a role."""
        self.connection().execute(
            "INSERT INTO client (fingerprint, name, role, time, streams, local, until) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (fingerprint, name, role, time, streams, local, until),
        )

    def signature(self, number: int) -> tuple[str, str, bytes] | None:
        """Key, time and value of the signed digest of an entry, where it was made."""
        row = self._one("SELECT key, time, value FROM signature WHERE entry = ?", (number,))
        return (row[0], row[1], row[2]) if row else None

    def keep_signature(self, number: int, key: str, time: str, value: bytes) -> None:
        """Keep a signed digest; the first one stays."""
        self.connection().execute("INSERT OR IGNORE INTO signature VALUES (?, ?, ?, ?)", (number, key, time, value))


def event_type(octets: bytes) -> str | None:
    """The type of the event that *octets* are, for searching; None when they are something else."""
    if len(octets) > 4096 or not octets.startswith(b"{"):
        return None
    try:
        fields = json.loads(octets)
    except (ValueError, RecursionError):
        return None
    kind = fields.get("type") if isinstance(fields, dict) else None
    return kind if isinstance(kind, str) and len(kind) <= 200 and kind.isprintable() else None


def _named(row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(("index", "writer", "stream", "seq", "time", "type"), row, strict=False))
