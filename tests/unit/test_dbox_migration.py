# SPDX-License-Identifier: Apache-2.0
"""A database of version 1 becomes one of version 2, whole or not at all; its headers stay octet for octet."""

import os
import pathlib
import random
import sqlite3
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "dbox"))
from dboxlib import searching, store  # noqa: E402
from dboxlib.clients import Client  # noqa: E402
from dre import evidence  # noqa: E402

SCHEMA = """
CREATE TABLE log (version INTEGER NOT NULL, origin TEXT NOT NULL, box TEXT NOT NULL) STRICT;
CREATE TABLE entry (
    number INTEGER PRIMARY KEY CHECK (number >= 0), writer TEXT NOT NULL, stream TEXT NOT NULL, seq INTEGER NOT NULL,
    time TEXT NOT NULL, type TEXT, header BLOB NOT NULL, octets BLOB, salt BLOB NOT NULL DEFAULT x'',
    leaf BLOB NOT NULL, UNIQUE (writer, stream, seq)
) STRICT;
CREATE INDEX entry_stream ON entry (stream, number);
CREATE INDEX entry_type ON entry (type, number) WHERE type IS NOT NULL;
CREATE TABLE head (size INTEGER PRIMARY KEY CHECK (size >= 0), note TEXT NOT NULL) STRICT;
CREATE TABLE certificate (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, fingerprint TEXT NOT NULL UNIQUE, pem TEXT NOT NULL
) STRICT;
CREATE TABLE client (
    number INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('writer', 'reader', 'auditor', 'admin')), time TEXT NOT NULL
) STRICT;
CREATE INDEX client_fingerprint ON client (fingerprint, number);
CREATE TABLE signature (
    entry INTEGER PRIMARY KEY REFERENCES entry, key TEXT NOT NULL, time TEXT NOT NULL, value BLOB NOT NULL
) STRICT;
CREATE TRIGGER entry_kept BEFORE UPDATE ON entry BEGIN SELECT raise(ABORT, 'entries are only appended'); END;
CREATE TRIGGER entry_stays BEFORE DELETE ON entry BEGIN SELECT raise(ABORT, 'entries are only appended'); END;
CREATE TRIGGER client_kept BEFORE UPDATE ON client BEGIN SELECT raise(ABORT, 'add a row instead'); END;
CREATE TRIGGER signature_kept BEFORE UPDATE ON signature BEGIN SELECT raise(ABORT, 'signatures stay'); END;
"""
ENTRIES = 2000


def old(path, entries=ENTRIES):
    """A database of version 1, and its headers and octets."""
    kept = []
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(SCHEMA)
        database.execute("INSERT INTO log VALUES (1, 'host/dbox/1', '1')")
        database.execute("INSERT INTO certificate VALUES (1, 'sign', 'abc', 'pem')")
        database.execute("INSERT INTO client VALUES (1, 'f', 'writer', 'writer', '2026-01-01T00:00:00.000Z')")
        for number in range(entries):
            octets = b'{"type":"app.%d"}' % (number % 3) if number % 2 else b"%d" % number
            writer, stream = "ab"[number % 2] * 64, ("app", "script")[number % 5 == 0]
            when = f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1000:03d}Z"
            header = evidence.Header(
                "host/dbox/1", stream, writer, when, number + 1, len(octets), evidence.digest(octets)
            ).octets()
            kept.append((header, octets))
            database.execute(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, x'', ?)",
                (number, writer, stream, number + 1, when, store.event_type(octets), header, octets)
                + (evidence.leaf_hash(header),),
            )
        database.execute("INSERT INTO signature VALUES (3, 'abc', '2026-01-01T00:00:00.000Z', x'01')")
        database.execute("INSERT INTO head VALUES (?, 'note')", (entries,))
    database.close()
    return kept


def same(path, kept):
    with_all = store.open(path, True)
    try:
        found = [(header, with_all.payload(number)[1]) for number, header, *_ in with_all.walk()]
        assert found == kept
        assert with_all.client("f") == Client(1, "f", "writer", "writer", "2026-01-01T00:00:00.000Z")
        assert with_all.signature(3) == ("abc", "2026-01-01T00:00:00.000Z", b"\1")
        rows = list(searching.find(with_all, {"stream": "script", "type": "app.1"}, 5000))
        expected = [
            number
            for number, (header, octets) in enumerate(kept)
            if b"\nstream script\n" in header and b'"app.1"' in octets
        ]
        assert expected and [row["index"] for row in rows] == expected
        with pytest.raises(store.DuplicateError, match="only appended"):
            with_all.engine.change("UPDATE entry SET time = 0")
        with_all.register(Client(2, "f", "writer", "revoked", "2026-01-02T00:00:00.000Z", "app"))
    finally:
        with_all.close()


def test_version_1_becomes_version_2(tmp_path):
    kept = old(tmp_path / "log")
    with pytest.raises(store.DreError, match="of version 2"):
        store.open(tmp_path / "log")
    same(tmp_path / "log", kept)


def test_killed_at_any_moment_it_is_one_or_the_other(tmp_path):
    kept = old(tmp_path / "log")
    code = "import sys; sys.path[:0] = sys.argv[2:]; from dboxlib import store; store.open(sys.argv[1], True).close()"
    argv = [sys.executable, "-c", code, tmp_path / "log", *sys.path[:3]]
    before = set()
    for number in range(int(os.environ.get("DRE_KILLS", "4"))):
        child = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        time.sleep(0.1 + random.uniform(0, 0.15) if number else 0.16)
        child.kill()
        child.wait()
        with sqlite3.connect(tmp_path / "log") as database:
            (version,) = database.execute("SELECT version FROM log").fetchone()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        database.close()
        assert not any(name.startswith("old_") for name in tables) and (version == 2) == ("source" in tables)
        before.add(version)
    same(tmp_path / "log", kept)


def test_a_changed_entry_stops_it_and_nothing_was_changed(tmp_path):
    old(tmp_path / "log", 20)
    with sqlite3.connect(tmp_path / "log") as database:
        database.execute("DROP TRIGGER entry_kept")
        database.execute("UPDATE entry SET header = (SELECT header FROM entry WHERE number = 8) WHERE number = 7")
    database.close()
    before = (tmp_path / "log").read_bytes()
    with pytest.raises(store.DreError, match="entry 7 was changed"):
        store.open(tmp_path / "log", True)
    assert (tmp_path / "log").read_bytes() == before
