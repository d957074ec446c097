# SPDX-License-Identifier: Apache-2.0
"""The WSGI application behind cheroot: TLS with required client certificates.

cheroot shakes hands in the thread that accepts, where one silent client would stop everybody, and an exception that
leaves a connection ends its worker thread; both are put right here.
"""

import contextlib
import hashlib
import ssl
from pathlib import Path
from typing import Any

from cheroot import ssl as cheroot_ssl
from cheroot import wsgi
from cheroot.makefile import StreamReader, StreamWriter
from cheroot.server import HTTPConnection

THREADS = 32
TIMEOUT = 10  # seconds for a handshake, or for the next octets of a request


def context(certificate: Path, key: Path, client_authority: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer, for clients with a certificate of the client CA only."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(certificate, key)
    made.load_verify_locations(client_authority)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


class _Adapter(cheroot_ssl.Adapter):
    """What cheroot asks of TLS; the handshake is left to the worker thread."""

    def __init__(self, made: ssl.SSLContext) -> None:
        self.context = made

    def bind(self, sock: Any) -> Any:
        return sock

    def wrap(self, sock: Any) -> tuple[Any, dict[str, str]]:
        return self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), {}

    def get_environ(self) -> dict[str, str]:
        return {"HTTPS": "on"}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:
        return (StreamReader if "r" in mode else StreamWriter)(sock, mode, bufsize)


class _Connection(HTTPConnection):
    """A connection that shakes hands when a worker takes it up, and never takes the worker down with it."""

    def communicate(self) -> bool:
        try:
            if not self.ssl_env:
                self.socket.do_handshake()
                certificate = self.socket.getpeercert(binary_form=True)
                self.ssl_env = {"DRE_CLIENT": hashlib.sha256(certificate).hexdigest()}
            return bool(super().communicate())  # type: ignore[no-untyped-call]
        except (OSError, ValueError):
            return False  # no certificate, a foreign one, not TLS, or gone: there is nobody to tell

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().close()


def make(application: Any, listen: tuple[str, int], made: ssl.SSLContext) -> wsgi.Server:
    """A server that listens once `prepare` is called and works in `serve` until `stop`."""
    server = wsgi.Server(listen, application, numthreads=THREADS, request_queue_size=128, timeout=TIMEOUT)
    server.ssl_adapter = _Adapter(made)
    server.ConnectionClass = _Connection
    server.max_request_header_size = 16 * 1024
    return server
