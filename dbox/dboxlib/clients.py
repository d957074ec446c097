# SPDX-License-Identifier: Apache-2.0
"""Who may do what: the register of clients, and the rules of changing it.

A client is known by a fingerprint: that of its certificate, or for a local writer that of its user and executable.
The newest row of a fingerprint counts; every row becomes an entry of the log before anybody acts on it. Issuing
certificates is `dboxlib.registration`, asking who a connection belongs to is the server's.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dre import event, units
from dre.errors import DreError, UsageError

from dboxlib.storage import DuplicateError

ROLES = ("writer", "reader", "auditor", "admin")
REVOKED = "revoked"
RESERVED = ("dbox", "client")  # streams of the D-Box itself; nobody else's entry may look like one of them
STREAMS = 64  # that one writer can be bound to: the registration must fit into an event
TRIES = 50  # to get the next number of a registration
ANY = "*"  # executable of a local writer that may be any
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Client:
    """A registration, as the row of the table `client` has it."""

    number: int
    fingerprint: str
    name: str
    role: str
    time: str
    streams: str = ""
    local: str = ""
    until: str = ""

    def holds(self, now: str | None = None) -> bool:
        """Whether the role counts at *now*, or at this moment."""
        return self.role in ROLES and (not self.until or (now or event.stamp()) <= self.until)

    def may_write_to(self, stream: str) -> bool:
        """Whether a writer may append to *stream*: to its own where it is bound, never to the D-Box's."""
        return stream not in RESERVED and (not self.streams or stream in self.streams.split())

    def fields(self) -> dict[str, object]:
        """What the log and the list of clients tell of it, beside the time."""
        user, _, executable = self.local.partition(" ")
        told: dict[str, object] = {"client": self.name, "fingerprint": self.fingerprint, "role": self.role}
        told.update({"streams": self.streams.split()} if self.streams else {})
        told.update({"user": user, "executable": executable} if self.local else {})
        return {**told, "until": self.until} if self.until else told


class Table(Protocol):
    """What is asked of the store."""

    def client(self, fingerprint: str) -> Client | None: ...

    def clients(self, after: int) -> list[Client]: ...

    def register(self, client: Client) -> None: ...


def find(table: Table, fingerprint: str) -> Client | None:
    """The registration of *fingerprint* that counts, whatever its role."""
    return table.client(fingerprint) if fingerprint else None


def current(table: Table) -> list[Client]:
    """The registration that counts of every fingerprint, in order of the first."""
    return _newest(table.clients(0))


def _newest(rows: Iterable[Client]) -> list[Client]:
    newest: dict[str, Client] = {}
    for client in rows:
        newest[client.fingerprint] = client
    return list(newest.values())


def change(table: Table, wanted: Client) -> None:
    """Register *wanted* (its number and time are made here). Raises DreError where a rule forbids it.

    dbox-init, dbox-user and the sequencer, for the page, may do so at the same instant. Whoever gets the next number
    has judged by all registrations before it, and the others judge again: two cannot remove the last two
    administrators.
    """
    if wanted.role != "writer" and wanted.streams:
        raise UsageError("only a writer is bound to streams")
    for _ in range(TRIES):
        now, rows = event.stamp(), table.clients(0)
        _judge(_newest(rows), wanted, now)
        with contextlib.suppress(DuplicateError):
            return table.register(replace(wanted, number=rows[-1].number + 1 if rows else 1, time=now))
    raise DreError(f"client {wanted.name!r}: others register without a pause; nothing was changed")


def _judge(known: Iterable[Client], wanted: Client, now: str) -> None:
    """The last administrator stays. Raises DreError."""
    admins = {one.fingerprint for one in known if one.role == "admin" and one.holds(now) and not one.until}
    if admins == {wanted.fingerprint} and (wanted.role != "admin" or wanted.until):
        raise DreError(f"client {wanted.name!r} is the last admin: register another one first; nothing was changed")


def streams(names: Iterable[str]) -> str:
    """The form in which a row has streams. Raises UsageError."""
    found = sorted({units.name(one) for one in names})
    for one in found:
        if one in RESERVED:
            raise UsageError(f"stream {one!r} is the D-Box's own")
    if len(found) > STREAMS:
        raise UsageError(f"a writer is bound to at most {STREAMS} streams")
    return " ".join(found)


def local(user: str, executable: str) -> tuple[str, str]:
    """Fingerprint of a local writer, and the form in which a row has it. Raises UsageError."""
    if not _USER.fullmatch(user):
        raise UsageError(f"{user!r} is not the name of a user")
    if executable != ANY and not (executable.startswith("/") and executable.isprintable() and len(executable) < 1024):
        raise UsageError(f"expected the absolute path of an executable, or {ANY!r}, got {executable[:80]!r}")
    return local_fingerprint(user, executable), f"{user} {executable}"


def local_fingerprint(user: str, executable: str) -> str:
    """How a local writer is named in a header."""
    return hashlib.sha256(f"dre-local/v1\nuser {user}\nexe {executable}\n".encode(errors="surrogateescape")).hexdigest()


def candidates(user: str, executable: str) -> Sequence[str]:
    """The fingerprints under which a process of *user* may be registered, the most exact first."""
    exact = [local_fingerprint(user, executable)] if executable else []
    return [*exact, local_fingerprint(user, ANY)]
