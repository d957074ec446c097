# SPDX-License-Identifier: Apache-2.0
"""The D-Box's database on a MariaDB or MySQL server: connections, transactions, errors. Queries are in `dboxlib.store`.

A batch goes in as INSERT statements of many rows with x'…' literals: PyMySQL's escaping of octets costs ten times
more, and hexadecimal digits of our own cannot end a literal. Text from outside always goes in as a parameter.
"""

import contextlib
import functools
import getpass
import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from dre.errors import DreError, MissingError, NotPermittedError, UsageError

from dboxlib.migrations import statements
from dboxlib.storage import DuplicateError, FullError, StorageError

NEW = "INSERT IGNORE INTO"
STATEMENT = 4 * 1024 * 1024  # octets of one INSERT, unless a single record needs more
PACKET = 40 * 1024 * 1024  # the server must take: a record of 16 MiB in hexadecimal
WAIT = 60  # seconds for one answer of the server
_GONE = (2002, 2003, 2006, 2013, 2055)
_DUPLICATE = (1062, 1169)
_FULL = (1021, 1041, 1114)


class Engine:
    """One database of a server."""

    new = NEW

    def __init__(self, url: str, write: bool, password_file: Path | None = None) -> None:
        self.url, self.write = url, write
        self._where = _arguments(url, password_file)
        self.name = f"mysql://{self._where['user']}@{self._where.get('unix_socket') or self._where['host']}"
        self.name += f"/{self._where['database']}"
        self._local = threading.local()
        if write:
            self._durable()

    def connection(self) -> Any:
        """This thread's connection."""
        database = getattr(self._local, "database", None)
        if database is None:
            pymysql = _pymysql()
            with self._errors():
                database = pymysql.connect(**self._where)
            self._local.database = database
            self._local.busy = False
        return database

    def close(self) -> None:
        """Close this thread's connection."""
        database = getattr(self._local, "database", None)
        if database is not None:
            self._local.database = None
            with contextlib.suppress(Exception):  # it may be broken already
                database.close()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        found: list[tuple[Any, ...]] = self._again(lambda: self._rows(query, values))
        return found

    def _rows(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._errors(), self.connection().cursor() as cursor:
            cursor.execute(_translated(query), values)
            return list(cursor.fetchall())

    def walk(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, read while they are asked for: over a connection of its own, which it occupies."""
        pymysql = _pymysql()
        with self._errors():
            database = pymysql.connect(**self._where, cursorclass=pymysql.cursors.SSCursor)
        try:
            with self._errors():
                cursor = database.cursor()
                cursor.execute(_translated(query), values)
                while rows := cursor.fetchmany(1000):
                    yield from rows
        finally:
            # Not close(): it would read the rest of the answer first.
            database._force_close()

    def change(self, query: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement and return how many rows it changed."""
        with self._errors(), self.connection().cursor() as cursor:
            return int(cursor.execute(_translated(query), values))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; durable afterwards."""
        self._again(lambda: self._query("BEGIN"))
        self._local.busy = True
        try:
            yield
            self._query("COMMIT")
        except BaseException:
            self._local.busy = False
            try:
                self._query("ROLLBACK")
            except StorageError:
                self.close()  # the server rolls back what a lost connection began
            raise
        finally:
            self._local.busy = False

    def entries(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add entries: number, source, seq, time, type, digest, leaf, octets, salt."""
        texts, length = list[str](), 0
        for number, source, seq, time, kind, digest, leaf, octets, salt in rows:
            text = (
                f"({number:d},{source:d},{seq:d},{time:d},{'NULL' if kind is None else format(kind, 'd')},"
                f"x'{digest.hex()}',x'{leaf.hex()}',x'{octets.hex()}',{_hex(salt)})"
            )
            if length + len(text) > STATEMENT and texts:
                self._insert(texts)
                texts, length = [], 0
            texts.append(text)
            length += len(text)
        if texts:
            self._insert(texts)

    def _insert(self, texts: Sequence[str]) -> None:
        self._query("INSERT INTO entry VALUES " + ",".join(texts))

    def _query(self, text: str) -> None:
        with self._errors():
            self.connection().query(text)

    def _again(self, call: Any) -> Any:
        """Once more with a new connection when the server closed an idle one; never inside a transaction."""
        try:
            return call()
        except StorageError as error:
            cause = error.number if isinstance(error, _ServerError) else 0
            if cause not in _GONE or getattr(self._local, "busy", False):
                raise
            self.close()
            return call()

    def scrub(self) -> None:
        """Nothing: the server purges by itself what it keeps for others."""

    def take(self) -> None:
        """Be the only sequencer of this server for as long as this thread's connection lives. Raises DreError."""
        held = self.rows("SELECT get_lock(concat('dre-dbox.', database()), 0)")
        if held[0][0] != 1:
            raise DreError(f"{self.name}: another sequencer writes this log")

    def free(self) -> tuple[int, int] | None:
        """Octets that are free and all of the disk, where the server's directory is on this host and may be seen."""
        try:
            found = os.statvfs(self.rows("SELECT @@datadir")[0][0])
        except (OSError, StorageError):
            return None
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def _durable(self) -> None:
        """Refuse a server that acknowledges a commit before it is on disk, or takes no large records."""
        flush, packet = self.rows("SELECT @@innodb_flush_log_at_trx_commit, @@max_allowed_packet")[0]
        if flush != 1:
            raise DreError(f"{self.name}: innodb_flush_log_at_trx_commit is {flush}; a receipt needs 1")
        if packet < PACKET:
            raise DreError(f"{self.name}: max_allowed_packet is {packet}; an entry of the largest size needs {PACKET}")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        pymysql = _pymysql()
        try:
            yield
        except (pymysql.MySQLError, OSError) as error:
            number, text = error.args if len(error.args) == 2 else (0, str(error))
            if number in (1044, 1045, 1142, 1143, 1227, 1698):
                raise NotPermittedError(f"{self.name}: {text}") from None
            if number == 1049:
                raise MissingError(f"{self.name}: {text}; dbox-init(8) tells how to make it") from None
            kind = DuplicateError if number in _DUPLICATE else FullError if number in _FULL else _ServerError
            made = kind(f"{self.name}: {text}")
            if isinstance(made, _ServerError):
                made.number = number
            raise made from None


class _ServerError(StorageError):
    """With the server's number."""

    number = 0


def _hex(octets: bytes | None) -> str:
    return f"x'{octets.hex()}'" if octets else "NULL"


@functools.lru_cache(maxsize=256)
def _translated(query: str) -> str:
    return query.replace("%", "%%").replace("?", "%s")


def _pymysql() -> Any:
    try:
        importlib.import_module("pymysql.cursors")
        return importlib.import_module("pymysql")
    except ImportError:
        raise MissingError("python3-pymysql is not installed; apt-get install python3-pymysql") from None


def _arguments(url: str, password_file: Path | None) -> dict[str, Any]:
    """What PyMySQL needs to connect to `mysql://[USER@]HOST[:PORT]/DATABASE[?unix_socket=…&password_file=…]`."""
    split = urlsplit(url)
    options = {key: values[-1] for key, values in parse_qs(split.query).items()}
    password = options.get("password_file", password_file)
    database = split.path.removeprefix("/")
    if not database or "/" in database:
        raise UsageError(f"{url}: expected mysql://[USER@]HOST[:PORT]/DATABASE")
    where: dict[str, Any] = {
        # By default the name of this process's user, as with the server's own programs and plugin unix_socket.
        "user": unquote(split.username or "") or getpass.getuser(),
        "host": split.hostname or "localhost",
        "port": split.port or 3306,
        "database": database,
        "charset": "utf8mb4",
        "autocommit": True,
        "connect_timeout": 10,
        "read_timeout": WAIT,
        "write_timeout": WAIT,
        "max_allowed_packet": 1 << 30,
    }
    if "unix_socket" in options:
        where["unix_socket"] = options["unix_socket"]
    if password:
        where["password"] = _secret(Path(password))
    return where


def _secret(path: Path) -> str:
    """The password in a file that nobody else may read."""
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path}: must not be readable by others")
        return path.read_text().rstrip("\n")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except PermissionError:
        raise NotPermittedError(f"{path}: may not be read by this user") from None


def create(url: str, password_file: Path | None = None) -> Engine:
    """The present tables, in a database without entries: one that a killed dbox-init left is begun anew."""
    engine = Engine(url, True, password_file)
    for statement in statements("schema-mysql.sql"):
        engine.change(statement)
    if engine.rows("SELECT number FROM entry LIMIT 1"):
        raise DreError(f"{engine.name}: holds entries of a log; nothing was changed")
    for name in ("log", "certificate", "client", "source", "type", "head"):
        if engine.rows(f"SELECT 1 FROM {name} LIMIT 1"):
            engine.change(f"DELETE FROM {name}")
    return engine
