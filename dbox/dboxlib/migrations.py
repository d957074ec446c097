# SPDX-License-Identifier: Apache-2.0
"""Databases of earlier versions brought up to date: one step for each version, each step one transaction.

Killed anywhere, the next start finds the database as it was before the step or after it. Version 1 was on SQLite
only; what a server needs besides `schema-mysql.sql` begins with version 3, whenever there is one.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dre import evidence
from dre.errors import DreError

from dboxlib.storage import Engine

VERSION = 2
_CLIENT = ("fingerprint", "name", "role", "time", "streams", "local", "until")


def run(engine: Engine, version: int) -> None:
    """Go from *version* to the present one. Raises DreError, and then nothing was changed."""
    for step in range(version, VERSION):
        with engine.transaction():
            STEPS[step](engine)
            engine.change("UPDATE log SET version = ?", (step + 1,))


def statements(name: str) -> list[str]:
    """The statements of a schema file, without comments."""
    text = re.sub(r"--[^\n]*", "", Path(__file__).with_name(name).read_text())
    found, begun = [], ""
    for part in text.split(";"):
        begun += part + ";"
        if part.strip() and sqlite3.complete_statement(begun):  # a trigger has semicolons inside
            found.append(begun.strip().removesuffix(";"))
            begun = ""
    return found


def _slim(engine: Engine) -> None:
    """Version 2: entries without their headers, which their columns make again; sources and types by number."""
    old = ("entry", "client", "signature")
    for (name,) in engine.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
        engine.change(f"DROP TRIGGER {name}")
    for (name,) in engine.rows("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"):
        engine.change(f"DROP INDEX {name}")
    for name in old:
        engine.change(f"ALTER TABLE {name} RENAME TO old_{name}")
    made = {name for (name,) in engine.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    triggers = []
    for statement in statements("schema.sql"):
        if statement.startswith("CREATE TRIGGER"):
            triggers.append(statement)
        elif statement.split()[2] not in made:
            engine.change(statement)
    _entries(engine)
    columns = [row[1] for row in engine.rows("PRAGMA table_info(old_client)")]
    kept = ", ".join(name for name in _CLIENT if name in columns)
    engine.change(f"INSERT INTO client (number, {kept}) SELECT number, {kept} FROM old_client ORDER BY number")
    engine.change(
        "INSERT INTO signature SELECT s.entry, c.number, s.time, s.value FROM old_signature s"
        " JOIN certificate c ON c.fingerprint = s.key"
    )
    for name in reversed(old):
        engine.change(f"DROP TABLE old_{name}")
    for statement in triggers:
        engine.change(statement)


def _entries(engine: Engine) -> None:
    from dboxlib import store  # which knows this module

    origin = engine.rows("SELECT origin FROM log")[0][0]
    sources: dict[tuple[str, str], int] = {}
    types: dict[str, int] = {}
    present: set[tuple[int, int, int]] = set()

    def converted() -> Iterator[tuple[Any, ...]]:
        query = "SELECT number, type, header, octets, salt, leaf FROM old_entry ORDER BY number"
        for number, kind, header, octets, salt, leaf in engine.walk(query):
            fields = evidence.parse_header(header)
            if evidence.leaf_hash(header) != leaf or fields.log != origin or octets is None:
                raise DreError(f"{engine.name}: entry {number} was changed: its header does not have its leaf hash")
            source = sources.setdefault((fields.writer, fields.stream), len(sources) + 1)
            if kind is not None:
                kind = types.setdefault(kind, len(types) + 1)
                present.add((1, kind, number // store.BLOCK))
            present.add((0, source, number // store.BLOCK))
            digest, time = bytes.fromhex(fields.digest), store.milliseconds(fields.time)
            yield number, source, fields.seq, time, kind, digest, leaf[: store.TAG], octets, salt or None

    batch = []
    for row in converted():
        batch.append(row)
        if len(batch) == 1000:
            engine.entries(batch)
            batch = []
    engine.entries(batch)
    for (writer, stream), number in sources.items():
        engine.change("INSERT INTO source VALUES (?, ?, ?)", (number, writer, stream))
    for name, number in types.items():
        engine.change("INSERT INTO type VALUES (?, ?)", (number, name))
    for row in sorted(present):
        engine.change("INSERT INTO present VALUES (?, ?, ?)", row)


STEPS: dict[int, Callable[[Engine], None]] = {1: _slim}
