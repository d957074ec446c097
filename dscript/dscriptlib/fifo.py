# SPDX-License-Identifier: Apache-2.0
"""The FIFO that rules write event lines to, read without ever waiting for a writer."""

import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dre import event
from dre.errors import DreError


class Fifo:
    """One reader's end. Opened for writing too, so that it does not end when the last writer goes."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        if not path.exists():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            os.mkfifo(path, 0o600)
            _give(path, say)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not stat.S_ISFIFO(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise DreError(f"{path}: not a FIFO; remove it, dscript makes it anew")
        self.rest = b""
        self.skipping = False  # within a line that is longer than an event can be

    def lines(self) -> Iterator[bytes]:
        """The whole lines of one read, without their newlines; of one that is too long, its beginning.

        One read and no more: where lines keep coming, other things have their turn between.
        """
        try:
            octets = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        *lines, self.rest = (self.rest + octets).split(b"\n")
        for line in lines:
            if not self.skipping:
                yield line
            self.skipping = False
        if len(self.rest) > event.LIMIT:
            if not self.skipping:
                yield self.rest[: event.LIMIT + 1]
            self.rest, self.skipping = b"", True

    def close(self) -> None:
        """Close it; the FIFO stays for its writers."""
        os.close(self.fd)


def _give(path: Path, say: Callable[[str], None]) -> None:
    """Let only the user of SEC write to it."""
    path.chmod(0o620)
    try:
        os.chown(path, pwd.getpwnam("dscript").pw_uid, grp.getgrnam("dre-sec").gr_gid)
    except KeyError:
        say(f"no users dscript and dre-sec on this host: {path} stays with the user of this process")
    except PermissionError:
        say(f"{path} stays with the user of this process: only root can give it away")


class BadLines:
    """Counts lines that are no events and reports them at most every ten seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self.count = 0
        self.reason = ""
        self.reported = -every

    def add(self, reason: str) -> None:
        """One more."""
        self.count += 1
        self.reason = reason

    def due(self) -> tuple[int, str] | None:
        """How many there were since the last report, and why the last one was bad; None when it is not time."""
        if not self.count or time.monotonic() - self.reported < self.every:
            return None
        report = (self.count, self.reason)
        self.count, self.reported = 0, time.monotonic()
        return report
