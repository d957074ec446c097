# SPDX-License-Identifier: Apache-2.0
"""The log over a Unix socket, on the sequencer's side; `dboxlib.remote` is everybody else's.

Who may connect is decided by the uid that the kernel tells; what comes is data and never code, and a message that is
too long or not understood ends its connection.
"""

import contextlib
import functools
import os
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dre import evidence
from dre.errors import DreError
from dre.evidence import Head, Note, TamperedError

from dboxlib import message
from dboxlib.log import Outcome, QuotaError
from dboxlib.sequencer import Sequencer

CONNECTIONS = 256  # at once
READ = 256 * 1024
WORKERS = 4  # threads for everything but new entries


class _Connection:
    """One connected process."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.come = bytearray()
        self.leaving = bytearray()
        self.asked = False
        self._lock = threading.Lock()

    def answer(self, octets: bytes) -> None:
        """Send the answer to the question; what the socket does not take at once goes when it can."""
        with self._lock:
            self.asked = False
            sent = 0
            if not self.leaving:
                try:
                    sent = self.sock.send(octets, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    return  # it is gone; its thread of the selector sees that too
            self.leaving += octets[sent:]
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
        (length,) = message.LENGTH.unpack_from(come)
        if length > message.LARGEST:
            raise ValueError(f"a message of {length} octets")
        if len(come) < 4 + length:
            return
        if len(come) > 4 + length or connection.asked:
            raise ValueError("a second question before the first was answered")
        fields, parts = message.read(bytes(come[4:]))
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
            connection.answer(message.build({}, [self.sequencer.receipt_of(done.result())]))

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
            return message.build(fields, [octets])
        fields["last"] = True
        fields["run"] = outcome.first is not None
        last = outcome.last
        more = [last.header, last.salt, _joined(last.path), _joined(outcome.first), _joined(outcome.salts)]
        return message.build(fields, [octets, *more])

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
        return message.build({}, answer)

    def _clients(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        self.sequencer.log_clients()
        return message.build({"logged": self.sequencer.clients_logged})

    def _register(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        words = [str(fields[name]) for name in ("fingerprint", "name", "role", "streams", "local")]
        self.sequencer.register(*words)
        return message.build({"logged": self.sequencer.clients_logged})

    def _hello(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        return message.build({"pid": os.getpid(), "child": self.child, "logged": self.sequencer.clients_logged})

    def _signature(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        key, time, value = self.sequencer.signature(int(fields["number"]))
        return message.build({"key": key, "time": time}, [value])

    def _md5_signature(self, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        found = self.sequencer.md5_signature(int(fields["number"]))
        return message.build({"key": found[0]}, [found[1]]) if found else message.build({"key": None})


@functools.lru_cache(maxsize=1024)
def _proper(writer: str, stream: str) -> bool:
    """Whether a header may hold these, whoever asks."""
    header = evidence.Header("log", stream, writer, "2000-01-01T00:00:00.000Z", 1, 1, "0" * 64)
    return evidence.parse_header(header.octets()) == header


_Call = Callable[[Server, Mapping[str, Any], Sequence[bytes]], bytes]


def _nothing(call: Callable[[Server, Mapping[str, Any], Sequence[bytes]], None]) -> _Call:
    def made(server: Server, fields: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
        call(server, fields, parts)
        return message.build({})

    return made


_CALLS: dict[str, _Call] = {
    "hello": Server._hello,
    "clients": Server._clients,
    "register": Server._register,
    "receipts": Server._receipts,
    "signature": Server._signature,
    "md5": Server._md5_signature,
    "newest": lambda it, _, __: message.build({}, [it.sequencer.newest()[1].format().encode()]),
    "inclusion": lambda it, ask, __: message.build({}, it.sequencer.inclusion(int(ask["number"]), int(ask["size"]))),
    "consistency": lambda it, ask, __: message.build({}, it.sequencer.consistency(int(ask["old"]), int(ask["new"]))),
    "own": lambda it, ask, __: it._outcome(it.sequencer.submit_own(str(ask["kind"]), dict(ask["data"]))),
    "erase": lambda it, ask, __: it._outcome(
        it.sequencer.erase(int(ask["number"]), str(ask["reason"]), str(ask["first"]), str(ask["second"]))
    ),
    "rotate": _nothing(lambda it, _, __: it.sequencer.rotate()),
    "anchor": _nothing(
        lambda it, ask, parts: it.sequencer.anchor(str(ask["kind"]), parts[0], str(ask["name"]), ask["size"])
    ),
    "tampered": _nothing(lambda it, ask, _: it.sequencer.tampered(int(ask["number"]))),
    "status": lambda it, _, __: message.build({"status": it.sequencer.status()}),
}


def _failure(error: BaseException) -> bytes:
    fields: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
    for name in ("full", "retry_after", "index", "reason"):
        if isinstance(error, QuotaError | TamperedError) and hasattr(error, name):
            fields[name] = getattr(error, name)
    return message.build(fields)


def _joined(path: Sequence[bytes] | None) -> bytes:
    return b"".join(path or ())
