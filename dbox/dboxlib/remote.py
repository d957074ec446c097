# SPDX-License-Identifier: Apache-2.0
"""The log in another process: what `dboxlib.channel` answers, asked over the sequencer's Unix socket."""

import functools
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dre import evidence
from dre.conf import Conf
from dre.errors import DreError, MissingError, NotFoundError, NotPermittedError, UsageError
from dre.evidence import Head, Note, Receipt, TamperedError

from dboxlib import message
from dboxlib.log import BusyError, ConflictError, Outcome, QuotaError

POOL = 64  # connections at once, for one Remote
_ERRORS: dict[str, Callable[[dict[str, Any]], Exception]] = {
    "BusyError": lambda it: BusyError(it["text"]),
    "ConflictError": lambda it: ConflictError(it["text"]),
    "QuotaError": lambda it: QuotaError(it["text"], it["full"], it["retry_after"]),
    "TamperedError": lambda it: TamperedError(it["index"], it["reason"]),
    "NotPermittedError": lambda it: NotPermittedError(it["text"]),
    "UsageError": lambda it: UsageError(it["text"]),
    "NotFoundError": lambda it: NotFoundError(it["text"]),
    "IndexError": lambda it: IndexError(it["text"]),
}


def connect(conf: Conf) -> "Remote":
    """The log of the settings. Raises MissingError when no sequencer answers."""
    remote = Remote(message.place(conf))
    remote.hello()
    return remote


class Remote:
    """A `log.Log` in another process. Threads may share it: each question takes a connection of a small pool."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clients_logged = 0
        self._idle: list[socket.socket] = []
        self._free = threading.BoundedSemaphore(POOL)
        self._pid = os.getpid()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def hello(self) -> dict[str, Any]:
        """Who answers."""
        fields, _ = self._ask({"call": "hello"}, timeout=5.0)
        self.clients_logged = max(self.clients_logged, int(fields["logged"]))
        return fields

    def submit(self, writer: str, stream: str, seq: int, parts: Sequence[bytes], timeout: float = 60.0) -> Outcome:
        """Append entries and return when they are durable."""
        return self._outcome({"call": "submit", "writer": writer, "stream": stream, "seq": seq}, parts, timeout)

    def append(self, writer: str, stream: str, seq: int, octets: bytes) -> bytes:
        """Append one entry; its receipt as it travels."""
        return self._ask({"call": "append", "writer": writer, "stream": stream, "seq": seq}, [octets])[1][0]

    def submit_own(self, kind: str, data: Mapping[str, object]) -> Outcome:
        """Append an event of the D-Box itself."""
        return self._outcome({"call": "own", "kind": kind, "data": dict(data)})

    def log_clients(self) -> None:
        """Append an entry for each registration that has none yet."""
        self.clients_logged = int(self._ask({"call": "clients"})[0]["logged"])

    def register(self, fingerprint: str, name: str, role: str, streams: str = "", local: str = "") -> None:
        """Give a client a role, or another one; it is in the log on return."""
        words = {"fingerprint": fingerprint, "name": name, "role": role, "streams": streams, "local": local}
        self.clients_logged = int(self._ask({"call": "register", **words})[0]["logged"])

    def newest(self) -> tuple[Head, Note]:
        """The newest tree head."""
        return _parsed(self._ask({"call": "newest"})[1][0])

    def inclusion(self, number: int, size: int) -> list[bytes]:
        """The path of entry *number* to the root of the first *size*."""
        return self._ask({"call": "inclusion", "number": number, "size": size})[1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of *old* entries begins the one of *new*."""
        return self._ask({"call": "consistency", "old": old, "new": new})[1]

    def receipt(self, number: int, outcome: Outcome | None = None) -> Receipt:
        """The receipt of an entry under the tree head of *outcome*, or the newest one."""
        return self.receipts([number], outcome)[0]

    def receipts(self, numbers: Sequence[int], outcome: Outcome | None = None) -> list[Receipt]:
        """The receipts of several entries."""
        if outcome is not None and outcome.last is not None and list(numbers) == [outcome.last.index]:
            return [outcome.last]
        size = outcome.head.size if outcome else None
        _, parts = self._ask({"call": "receipts", "numbers": list(numbers), "size": size})
        note = outcome.note if outcome else _parsed(parts[0])[1]
        made = zip(numbers, parts[1::3], parts[2::3], parts[3::3], strict=True)
        return [Receipt(header, number, _split(path), note, salt) for number, header, salt, path in made]

    def signature(self, number: int) -> tuple[str, str, bytes]:
        """The specification's signed digest of an entry."""
        fields, parts = self._ask({"call": "signature", "number": number})
        return fields["key"], fields["time"], parts[0]

    def md5_signature(self, number: int) -> tuple[str, bytes] | None:
        """The signature over MD5, where it is wanted."""
        fields, parts = self._ask({"call": "md5", "number": number})
        return (fields["key"], parts[0]) if parts else None

    def erase(self, number: int, reason: str, first: str, second: str) -> Outcome:
        """Remove octets and salt of an entry, as two admins want."""
        return self._outcome({"call": "erase", "number": number, "reason": reason, "first": first, "second": second})

    def rotate(self) -> None:
        """Replace the sign key now."""
        self._ask({"call": "rotate"})

    def anchor(self, kind: str, octets: bytes, name: str = "", size: int | None = None) -> None:
        """Keep what a third party said of a tree head."""
        self._ask({"call": "anchor", "kind": kind, "name": name, "size": size}, [octets])

    def tampered(self, number: int) -> None:
        """Have an entry looked at."""
        self._ask({"call": "tampered", "number": number})

    def status(self) -> dict[str, Any]:
        """The state of the log."""
        found: dict[str, Any] = self._ask({"call": "status"})[0]["status"]
        return found

    def _outcome(self, fields: Mapping[str, Any], parts: Sequence[bytes] = (), timeout: float = 60.0) -> Outcome:
        told, octets = self._ask(fields, parts, timeout)
        head, note = _parsed(octets[0])
        numbers = told.get("numbers") or list(range(told["first"], told["first"] + told["count"]))
        if "last" not in told:
            return Outcome(numbers, head, note)
        _, header, salt, path, first, salts = octets
        last = Receipt(header, numbers[-1], _split(path), note, salt)
        return Outcome(numbers, head, note, last, _split(first) if told["run"] else None, _split(salts))

    def _ask(
        self, fields: Mapping[str, Any], parts: Sequence[bytes] = (), timeout: float = 60.0
    ) -> tuple[dict[str, Any], list[bytes]]:
        """One question and its answer; asked once more where an idle connection turns out to be dead."""
        question = message.build(fields, parts)
        with self._free:
            while True:
                if self._pid != os.getpid():
                    self._idle, self._pid = [], os.getpid()  # connections of a parent are not ours
                try:
                    sock, fresh = self._idle.pop(), False
                except IndexError:
                    sock, fresh = self._connect(), True
                try:
                    sock.settimeout(timeout)
                    sock.sendall(question)
                    answer = _receive(sock)
                except TimeoutError:
                    sock.close()
                    raise BusyError(f"not written within {timeout:g} s; send the same again") from None
                except OSError as error:
                    sock.close()
                    if fresh:
                        raise DreError(f"the sequencer ended while it was asked: {error}") from None
                    continue
                self._idle.append(sock)
                break
        told, more = message.read(answer)
        if "error" in told:
            raise _ERRORS.get(told["error"], lambda it: DreError(it["text"]))(told)
        return told, more

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(5.0)
            sock.connect(str(self.path))
        except OSError as error:
            sock.close()
            raise MissingError(f"{self.path}: no sequencer answers: {error.strerror or error}") from None
        return sock


def _receive(sock: socket.socket) -> bytes:
    octets = bytearray(sock.recv(65_536))
    while len(octets) < 4 or len(octets) < 4 + message.LENGTH.unpack_from(octets)[0]:
        more = sock.recv(1024 * 1024)
        if not more:
            raise ConnectionError("no answer")
        octets += more
    return bytes(octets[4:])


@functools.lru_cache(maxsize=8)
def _parsed(octets: bytes) -> tuple[Head, Note]:
    """A note and its tree head: one batch answers many."""
    note = evidence.parse_note(octets.decode())
    return evidence.parse_head(note.text), note


def _split(octets: bytes) -> tuple[bytes, ...]:
    return tuple(octets[at : at + 32] for at in range(0, len(octets), 32))
