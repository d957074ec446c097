# SPDX-License-Identifier: Apache-2.0
"""The database of the D-Box: rows in, rows out, whatever keeps them. It signs nothing itself.

An entry is kept as columns from which its header is made again; the header of every row read is compared with the
first octets of its leaf hash, and its octets with its digest (evidence.TamperedError). SQL is here, the ways of SQLite
and of MariaDB are in `store_sqlite` and `store_mysql`, older tables in `migrations`.
"""

import functools
import hashlib
import json
import re
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dre import evidence
from dre.conf import Conf
from dre.errors import DreError
from dre.evidence import TamperedError

from dboxlib import migrations, store_mysql, store_sqlite
from dboxlib.clients import Client
from dboxlib.storage import DuplicateError, Engine, FencedError, FullError, StorageError

__all__ = ["DuplicateError", "FencedError", "FullError", "Row", "StorageError", "Store", "create", "open", "reading"]
VERSION = migrations.VERSION
TAG = 8  # octets kept of a leaf hash
BLOCK = 256  # entries of which one row tells that a source or type is among them
TYPES = 10_000  # different ones that can be searched for: writers invent them
SOURCE, TYPE = 0, 1  # kinds of `present`
_CLIENT = "number, fingerprint, name, role, time, streams, local, until"
_ENTRY = "number, source, seq, time, type, digest, leaf, octets, salt"
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z")


class Row(NamedTuple):
    """A new entry on its way into the database; a tuple, since there are many thousands a second."""

    number: int
    writer: str
    stream: str
    seq: int
    time: int  # milliseconds since the epoch
    digest: bytes
    leaf: bytes  # the whole hash
    octets: bytes
    salt: bytes = b""
    header: bytes = b""  # not kept: for the receipt

    @property
    def erased(self) -> bool:
        """As of `Known`: its octets are here."""
        return False


@dataclass(frozen=True)
class Known:
    """What is there already under a sequence number."""

    number: int
    digest: bytes
    salt: bytes | None
    time: int
    erased: bool


@dataclass
class Batch:
    """What one transaction adds: entries, the tree head over them, and what some of them tell of."""

    rows: Sequence[Row]
    size: int
    note: str
    certificate: tuple[str, str, str] | None = None  # kind, fingerprint, PEM
    signatures: Sequence[tuple[int, str, bytes]] = ()  # entry, time, value; by the newest sign certificate
    erased: Sequence[tuple[int, int, str, str, str, str]] = field(default_factory=list)


def open(place: str | Path, write: bool = False, password_file: Path | None = None) -> "Store":
    """The database `sqlite:/PATH` or `mysql://…`; without *write* it can only be read."""
    text = str(place)
    if text.startswith("mysql:"):
        return Store(store_mysql.Engine(text, write, password_file), write)
    return Store(store_sqlite.Engine(Path(text.removeprefix("sqlite:")), write), write)


def reading(conf: Conf) -> "Store":
    """The database of the settings, for reading."""
    return open(conf.dbox_database_reader or conf.dbox_database, False, conf.dbox_database_password_file)


def writing(conf: Conf) -> "Store":
    """The database of the settings, for the sequencer; older tables are brought up to date."""
    return open(conf.dbox_database, True, conf.dbox_database_password_file)


def administering(conf: Conf) -> "Store":
    """The database of the settings under the account that makes tables and erases."""
    return open(conf.dbox_database_admin or conf.dbox_database, True, conf.dbox_database_password_file)


def create(place: str | Path, origin: str, box: str, certificates: Sequence[tuple[str, str, str]], **more: Any) -> None:
    """Make the database of the log *origin*; *certificates* are kind, fingerprint, PEM."""
    text = str(place)
    engine: Engine
    if text.startswith("mysql:"):
        engine = store_mysql.create(text, **more)
    else:
        engine = store_sqlite.create(Path(text.removeprefix("sqlite:")))
    try:
        with engine.transaction():
            engine.change("INSERT INTO log VALUES (?, ?, ?)", (VERSION, origin, box))
            for row in certificates:
                engine.change("INSERT INTO certificate (kind, fingerprint, pem) VALUES (?, ?, ?)", row)
    finally:
        engine.close()


class Store:
    """An open database."""

    def __init__(self, place: Engine | str | Path, write: bool = True) -> None:
        if isinstance(place, str | Path):
            place = open(place, write).engine
        self.engine: Engine = place
        self.path = place.name
        self.alarm: Callable[[TamperedError], None] = lambda _: None
        self._sources: dict[int, tuple[str, str]] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._types: dict[int, str] = {}
        self._type_numbers: dict[str, int] = {}
        self._present: set[tuple[int, int, int]] = set()
        found = self._log()
        if write and 0 < found[0] < VERSION:
            migrations.run(place, found[0])
            found = self._log()
        if found[0] != VERSION:
            raise DreError(f"{self.path}: not a database of the D-Box of version {VERSION}")
        self.origin, self.box = found[1:]

    def _log(self) -> tuple[int, str, str]:
        try:
            rows = self.engine.rows("SELECT version, origin, box FROM log")
        except StorageError as error:
            raise DreError(f"{self.path}: not a database of the D-Box: {error}") from None
        return (int(rows[0][0]), str(rows[0][1]), str(rows[0][2])) if rows else (0, "", "")

    def close(self) -> None:
        """Close this thread's connection."""
        self.engine.close()

    def _one(self, query: str, values: Sequence[Any] = ()) -> Any:
        rows = self.engine.rows(query, values)
        return rows[0] if rows else None

    # --- What the sequencer writes ---

    def take(self, time: str, holder: str) -> int:
        """Become the one sequencer of this log and return its epoch. Raises DreError while another one is there."""
        self.engine.take()
        with self.engine.transaction():
            self.engine.change(
                "INSERT INTO epoch (number, time, holder) SELECT coalesce(max(number), 0) + 1, ?, ? FROM epoch",
                (time, holder[:255]),
            )
            row = self._one("SELECT number FROM epoch ORDER BY number DESC LIMIT 1")
        return int(row[0])

    def holds(self, epoch: int) -> bool:
        """Whether *epoch* is still the newest one."""
        row = self._one("SELECT max(number) FROM epoch")
        return row is not None and row[0] == epoch

    def append(self, batch: Batch, epoch: int) -> None:
        """Add entries and the tree head over them: all or nothing.

        Raises FencedError when *epoch* is over, DuplicateError when somebody else has added entries.
        """
        engine = self.engine
        try:
            with engine.transaction():
                # First, since it also locks the row of the epoch: no new one begins before this is over.
                query = (
                    "INSERT INTO head (size, note) SELECT ?, ? FROM epoch"
                    " WHERE number = ? AND number = (SELECT max(number) FROM epoch)"
                )
                if not engine.change(query, (batch.size, batch.note, epoch)):
                    raise FencedError(f"{self.path}: another sequencer has taken over")
                rows, present = self._columns(batch.rows)
                engine.entries(rows)
                for row in present - self._present:
                    engine.change(f"{engine.new} present VALUES (?, ?, ?)", row)
                if batch.certificate is not None:
                    query = "INSERT INTO certificate (kind, fingerprint, pem) VALUES (?, ?, ?)"
                    engine.change(query, batch.certificate)
                for number, time, value in batch.signatures:
                    self.keep_signature(number, time, value)
                for reason in batch.erased:
                    engine.change("INSERT INTO erased VALUES (?, ?, ?, ?, ?, ?)", reason)
        except BaseException:
            self.forget()
            raise
        self._present |= present
        if len(self._present) > 10_000:
            self._present = set()

    def restore(self, rows: Sequence[tuple[Row, bool]], heads: Sequence[tuple[int, str]], time: str) -> None:
        """Add entries and tree heads of another database of this log; *rows* say which had their octets erased."""
        with self.engine.transaction():
            columns, present = self._columns([row for row, _ in rows])
            gone = [(*one[:7], None, None) for one, (_, erased) in zip(columns, rows, strict=True) if erased]
            kept = [one for one, (_, erased) in zip(columns, rows, strict=True) if not erased]
            self.engine.entries(sorted([*kept, *gone]))
            for block in present:
                self.engine.change(f"{self.engine.new} present VALUES (?, ?, ?)", block)
            for size, note in heads:
                self.engine.change("INSERT INTO head (size, note) VALUES (?, ?)", (size, note))
            for row, erased in rows:
                if erased:
                    length = evidence.parse_header(row.header).length
                    values = (row.number, length, time, "erased before this log was imported", "", "")
                    self.engine.change("INSERT INTO erased VALUES (?, ?, ?, ?, ?, ?)", values)

    def forget(self) -> None:
        """Forget what may not have become durable."""
        self._sources, self._numbers = {}, {}
        self._types, self._type_numbers = {}, {}
        self._present = set()

    def _columns(self, rows: Sequence[Row]) -> tuple[list[tuple[Any, ...]], set[tuple[int, int, int]]]:
        """The columns of new entries, and in which blocks their sources and types are."""
        columns: list[tuple[Any, ...]] = []
        present: set[tuple[int, int, int]] = set()
        key, source = ("", ""), 0
        for row in rows:
            if (row.writer, row.stream) != key:
                key = (row.writer, row.stream)
                source = self._number(key)
            kind = self._type(row.octets)
            block = row.number // BLOCK
            present.add((SOURCE, source, block))
            if kind is not None:
                present.add((TYPE, kind, block))
            leaf, salt = row.leaf[:TAG], row.salt or None
            columns.append((row.number, source, row.seq, row.time, kind, row.digest, leaf, row.octets, salt))
        return columns, present

    def source(self, number: int) -> tuple[str, str]:
        """Writer and stream of a source. Raises KeyError."""
        if number not in self._sources:
            self._read_sources()
        return self._sources[number]

    def _read_sources(self) -> None:
        found = {number: (writer, stream) for number, writer, stream in self.engine.rows("SELECT * FROM source")}
        self._sources.update(found)
        self._numbers.update({key: number for number, key in found.items()})

    def _find(self, key: tuple[str, str]) -> int | None:
        if key not in self._numbers:
            self._read_sources()
        return self._numbers.get(key)

    def sources(self) -> dict[int, tuple[str, str]]:
        """Writer and stream of all sources."""
        self._read_sources()
        return dict(self._sources)

    def _number(self, key: tuple[str, str]) -> int:
        """The number of a source, which is made where there is none yet; inside a transaction."""
        number = self._find(key)
        if number is None:
            number = max(self._sources, default=0) + 1
            self.engine.change("INSERT INTO source VALUES (?, ?, ?)", (number, *key))
            self._sources[number], self._numbers[key] = key, number
        return number

    def _type(self, octets: bytes) -> int | None:
        """The number of the type of the event that *octets* are; inside a transaction."""
        name = event_type(octets)
        if name is None:
            return None
        if not self._types:
            self._read_types()
        number = self._type_numbers.get(name)
        if number is None and len(self._types) < TYPES:
            number = max(self._types, default=0) + 1
            self.engine.change("INSERT INTO type VALUES (?, ?)", (number, name))
            self._types[number], self._type_numbers[name] = name, number
        return number

    def _read_types(self) -> None:
        self._types = {number: name for number, name in self.engine.rows("SELECT number, name FROM type")}
        self._type_numbers = {name: number for number, name in self._types.items()}

    def head(self) -> str | None:
        """The note of the newest tree head."""
        row = self._one("SELECT note FROM head ORDER BY size DESC LIMIT 1")
        return str(row[0]) if row else None

    def known(self, writer: str, stream: str, first: int, last: int) -> dict[int, Known]:
        """What *writer* has in *stream* under the sequence numbers from *first* to *last*."""
        source = self._find((writer, stream))
        if source is None:
            return {}
        query = "SELECT seq, number, digest, salt, time, octets IS NULL FROM entry"
        rows = self.engine.rows(f"{query} WHERE source = ? AND seq BETWEEN ? AND ?", (source, first, last))
        return {row[0]: Known(row[1], row[2], row[3], row[4], bool(row[5])) for row in rows}

    def last_seq(self, writer: str, stream: str) -> int:
        """The highest sequence number of a writer's stream; 0 when it has none."""
        source = self._find((writer, stream))
        row = self._one("SELECT max(seq) FROM entry WHERE source = ?", (source,)) if source else None
        return int(row[0] or 0) if row else 0

    # --- Entries as they are ---

    def headers(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes, bytes]]:
        """Number, header and leaf of the entries from *first* on, before *end*. Raises TamperedError."""
        for number, header, leaf, _, _ in self.walk(first, end, octets=False):
            yield number, header, leaf

    def walk(
        self, first: int = 0, end: int | None = None, octets: bool = True
    ) -> Iterator[tuple[int, bytes, bytes, int, int]]:
        """Number, header, leaf, source and kept length of entries in order, each checked. Raises TamperedError.

        Without *octets* they are not read, and their digest is believed. Memory does not grow with the log.
        """
        lengths: Mapping[int, int] = _Lengths(self)
        prefixes: dict[int, str] = {}
        known, stamp = -1, ""
        sha256, expected = hashlib.sha256, first
        what = "octets, salt" if octets else "length(octets), NULL"
        query = f"SELECT number, source, seq, time, digest, leaf, {what} FROM entry WHERE number >= ?"
        values: tuple[int, ...] = (first,) if end is None else (first, end)
        query += "" if end is None else " AND number < ?"
        for number, source, seq, time, digest, tag, kept, salt in self.engine.walk(f"{query} ORDER BY number", values):
            if number != expected:
                raise TamperedError(expected, "it is not there")
            expected += 1
            if time != known:
                known, stamp = time, text_time(time)
            prefix = prefixes.get(source)
            if prefix is None:
                prefix = prefixes[source] = self._prefix(number, source)
            if not octets:
                length = lengths[number] if kept is None else kept
            elif kept is None:
                length = lengths[number]
            else:
                length = len(kept)
                if sha256(salt + kept if salt else kept).digest() != digest:
                    raise TamperedError(number, "its octets do not match the digest in its header")
            header = f"{prefix}{stamp}\nseq {seq}\nlength {length}\ndigest sha256 {digest.hex()}\n".encode()
            leaf = sha256(b"\0" + header).digest()
            if leaf[:8] != tag:
                raise TamperedError(number, "its header does not have its leaf hash")
            yield number, header, leaf, source, length if kept is not None else 0

    def _prefix(self, number: int, source: int) -> str:
        """The header of an entry of this source up to its time."""
        try:
            writer, stream = self.source(source)
        except KeyError:
            raise TamperedError(number, "its source is unknown") from None
        return f"{evidence.VERSION}\nlog {self.origin}\nstream {stream}\nwriter {writer}\ntime "

    def _header(self, number: int, row: Sequence[Any]) -> bytes:
        """The header of an entry (number, source, seq, time, type, digest, leaf, octets, salt), checked."""
        _, source, seq, time, _, digest, tag, octets, _ = row
        length = self.length(number) if octets is None else len(octets)
        prefix = self._prefix(number, source)
        header = f"{prefix}{text_time(time)}\nseq {seq}\nlength {length}\ndigest sha256 {digest.hex()}\n".encode()
        if evidence.leaf_hash(header)[:TAG] != tag:
            raise TamperedError(number, "its header does not have its leaf hash")
        return header

    def length(self, number: int) -> int:
        """The length of octets that were erased. Raises TamperedError."""
        row = self._one("SELECT length FROM erased WHERE entry = ?", (number,))
        if row is None:
            raise TamperedError(number, "its octets are gone without a reason")
        return int(row[0])

    def _entry(self, number: int) -> Any:
        return self._one(f"SELECT {_ENTRY} FROM entry WHERE number = ?", (number,))

    def _checked(self, number: int, row: Sequence[Any]) -> bytes:
        """The header of an entry whose octets have its digest. Raises TamperedError, and rings the alarm."""
        try:
            header = self._header(number, row)
            if row[7] is not None and hashlib.sha256((row[8] or b"") + row[7]).digest() != row[5]:
                raise TamperedError(number, "its octets do not match the digest in its header")
        except TamperedError as error:
            self.alarm(error)
            raise
        return header

    # --- What readers ask ---

    def entry(self, number: int) -> dict[str, Any] | None:
        """The fields of an entry. Raises TamperedError."""
        row = self._entry(number)
        if row is None:
            return None
        header = self._checked(number, row)
        fields: dict[str, Any] = {**self.named(row[:5]), "header": header.decode()}
        if row[7] is None:
            query = "SELECT time, reason, first, second FROM erased WHERE entry = ?"
            fields["erased"] = dict(
                zip(("time", "reason", "first", "second"), self._one(query, (number,)), strict=True)
            )
        return fields

    def payload(self, number: int) -> tuple[bytes, bytes | None, bytes] | None:
        """Header, octets and salt of an entry; octets are None once erased. Raises TamperedError."""
        row = self._entry(number)
        return (self._checked(number, row), row[7], row[8] or b"") if row else None

    def provable(self, number: int) -> tuple[bytes, bytes] | None:
        """Header and salt of an entry. Changed octets ring the alarm, but the header that convicts them is given.

        Raises TamperedError where the header itself was changed.
        """
        row = self._entry(number)
        if row is None:
            return None
        try:
            return self._checked(number, row), row[8] or b""
        except TamperedError:
            return self._header(number, row), row[8] or b""

    def entries(self) -> int:
        """How many entries there are."""
        row = self._one("SELECT max(number) FROM entry")
        return 0 if row[0] is None else int(row[0]) + 1

    def named(self, row: Sequence[Any]) -> dict[str, Any]:
        """The fields of number, source, seq, time and type as they are told."""
        number, source, seq, time, kind = row
        writer, stream = self.source(source)
        if kind is not None and kind not in self._types:
            self._read_types()
        fields = (number, writer, stream, seq, text_time(time), self._types.get(kind) if kind is not None else None)
        return dict(zip(("index", "writer", "stream", "seq", "time", "type"), fields, strict=True))

    def heads(self, after: int = -1, limit: int | None = None) -> Iterator[tuple[int, str]]:
        """Size and note of the tree heads larger than *after*."""
        query = "SELECT size, note FROM head WHERE size > ? ORDER BY size"
        for row in self.engine.walk(query if limit is None else f"{query} LIMIT {limit:d}", (after,)):
            yield row[0], row[1]

    def heads_after(self, size: int) -> int:
        """How many tree heads are larger than *size*."""
        return int(self._one("SELECT count(*) FROM head WHERE size > ?", (size,))[0])

    def anchors(self, after: int = -1) -> list[tuple[str, str, int, str, bytes]]:
        """Kind, name, size, time and octets of what third parties said of tree heads larger than *after*."""
        query = "SELECT kind, name, size, time, octets FROM anchor WHERE size > ? ORDER BY number"
        return [(row[0], row[1], row[2], row[3], row[4]) for row in self.engine.rows(query, (after,))]

    def keep_anchor(self, kind: str, name: str, size: int, time: str, octets: bytes) -> None:
        """Keep what a third party said of a tree head."""
        query = "INSERT INTO anchor (kind, name, size, time, octets) VALUES (?, ?, ?, ?, ?)"
        self.engine.change(query, (kind, name, size, time, octets))

    def chain(self) -> str:
        """All certificates below the root, PEM, the newest first."""
        return "".join(pem for (pem,) in self.engine.rows("SELECT pem FROM certificate ORDER BY number DESC"))

    def certificate(self, kind: str) -> str:
        """The newest certificate of a kind, PEM."""
        row = self._one("SELECT pem FROM certificate WHERE kind = ? ORDER BY number DESC LIMIT 1", (kind,))
        return str(row[0]) if row else ""

    # --- Octets that go ---

    def old(self, sources: Sequence[int], before: int, first: int, limit: int) -> list[tuple[int, int]]:
        """Number and length of entries from *first* on, of these sources, older than *before*, with octets."""
        if not sources:
            return []
        named = ",".join(f"{source:d}" for source in sources)
        query = f"SELECT number, length(octets) FROM entry WHERE number >= ? AND number < ? AND source IN ({named})"
        rows = self.engine.rows(f"{query} AND octets IS NOT NULL ORDER BY number LIMIT ?", (first, before, limit))
        return [(row[0], row[1]) for row in rows]

    def first_at(self, time: int) -> int:
        """The number of the first entry at *time* (milliseconds) or later; times never fall, so it is halved for."""
        low, high = 0, self.entries()
        while low < high:
            middle = (low + high) // 2
            row = self._one("SELECT time FROM entry WHERE number = ?", (middle,))
            if row is not None and row[0] < time:
                low = middle + 1
            else:
                high = middle
        return low

    def erase(self, numbers: Sequence[int]) -> None:
        """Remove octets and salts whose reasons are kept already; their account may be another one."""
        with self.engine.transaction():
            for number in numbers:
                self.engine.change("UPDATE entry SET octets = NULL, salt = NULL WHERE number = ?", (number,))
        self.engine.scrub()

    def unfinished(self) -> list[int]:
        """Entries with a reason to be erased that still have their octets: somebody was killed in between."""
        query = "SELECT entry FROM erased JOIN entry ON number = entry WHERE octets IS NOT NULL"
        return [number for (number,) in self.engine.rows(query)]

    # --- Clients and signatures ---

    def client(self, fingerprint: str) -> Client | None:
        """A client as registered last."""
        row = self._one(
            f"SELECT {_CLIENT} FROM client WHERE fingerprint = ? ORDER BY number DESC LIMIT 1", (fingerprint,)
        )
        return Client(*row) if row else None

    def clients(self, after: int) -> list[Client]:
        """The registrations after number *after*, in order."""
        query = f"SELECT {_CLIENT} FROM client WHERE number > ? ORDER BY number"
        return [Client(*row) for row in self.engine.rows(query, (after,))]

    def register(self, client: Client) -> None:
        """Keep a registration. Raises DuplicateError where its number is taken."""
        self.engine.change(f"INSERT INTO client ({_CLIENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(client))

    def signature(self, number: int) -> tuple[str, str, bytes] | None:
        """Key, time and value of the signed digest of an entry, where it was made."""
        row = self._one(
            "SELECT c.fingerprint, s.time, s.value FROM signature s JOIN certificate c ON c.number = s.certificate"
            " WHERE s.entry = ?",
            (number,),
        )
        return (row[0], row[1], row[2]) if row else None

    def keep_signature(self, number: int, time: str, value: bytes) -> None:
        """Keep a signed digest by the newest sign key; the first one stays."""
        self.engine.change(
            f"{self.engine.new} signature SELECT ?, max(number), ?, ? FROM certificate WHERE kind = 'sign'",
            (number, time, value),
        )


class _Lengths(dict[int, int]):
    """Lengths of erased octets, asked for one by one: there are few."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def __missing__(self, number: int) -> int:
        return self.store.length(number)


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


@functools.lru_cache(maxsize=64)
def milliseconds(text: str) -> int:
    """The milliseconds since the epoch of an event time. Raises ValueError."""
    match = _STAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 2026-11-23T08:00:00.123Z")
    return int(_seconds(match[1])) * 1000 + int(match[2])


def _seconds(text: str) -> int:
    import calendar

    return calendar.timegm(clock.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def text_time(time: int) -> str:
    """The event time of milliseconds since the epoch."""
    whole, part = divmod(time, 1000)
    return clock.strftime("%Y-%m-%dT%H:%M:%S.", clock.gmtime(whole)) + f"{part:03d}Z"
