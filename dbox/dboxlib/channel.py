# SPDX-License-Identifier: Apache-2.0
"""The log over a Unix socket: `Server` in the sequencer's process, `Remote` in everybody else's.

A message is its length in 4 octets and then parts, each after its own length: the first one is JSON, the others are
octets. A connection carries one question at a time. Who may connect is decided by the uid that the kernel tells; what
comes is data and never code, and a message that is too long or not understood ends its connection.
"""

import contextlib
import functools
import json
import os
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dre import dbox, evidence
from dre.conf import Conf
from dre.errors import DreError, MissingError, NotFoundError, NotPermittedError, UsageError
from dre.evidence import Head, Note, Receipt, TamperedError

from dboxlib.log import BusyError, ConflictError, Outcome, QuotaError
from dboxlib.sequencer import Sequencer

LARGEST = dbox.LARGEST + 4 * 1024 * 1024  # octets of a message
CONNECTIONS = 256  # at once, for the server
POOL = 64  # at once, for one Remote
READ = 256 * 1024
WORKERS = 4  # threads for everything but new entries
_LENGTH = struct.Struct(">I")
_encode = json.JSONEncoder(separators=(",", ":")).encode
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


def place(conf: Conf) -> Path:
    """Where the sequencer's socket is."""
    return conf.core_run_dir / "dbox" / "sequencer.sock"


def connect(conf: Conf) -> "Remote":
    """The log of the settings. Raises MissingError when no sequencer answers."""
    remote = Remote(place(conf))
    remote.hello()
    return remote


# --- The form of messages ---


def _message(fields: Mapping[str, Any], parts: Iterable[bytes] = ()) -> bytes:
    body = dbox.frame([_encode(fields).encode(), *parts])
    return _LENGTH.pack(len(body)) + body


def _read(body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """JSON and parts of a message. Raises DreError, ValueError."""
    parts = dbox.unframe(body)
    fields = json.loads(parts[0].decode()) if parts else None
    if not isinstance(fields, dict):
        raise ValueError("not a message")
    return fields, parts[1:]


def _failure(error: BaseException) -> bytes:
    fields: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
    for name in ("full", "retry_after", "index", "reason"):
        if isinstance(error, QuotaError | TamperedError) and hasattr(error, name):
            fields[name] = getattr(error, name)
    return _message(fields)


def _joined(path: Sequence[bytes] | None) -> bytes:
    return b"".join(path or ())


def _split(octets: bytes) -> tuple[bytes, ...]:
    return tuple(octets[at : at + 32] for at in range(0, len(octets), 32))


# --- The sequencer's side ---


class _Connection:
    """One connected process."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.come = bytearray()
        self.leaving = bytearray()
        self.asked = False
        self._lock = threading.Lock()

    def answer(self, message: bytes) -> None:
        """Send the answer to the question; what the socket does not take at once goes when it can."""
        with self._lock:
            self.asked = False
            sent = 0
            if not self.leaving:
                try:
                    sent = self.sock.send(message, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    return  # it is gone; its thread of the selector sees that too
            self.leaving += message[sent:]
            if self.leaving:
                self.server.wake(self)

    def flush(self) -> bool:
        """Send more; whether something is left."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                del self.leaving[: self.sock.send(self.leaving, socket.MSG_DONTWAIT)]
            return bool(self.leaving)


class Server:
    """Answers for a sequencer until `stop`."""

    def __init__(self, sequencer: Sequencer, listening: socket.socket, allowed: Iterable[int], child: bool) -> None:
        self.sequencer = sequencer
        self.allowed = set(allowed)
        self.child = child
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        self._workers = ThreadPoolExecutor(WORKERS, "channel")
        self._bell, self._ring = socket.socketpair()
        self._waiting: set[_Connection] = set()
        self._stopping = False
        self._connections: set[_Connection] = set()
        self._note: tuple[Note | None, bytes] = (None, b"")

    def serve(self) -> None:
        """Work until `stop`; questions that were asked are answered."""
        self._listening.setblocking(False)
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._bell, selectors.EVENT_READ)
        while not self._stopping:
            for key, events in self._selector.select():
                if key.fileobj is self._listening:
                    self._accept()
                elif key.fileobj is self._bell:
                    self._rung()
                else:
                    self._work(key.data, events)

    def stop(self) -> None:
        """End `serve`; may be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._ring.send(b"\0")

    def close(self) -> None:
        """Close everything, once the sequencer has answered what was asked."""
        self._workers.shutdown(wait=True)
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.sock.setblocking(True)
                connection.sock.settimeout(1.0)
                connection.sock.sendall(connection.leaving)
            connection.sock.close()
        self._listening.close()
        self._selector.close()
        self._bell.close()
        self._ring.close()

    def wake(self, connection: _Connection) -> None:
        """Have the rest of an answer sent when the socket takes it."""
        self._waiting.add(connection)
        with contextlib.suppress(OSError):
            self._ring.send(b"\0")

    def _rung(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        while self._waiting:
            connection = self._waiting.pop()
            if connection in self._connections:
                self._selector.modify(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listening.accept()
            uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid not in self.allowed or len(self._connections) >= CONNECTIONS:
                sys.stderr.write(f"dbox-sequencer: connection of uid {uid} refused\n")
                sock.close()
                return
            connection = _Connection(self, sock)
            self._connections.add(connection)
            self._selector.register(sock, selectors.EVENT_READ, connection)

    def _work(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and not connection.flush():
                self._selector.modify(connection.sock, selectors.EVENT_READ, connection)
            if events & selectors.EVENT_READ:
                octets = connection.sock.recv(READ)
                if not octets:
                    raise ConnectionError
                connection.come += octets
                self._take(connection)
        except (OSError, ValueError, KeyError, TypeError, DreError) as error:
            if not isinstance(error, OSError):
                sys.stderr.write(f"dbox-sequencer: connection ended: {error}\n")
            self._selector.unregister(connection.sock)
            self._connections.discard(connection)
            connection.sock.close()

    def _take(self, connection: _Connection) -> None:
        """A question, as soon as all of it is there."""
        come = connection.come
        if len(come) < 4:
            return
        (length,) = _LENGTH.unpack_from(come)
        if length > LARGEST:
            raise ValueError(f"a message of {length} octets")
        if len(come) < 4 + length:
            return
        if len(come) > 4 + length or connection.asked:
            raise ValueError("a second question before the first was answered")
        fields, parts = _read(bytes(come[4:]))
        come.clear()
        connection.asked = True
        if fields["call"] in ("submit", "append"):
            self._submit(connection, fields, parts)
        else:
            self._workers.submit(self._ask, connection, fields, parts)

    def _submit(self, connection: _Connection, fields: Mapping[str, Any], parts: list[bytes]) -> None:
        writer, stream, seq = str(fields["writer"]), str(fields["stream"]), int(fields["seq"])
        if not parts or not all(parts) or not 0 < seq < 10**18 or not _proper(writer, stream):
            raise ValueError("not an entry")
        whole = fields["call"] == "submit"
        try:
            done = self.sequencer.hand_in(writer, stream, seq, parts)
        except DreError as error:
            connection.answer(_failure(error))
            return
        done.add_done_callback(functools.partial(self._answer, connection, whole))

    def _answer(self, connection: _Connection, whole: bool, done: "Future[Outcome]") -> None:
        """Tell the outcome, as a *whole* or by the receipt alone."""
        error = done.exception()
        if error is not None:
            connection.answer(_failure(error))
        elif whole:
            connection.answer(self._outcome(done.result()))
        else:
            connection.answer(_message({}, [self.sequencer.receipt_of(done.result())]))

    def _outcome(self, outcome: Outcome) -> bytes:
        note, octets = self._note
        if note is not outcome.note:
            octets = outcome.note.format().encode()
            self._note = (outcome.note, octets)
        numbers = outcome.numbers
        fields: dict[str, Any] = {"first": numbers[0], "count": len(numbers)}
        if numbers[-1] - numbers[0] != len(numbers) - 1 or len(set(numbers)) != len(numbers):
            fields["numbers"] = numbers
        if outcome.last is None:
            return _message(fields, [octets])
        fields["last"] = True
        fields["run"] = outcome.first is not None
        last = outcome.last
        more = [last.header, last.salt, _joined(last.path), _joined(outcome.first), _joined(outcome.salts)]
        return _message(fields, [octets, *more])

    def _ask(self, connection: _Connection, fields: Mapping[str, Any], parts: Sequence[bytes]) -> None:
        try:
            answer = _CALLS[fields["call"]](self, fields, parts)
        except Exception as error:  # whoever asked must hear of it
            if not isinstance(error, DreError | IndexError):
                sys.stderr.write(f"dbox-sequencer: {fields.get('call')}: {type(error).__name__}: {error}\n")
            answer = _failure(error)
        connection.answer(answer)

    def _receipts(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        log, size = self.sequencer, fields["size"]
        head, note = log.newest()
        if size is not None:
            if not 0 < size <= head.size:
                raise IndexError(size)
            head = Head(head.origin, int(size), b"", "")
        outcome = Outcome([], head, note)
        answer = [note.format().encode() if size is None else b""]
        for receipt in log.receipts([int(number) for number in fields["numbers"]], outcome):
            answer += [receipt.header, receipt.salt, _joined(receipt.path)]
        return _message({}, answer)

    def _clients(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        self.sequencer.log_clients()
        return _message({"logged": self.sequencer.clients_logged})

    def _register(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        words = [str(fields[name]) for name in ("fingerprint", "name", "role", "streams", "local")]
        self.sequencer.register(*words)
        return _message({"logged": self.sequencer.clients_logged})

    def _hello(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        return _message({"pid": os.getpid(), "child": self.child, "logged": self.sequencer.clients_logged})

    def _signature(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        key, time, value = self.sequencer.signature(int(fields["number"]))
        return _message({"key": key, "time": time}, [value])

    def _md5_signature(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        found = self.sequencer.md5_signature(int(fields["number"]))
        return _message({"key": found[0]}, [found[1]]) if found else _message({"key": None})


@functools.lru_cache(maxsize=1024)
def _proper(writer: str, stream: str) -> bool:
    """Whether a header may hold these, whoever asks."""
    header = evidence.Header("log", stream, writer, "2000-01-01T00:00:00.000Z", 1, 1, "0" * 64)
    return evidence.parse_header(header.octets()) == header


_Call = Callable[[Server, Mapping[str, Any], Sequence[bytes]], bytes]


def _nothing(call: Callable[[Server, Mapping[str, Any], Sequence[bytes]], None]) -> _Call:
    def made(server: Server, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        call(server, fields, parts)
        return _message({})

    return made


_CALLS: dict[str, _Call] = {
    "hello": Server._hello,
    "clients": Server._clients,
    "register": Server._register,
    "receipts": Server._receipts,
    "signature": Server._signature,
    "md5": Server._md5_signature,
    "newest": lambda it, _, __: _message({}, [it.sequencer.newest()[1].format().encode()]),
    "inclusion": lambda it, ask, __: _message({}, it.sequencer.inclusion(int(ask["number"]), int(ask["size"]))),
    "consistency": lambda it, ask, __: _message({}, it.sequencer.consistency(int(ask["old"]), int(ask["new"]))),
    "own": lambda it, ask, __: it._outcome(it.sequencer.submit_own(str(ask["kind"]), dict(ask["data"]))),
    "erase": lambda it, ask, __: it._outcome(
        it.sequencer.erase(int(ask["number"]), str(ask["reason"]), str(ask["first"]), str(ask["second"]))
    ),
    "rotate": _nothing(lambda it, _, __: it.sequencer.rotate()),
    "anchor": _nothing(
        lambda it, ask, parts: it.sequencer.anchor(str(ask["kind"]), parts[0], str(ask["name"]), ask["size"])
    ),
    "tampered": _nothing(lambda it, ask, _: it.sequencer.tampered(int(ask["number"]))),
    "status": lambda it, _, __: _message({"status": it.sequencer.status()}),
}


# --- Everybody else's side ---


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
        message = _message(fields, parts)
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
                    sock.sendall(message)
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
        told, more = _read(answer)
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
    while len(octets) < 4 or len(octets) < 4 + _LENGTH.unpack_from(octets)[0]:
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
