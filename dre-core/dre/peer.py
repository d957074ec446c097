# SPDX-License-Identifier: Apache-2.0
"""The other host of a migration, as the sender sees it: requests and answers over ssh, or to this very host.

Host keys are those that are known: an unknown or another one is refused, never taken. Decides nothing.
"""

import contextlib
import json
import re
import select
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import IO, Any

from dre import errors
from dre.errors import DreError, MissingError, NotPermittedError, TimedOutError, UsageError
from dre.run import talk

BLOCK = 256 << 10
TRIES, PAUSE = 6, 1.0  # connections, one after the other, and seconds between the first two; then twice as long each
WAIT = 3600.0  # seconds for an answer: the other side unpacks; a dead connection is noticed by ssh
LOCAL = "localhost"
RECEIVE = "dre-app receive"  # what is asked for there, by whatever forced command
_SSH = (
    "ssh",
    "-Tax",
    *("-o", "BatchMode=yes"),
    *("-o", "StrictHostKeyChecking=yes"),
    *("-o", "ControlPath=none"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)
_KINDS = {
    kind.code: kind for kind in (UsageError, errors.NotFoundError, NotPermittedError, TimedOutError, MissingError)
}


class LostError(DreError):
    """The connection broke off: what was asked may have been done or not."""


@dataclass(frozen=True)
class Way:
    """How to reach the other host; all of it goes into an intent. *config* and *ssh_config* are files, or None."""

    host: str
    config: str | None
    ssh_config: str | None

    def argv(self) -> list[str]:
        """The program that talks to the receiver there."""
        if self.host == LOCAL:
            config = ["--config", self.config] if self.config else []
            return [sys.executable, sys.argv[0], *config, "receive", "--allow-all"]
        ssh_config = ["-F", self.ssh_config] if self.ssh_config else []
        return [*_SSH, *ssh_config, "--", self.host, RECEIVE]


def host(text: str) -> str:
    """HOST or USER@HOST, as ssh takes it. Raises UsageError."""
    if not re.fullmatch(r"(?:[A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9:][A-Za-z0-9.:_-]*", text):
        raise UsageError(f"{text!r} is not HOST or USER@HOST")
    return text


class Peer:
    """A connection to the receiver."""

    def __init__(self, way: Way, child: "Popen[bytes]", said: IO[bytes]) -> None:
        self.way, self._child, self._said = way, child, said
        self.ready = True  # nothing is on the way, so it can be asked

    def ask(self, verb: str, identity: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request. Raises what the other side raised, or LostError."""
        self._write(json.dumps({"verb": verb, "id": identity, **fields}).encode() + b"\n")
        return self._answer()

    def send(self, identity: str, path: Path, offset: int, rate: int | None, progress: Callable[[int], None]) -> str:
        """Send *path* from *offset* on, at most *rate* octets a second; the digest that the other side has now."""
        size = path.stat().st_size
        request = {"verb": "data", "id": identity, "offset": offset, "length": size - offset}
        self._write(json.dumps(request).encode() + b"\n")
        begun, sent = time.monotonic(), 0
        with path.open("rb") as stream:
            stream.seek(offset)
            while octets := stream.read(BLOCK):
                self._write(octets)
                sent += len(octets)
                progress(offset + sent)
                if rate:
                    time.sleep(max(0.0, begun + sent / rate - time.monotonic()))
        return str(self._answer()["digest"])

    def _write(self, octets: bytes) -> None:
        assert self._child.stdin
        self.ready = False
        try:
            self._child.stdin.write(octets)
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout
        if not select.select([self._child.stdout], [], [], WAIT)[0]:
            raise LostError(f"{self.way.host}: no answer within {WAIT:g} s")
        line = self._child.stdout.readline(1 << 20)
        if not line.endswith(b"\n"):
            raise self._lost()
        try:
            answer: dict[str, Any] = json.loads(line)
            code = int(answer["code"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DreError(f"{self.way.host}: no dre-app receive answers there: {line[:60]!r}") from None
        self.ready = True
        if code:
            kind: type[DreError] = _KINDS.get(code, DreError)
            raise kind(f"{self.way.host}: {answer.get('error')}")
        return answer

    def _lost(self) -> DreError:
        """Why the connection broke off, as well as ssh says it."""
        with contextlib.suppress(Exception):
            self._child.wait(5)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines() or ["no message"]
        text, there = "\n".join(lines), self.way.host
        if "Host key verification failed" in text:
            raise NotPermittedError(
                f"{there}: its host key is not known here, or not the one known; compare it with the one on {there},"
                f" then put the line that ssh-keyscan gives into known_hosts"
            )
        if "Permission denied" in text:
            raise NotPermittedError(
                f"{there}: {lines[-1]}; it wants the public key of root here in authorized_keys after"
                ' restrict,command="dre-app receive"'
            )
        if self._child.returncode == 127:
            raise MissingError(f"{there}: dre-app is not installed there")
        return LostError(f"{there}: connection lost: {lines[-1]}")


class Line:
    """One connection for a whole move, for each costs time in which the app is down; made anew where it was lost."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._peer: Peer | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def once(self) -> Peer:
        """The connection."""
        if self._peer is None or not self._peer.ready:
            self._open.close()
            self._peer = self._open.enter_context(_connected(self.way))
        return self._peer

    def persistently(self, work: Callable[[Peer], dict[str, Any]]) -> dict[str, Any]:
        """Do *work* on the connection, and again on another where it is lost."""
        for attempt in range(TRIES):
            try:
                return work(self.once())
            except LostError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError


@contextlib.contextmanager
def _connected(way: Way) -> Iterator[Peer]:
    """A connection, which may turn out not to be one at the first request."""
    with tempfile.TemporaryFile() as said, talk(way.argv(), said) as child:
        yield Peer(way, child, said)
