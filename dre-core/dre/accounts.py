# SPDX-License-Identifier: Apache-2.0
"""What a page of ours keeps of its visitors: passwords, sessions, and how often somebody tried.

It lies in a small SQLite database of one user's own. What a visitor may do is not kept here: a session names an account
and the number of a registration, and counts for as long as the page's owner says that this one is in force.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dre import files
from dre.errors import DreError, UsageError

IDLE = 15 * 60.0  # seconds without a request after which a session ends
LONGEST = 8 * 3600.0  # seconds after which it ends anyway
WINDOW = 300.0  # seconds for which a failed login, or what else is counted, counts
PER_ACCOUNT, PER_ADDRESS = 5, 20  # failed logins in a window after which no password is looked at
SHORTEST = 12  # characters of a password
DATABASE = "ui.sqlite"
_COST = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}
_BUSY = threading.BoundedSemaphore(2)  # scrypt takes 32 MiB each time
_SECRET = "secret"  # noqa: S105  # the name of a file
_SCHEMA = """
CREATE TABLE IF NOT EXISTS password (name TEXT PRIMARY KEY, hash TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS session (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, number INTEGER NOT NULL, begin REAL NOT NULL, seen REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS attempt (key TEXT NOT NULL, time REAL NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS attempt_key ON attempt (key, time);
"""


def prepare(place: Path, owner: tuple[int, int] | None = None, more: str = "") -> Path:
    """Make *place* with database and the secret that signs sessions, once; *more* is a schema for further tables.

    *owner* is the uid and gid that it all shall belong to, where that is not who calls.
    """
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (place / _SECRET).exists():
        files.write_atomic(place / _SECRET, secrets.token_bytes(32), 0o400)
    with contextlib.closing(sqlite3.connect(place / DATABASE, timeout=10.0)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(_SCHEMA + more)
    (place / DATABASE).chmod(0o600)
    if owner is not None:
        for path in (place, *place.iterdir()):
            os.chown(path, *owner, follow_symlinks=False)
    return place


class Accounts:
    """The open database; each call is a transaction of its own, so that threads and processes may share it."""

    def __init__(self, place: Path) -> None:
        self.path = place / DATABASE
        self._secret = (place / _SECRET).read_bytes()

    @contextlib.contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """The database for one transaction."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=10.0)) as database, database:
            yield database

    def mac(self, *words: str) -> str:
        """What only the owner of the secret can have made of *words*: hex."""
        return hmac.new(self._secret, "\0".join(words).encode(), hashlib.sha256).hexdigest()

    # --- Passwords ---

    def set_password(self, name: str, password: str) -> None:
        """Give the account *name* a password and end its sessions. Raises UsageError."""
        value = _hashed(acceptable(password))
        with self.opened() as database:
            database.execute("INSERT OR REPLACE INTO password VALUES (?, ?)", (name, value))
            database.execute("DELETE FROM session WHERE name = ?", (name,))

    def forget(self, name: str) -> None:
        """Remove password and sessions of *name*."""
        with self.opened() as database:
            for table in ("password", "session"):
                database.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608

    def names(self) -> list[str]:
        """The accounts that have a password."""
        with self.opened() as database:
            return [name for (name,) in database.execute("SELECT name FROM password ORDER BY name")]

    def right(self, name: str, password: str) -> bool:
        """Whether *password* is that of *name*; an unknown name takes as long as a known one."""
        with self.opened() as database:
            row = database.execute("SELECT hash FROM password WHERE name = ?", (name,)).fetchone()
        kept = row[0] if row else _nobody()
        return hmac.compare_digest(_hashed(password[:256], kept), kept) and row is not None

    # --- Failed logins ---

    def attempt(self, name: str, address: str) -> int:
        """Count a login that is about to be looked at as failed; or the seconds until one will be.

        Counted before, so that many at once get no more guesses than one after the other.
        """
        return self.count(*_keys(name, address))

    def count(self, *keys: tuple[str, int]) -> int:
        """Count something for each key with its most in a window; or, counting nothing, the seconds until it may be."""
        now = time.time()
        with self.opened() as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("DELETE FROM attempt WHERE time <= ?", (now - WINDOW,))
            wait = max(_wait(database, key, most, now) for key, most in keys)
            if not wait:
                database.executemany("INSERT INTO attempt VALUES (?, ?)", [(key, now) for key, _ in keys])
        return wait

    def blocked(self, name: str, address: str) -> bool:
        """Whether the next login would not be looked at."""
        with self.opened() as database:
            return any(_wait(database, key, most, time.time()) for key, most in _keys(name, address))

    def succeeded(self, name: str, address: str) -> None:
        """Forget the failures of an account whose holder came in; of the address only this attempt."""
        newest = "SELECT rowid FROM attempt WHERE key = ? ORDER BY time DESC LIMIT 1"
        with self.opened() as database:
            database.execute("DELETE FROM attempt WHERE key = ?", (f"name {name}",))
            database.execute(f"DELETE FROM attempt WHERE rowid = ({newest})", (f"from {address}",))  # noqa: S608

    # --- Sessions ---

    def begin(self, name: str, number: int) -> str:
        """A new session of *name*, whose registration is *number*: its token, which only the browser keeps."""
        token, now = secrets.token_urlsafe(32), time.time()
        with self.opened() as database:
            database.execute("DELETE FROM session WHERE seen < ? OR begin < ?", (now - IDLE, now - LONGEST))
            database.execute("INSERT INTO session VALUES (?, ?, ?, ?, ?)", (self._id(token), name, number, now, now))
        return token

    def session(self, token: str) -> tuple[str, int] | None:
        """Name and registration number of the session of *token*, if it is in force; it is then in use again."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{43}", token):
            return None
        now, identity = time.time(), self._id(token)
        with self.opened() as database:
            row = database.execute("SELECT name, number, begin, seen FROM session WHERE id = ?", (identity,)).fetchone()
            if row is None or now - row[3] > IDLE or now - row[2] > LONGEST:
                return None
            if now - row[3] > 10:  # a write for every picture would be too much
                database.execute("UPDATE session SET seen = ? WHERE id = ?", (now, identity))
        return row[0], row[1]

    def end(self, token: str) -> None:
        """End the session of *token*."""
        with self.opened() as database:
            database.execute("DELETE FROM session WHERE id = ?", (self._id(token),))

    def _id(self, token: str) -> str:
        return self.mac("session", token)


def _keys(name: str, address: str) -> list[tuple[str, int]]:
    return [(f"name {name}", PER_ACCOUNT), (f"from {address}", PER_ADDRESS)]


def _wait(database: sqlite3.Connection, key: str, most: int, now: float) -> int:
    """Seconds until fewer than *most* attempts under *key* count."""
    query = "SELECT time FROM attempt WHERE key = ? AND time > ? ORDER BY time DESC LIMIT 1 OFFSET ?"
    row = database.execute(query, (key, now - WINDOW, most - 1)).fetchone()
    return int(row[0] + WINDOW - now) + 1 if row else 0


def ask_password(name: str, generate: bool) -> str:
    """A password for the account *name*: a new one, or that of standard input, on a terminal typed in twice.

    Raises UsageError, DreError.
    """
    if generate:
        return secrets.token_urlsafe(15)
    if not sys.stdin.isatty():
        return acceptable(sys.stdin.readline(1024).rstrip("\r\n"))
    import getpass  # late, for pages do not ask

    password = acceptable(getpass.getpass(f"Password of {name}: "))
    if getpass.getpass("Again: ") != password:
        raise DreError("typed in two ways; nothing was changed")
    return password


def acceptable(password: str) -> str:
    """*password* itself. Raises UsageError when it is none."""
    if not SHORTEST <= len(password) <= 256 or not password.isprintable():
        raise UsageError(f"a password has {SHORTEST} to 256 printable characters")
    return password


def _hashed(password: str, like: str = "") -> str:
    """The scrypt hash of a password, with the salt of *like*."""
    salt = base64.b64decode(like.split("$")[1]) if like else secrets.token_bytes(16)
    with _BUSY:
        value = hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, dklen=32, **_COST)
    return "scrypt-32768-8-1$" + "$".join(base64.b64encode(part).decode() for part in (salt, value))


def _nobody() -> str:
    return "scrypt-32768-8-1$" + base64.b64encode(bytes(16)).decode() + "$"
