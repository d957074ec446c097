# SPDX-License-Identifier: Apache-2.0
"""The WSGI application behind cheroot: TLS with client certificates, the local socket, and bounds against the slow.

What cheroot does in a way that one silent client would stop everybody is put right here: a handshake never blocks a
thread, every connection has bounds of time and number, and an exception that leaves a connection does not end its
thread. A thread is held by a request at most for as long as that makes progress.
"""

import contextlib
import hashlib
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cheroot import ssl as cheroot_ssl
from cheroot import wsgi
from cheroot.makefile import StreamReader, StreamWriter
from cheroot.server import HTTPConnection

from dboxlib.intake import Peer

THREADS = 32
TIMEOUT = 10  # seconds for a handshake, between requests, and for a request that does not move
PATIENCE = 2.0  # seconds of the same while others wait for a thread
SHARE = THREADS // 4  # threads that one client's slow requests hold while others wait
LEAST = 32 * 1024  # octets per second that a request moves at least, on the whole
CONNECTIONS = 512  # at a time
OF_ONE = 64  # connections of one client at a time, or of one local user; more hear 503
HEADER = 16 * 1024  # octets
BODY = 64 * 1024 * 1024  # octets that the application reads, or skips, itself; cheroot would hold all of a larger one


def context(certificate: Path, key: Path, client_authority: Path, required: bool = True) -> ssl.SSLContext:
    """TLS 1.2 or newer; a client certificate is of the client CA, and not *required* for the page alone."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(certificate, key)
    made.load_verify_locations(client_authority)
    made.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return made


class _Adapter(cheroot_ssl.Adapter):
    """What cheroot asks of TLS; the handshake is left to the worker threads, step by step."""

    def __init__(self, made: ssl.SSLContext) -> None:
        self.context = made

    def bind(self, sock: Any) -> Any:
        return sock

    def wrap(self, sock: Any) -> tuple[Any, dict[str, str]]:
        return self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), {}

    def get_environ(self) -> dict[str, str]:
        return {"HTTPS": "on"}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:
        return None  # a connection makes its own


class _Reader(StreamReader):
    """Knows what TLS has decrypted already, which the kernel does not tell of."""

    def __init__(self, raw: Any, sock: Any, size: int) -> None:
        super(StreamReader, self).__init__(raw, size)  # not through cheroot's, which would make a raw one itself
        self.bytes_read = 0
        self.sock = sock

    def has_data(self) -> bool:
        if super().has_data():  # type: ignore[no-untyped-call]
            return True
        return isinstance(self.sock, ssl.SSLSocket) and bool(self.sock.pending())


class _Writer(StreamWriter):
    """As cheroot's, on a raw stream that is given."""

    def __init__(self, raw: Any, size: int) -> None:
        super(StreamWriter, self).__init__(raw, size)
        self.bytes_written = 0


class _Watched(socket.SocketIO):
    """The raw stream of a connection: counts what moves, so that the watch can tell slow from busy."""

    def __init__(self, sock: Any, mode: Any, connection: "_Connection") -> None:
        super().__init__(sock, mode)
        self.connection = connection

    def readinto(self, buffer: Any) -> int | None:
        with self.connection.moving("read") as moved:
            number = super().readinto(buffer)
            moved(number or 0)
        return number

    def write(self, octets: Any) -> int | None:
        with self.connection.moving("write") as moved:
            number = super().write(octets)
            moved(number or 0)
        return number


class _Connection(HTTPConnection):
    """A connection that never takes its worker down with it, and is known to the watch."""

    def __init__(self, server: Any, sock: Any, makefile: Any = None) -> None:
        super().__init__(server, sock, self._file)
        self.ends = time.monotonic() + TIMEOUT  # of the handshake
        self.owner = ""  # whose connection it is, once that is known
        self.phase, self.since, self.octets, self.blocked = "", 0.0, 0, False
        server.watch.add(self)

    def _file(self, sock: Any, mode: str, size: int) -> Any:
        raw = _Watched(sock, mode, self)
        return _Reader(raw, sock, size) if "r" in mode else _Writer(raw, size)

    def communicate(self) -> bool:
        try:
            if not self.ssl_env and not self._shaken():
                return time.monotonic() < self.ends  # more of it will come, or did not in time
            self.phase = ""
            return bool(super().communicate())  # type: ignore[no-untyped-call]
        except (OSError, ValueError):
            return False  # no certificate, a foreign one, not TLS, or gone: there is nobody to tell
        finally:
            self.blocked = False

    def _shaken(self) -> bool:
        """Go on with the handshake as far as what has come allows; whether it is done."""
        if not isinstance(self.socket, ssl.SSLSocket):
            self.ssl_env = {"DRE_PLAIN": "yes"}  # the redirect; a local connection has come with its own
            return True
        self.socket.settimeout(0)
        try:
            self.socket.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.socket.settimeout(TIMEOUT)
        certificate = self.socket.getpeercert(binary_form=True)
        fingerprint = hashlib.sha256(certificate).hexdigest() if certificate else ""
        self.ssl_env = {"DRE_TLS": str(self.socket.version())}
        if fingerprint:
            self.ssl_env["DRE_CLIENT"] = fingerprint
            self.belongs(fingerprint)
        return bool(self.rfile.has_data())  # else the request is waited for without a thread

    def belongs(self, owner: str) -> None:
        """Say whose this connection is; one too many of his is answered 503."""
        self.owner = owner
        if self.server.watch.count(owner) > OF_ONE:
            self.ssl_env["DRE_CROWDED"] = f"more than {OF_ONE} connections of one client"

    @contextlib.contextmanager
    def moving(self, phase: str) -> Any:
        """While a thread waits for the peer."""
        if phase != self.phase:  # a new direction is measured anew: what lay between was ours
            self.phase, self.since, self.octets = phase, time.monotonic(), 0
        self.blocked = True

        def moved(number: int) -> None:
            self.octets += number

        try:
            yield moved
        finally:
            self.blocked = False

    def slow(self, now: float, patience: float) -> bool:
        """Whether the peer holds a thread without moving enough."""
        return self.blocked and now - self.since > patience + self.octets / LEAST

    def cut(self) -> None:
        """End it from another thread: who waits for it wakes up."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # not TLS's, which is the other thread's

    def close(self) -> None:
        self.server.watch.discard(self)
        with contextlib.suppress(OSError, ValueError):
            super().close()


class Watch(threading.Thread):
    """All connections of one server, and the end of those that hold a thread too long."""

    def __init__(self, server: wsgi.Server) -> None:
        super().__init__(name="watch", daemon=True)
        self._server = server
        self._lock = threading.Lock()
        self._all: set[_Connection] = set()
        self._owners: Counter[str] = Counter()
        self._ended = threading.Event()

    def add(self, connection: _Connection) -> None:
        with self._lock:
            self._all.add(connection)

    def discard(self, connection: _Connection) -> None:
        with self._lock:
            if connection in self._all:
                self._all.remove(connection)
                self._owners[connection.owner] -= bool(connection.owner)

    def count(self, owner: str) -> int:
        """Count one more connection of *owner*, and say how many there are."""
        with self._lock:
            self._owners[owner] += 1
            return self._owners[owner]

    def full(self) -> bool:
        with self._lock:
            return len(self._all) > CONNECTIONS

    def run(self) -> None:
        while not self._ended.wait(0.25):
            now = time.monotonic()
            wanted = bool(self._server.requests.qsize)
            with self._lock:
                slow = [one for one in self._all if one.slow(now, PATIENCE if wanted else TIMEOUT)]
                slow += self._greedy(now) if wanted else []
                self._owners += Counter()  # forgets those that have none left
            for one in slow:
                one.cut()

    def _greedy(self, now: float) -> list[_Connection]:
        """What a client holds beyond its share, fast enough as it may be: others wait for a thread."""
        held: dict[str, list[_Connection]] = {}
        for one in self._all:
            if one.blocked and now - one.since > PATIENCE:
                held.setdefault(one.owner, []).append(one)
        return [one for many in held.values() for one in sorted(many, key=lambda one: one.since)[SHARE:]]

    def end(self) -> None:
        self._ended.set()


class Server(wsgi.Server):
    """cheroot with a watch; connections of the local socket join those of its own."""

    ConnectionClass = _Connection

    def __init__(
        self, listen: tuple[str, int] | None, application: Any, made: ssl.SSLContext | None, threads: int
    ) -> None:
        self.alone = listen is None
        listen = listen or ("127.0.0.1", 0)
        super().__init__(listen, application, numthreads=threads, request_queue_size=128, timeout=TIMEOUT)
        self.application = application
        self.ssl_adapter = _Adapter(made) if made else None
        self.max_request_header_size = HEADER
        self.max_request_body_size = BODY
        self.watch = Watch(self)

    def prepare(self) -> None:
        super().prepare()
        self.watch.start()

    def bind(self, family: Any, type: Any, proto: int = 0) -> Any:
        """Bind to the address, or without one to a socket that nobody can connect to: cheroot wants to listen."""
        if not self.alone:
            return super().bind(family, type, proto)
        with tempfile.TemporaryDirectory(prefix="dboxd-") as directory:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.bind(f"{directory}/none")
        self.bind_addr = "none"
        return self.socket

    def process_conn(self, conn: _Connection) -> None:
        """A connection that was just accepted waits for its first octets without a thread."""
        if conn.last_used is None and self.watch.full():
            conn.close()
        elif conn.last_used is None:
            self.put_conn(conn)
        else:
            super().process_conn(conn)

    def take(self, connection: socket.socket, peer: Peer | None) -> None:
        """Serve a connection of the local socket."""
        connection.settimeout(TIMEOUT)
        conn = _Connection(self, connection)
        user, executable = (peer.user, peer.executable) if peer else ("", "")
        conn.ssl_env = {"DRE_LOCAL_USER": user, "DRE_LOCAL_EXE": executable}
        conn.belongs(f"local {user}")
        self.process_conn(conn)

    def stop(self) -> None:
        self.watch.end()
        super().stop()


def make(
    application: Any, listen: tuple[str, int] | None, made: ssl.SSLContext | None, threads: int = THREADS
) -> Server:
    """A server that listens once `prepare` is called and works in `serve` until `stop`.

    Without *listen* it serves only the connections it is given by `take`, without *made* it speaks plain HTTP.
    """
    return Server(listen, application, made, threads)
