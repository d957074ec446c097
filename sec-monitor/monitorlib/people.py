# SPDX-License-Identifier: Apache-2.0
"""Who may change rules by the page: people with a role, known by a password, by a client certificate, or by both.

The register is root's, as are passwords and sessions. A person of the page and one who logs in to the host under the
same name are one person, so that nobody approves what he proposed. Each change of a role is recorded in the D-Box.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dre import accounts, event
from dre.conf import Conf
from dre.dbox import Recorder
from dre.errors import NotFoundError, UsageError

from monitorlib import versions

# What each role may.
ROLES = {
    "reader": {"see"},
    "author": {"see", "test", "propose"},
    "approver": {"see", "test", "propose", "approve"},
}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS person (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
    certificate TEXT NOT NULL, time TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS person_certificate ON person (certificate) WHERE certificate != '';
"""
_COLUMNS = "name, role, certificate, time, number"


@dataclass(frozen=True)
class Registered:
    """One who has a role; *certificate* is the SHA-256 of a client certificate in hex, or nothing."""

    name: str
    role: str
    certificate: str
    time: str
    number: int = 0


def prepare(conf: Conf) -> Path:
    """Make what is kept of people, once."""
    conf.core_state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    return accounts.prepare(conf.core_state_dir / "rules-page", more=_SCHEMA)


class People(accounts.Accounts):
    """The register beside passwords and sessions; a changed role has another number, which ends the sessions."""

    def all(self) -> list[Registered]:
        """Everybody, by name."""
        with self.opened() as database:
            return [Registered(*row) for row in database.execute(f"SELECT {_COLUMNS} FROM person ORDER BY name")]  # noqa: S608

    def find(self, name: str = "", certificate: str = "") -> Registered | None:
        """Who has that name, or that certificate."""
        column, value = ("certificate", certificate) if certificate else ("name", name)
        with self.opened() as database:
            found = database.execute(f"SELECT {_COLUMNS} FROM person WHERE {column} = ?", (value,)).fetchone()  # noqa: S608
        return Registered(*found) if found and value else None

    def register(self, conf: Conf, name: str, role: str, certificate: str) -> None:
        """Give *name* a role, which is recorded first. Raises UsageError where another person has the certificate."""
        other = self.find(certificate=certificate) if certificate else None
        if other and other.name != name:
            raise UsageError(f"{other.name} has this certificate already")
        made = Registered(name, role, certificate, event.stamp())
        _record(conf, made)
        with self.opened() as database:
            fields = (name, role, certificate, made.time)
            database.execute(
                "INSERT OR REPLACE INTO person (name, role, certificate, time) VALUES (?, ?, ?, ?)", fields
            )

    def revoke(self, conf: Conf, name: str) -> None:
        """Take role, password and sessions of *name*. Raises NotFoundError."""
        if self.find(name) is None:
            raise NotFoundError(f"no person {name!r}")
        _record(conf, Registered(name, "revoked", "", event.stamp()))
        with self.opened() as database:
            database.execute("DELETE FROM person WHERE name = ?", (name,))
        self.forget(name)


def _record(conf: Conf, made: Registered) -> None:
    """Tell the D-Box; it waits in the spool until somebody delivers it."""
    said = {"person": asdict(made), "by": versions.person()}
    Recorder(conf, versions.CLIENT).record(versions.STREAM, json.dumps(said).encode(), f"rules-{event.new_id()}")
