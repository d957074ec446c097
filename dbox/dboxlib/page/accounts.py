# SPDX-License-Identifier: Apache-2.0
"""What the page keeps for itself: passwords, sessions, failed logins and the numbers of forms that were sent.

None of it is evidence, so it lies apart from the log, in a small SQLite database of the front's own user. A role is
not kept here: an account is a client like any other (`dboxlib.clients`), known by `fingerprint`, and a session ends
as soon as that client's registration is no longer the one it began with.
"""

import contextlib
import hashlib
import os
import pwd
import time
from pathlib import Path

from dre import accounts
from dre.accounts import LONGEST, PER_ACCOUNT, acceptable, ask_password
from dre.conf import Conf

__all__ = ["LONGEST", "PER_ACCOUNT", "Accounts", "acceptable", "ask_password", "directory", "fingerprint", "prepare"]
FRONTS = ("dbox-web", "dbox")  # the user of the front: the first of these on this host
_ONCE = """
CREATE TABLE IF NOT EXISTS once (id TEXT PRIMARY KEY, stream TEXT NOT NULL, seq INTEGER NOT NULL, time REAL NOT NULL)
    STRICT;
"""


def directory(conf: Conf) -> Path:
    """Where all this lies."""
    return conf.core_state_dir / "dbox-ui"


def fingerprint(name: str) -> str:
    """How the account *name* is named in the table of clients and in headers."""
    return hashlib.sha256(f"dre-ui/v1\nuser {name}\n".encode()).hexdigest()


def prepare(conf: Conf) -> Path:
    """Make directory, database and the secret that signs sessions, once, for the front's user."""
    return accounts.prepare(directory(conf), _front(), _ONCE)


def _front() -> tuple[int, int] | None:
    """uid and gid of the front's user; None when we are not root or there is none."""
    for name in FRONTS if os.geteuid() == 0 else ():
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return None


class Accounts(accounts.Accounts):
    """The open database, with the forms that were sent, so that sending one twice records one entry."""

    def once(self, identity: str, token: str) -> tuple[str, int] | None:
        """Stream and number under which the form *token* of *identity* was recorded before."""
        with self.opened() as database:
            query = "SELECT stream, seq FROM once WHERE id = ?"
            row = database.execute(query, (self.mac("once", identity, token),)).fetchone()
        return (row[0], row[1]) if row else None

    def keep_once(self, identity: str, token: str, stream: str, seq: int) -> None:
        """Remember what number the form gets; it is kept for as long as a session can last."""
        now = time.time()
        with self.opened() as database:
            database.execute("DELETE FROM once WHERE time < ?", (now - LONGEST,))
            fields = (self.mac("once", identity, token), stream, seq, now)
            database.execute("INSERT OR REPLACE INTO once VALUES (?, ?, ?, ?)", fields)
