# SPDX-License-Identifier: Apache-2.0
"""The WSGI application of the D-Box: who asks, what that one may, and the form of every answer.

It is the same behind dboxd and behind Apache. Who asks comes from the server in front, never from a header of the
request: DRE_CLIENT is the SHA-256 fingerprint of the verified client certificate, DRE_LOCAL_USER and DRE_LOCAL_EXE are
what the kernel tells of the other end of the local socket. What is answered is `dboxlib.api`'s, the page is
`dboxlib.page`'s. Text that came in as an entry only ever goes out as octets.
"""

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from dre.conf import Conf
from dre.errors import DreError, NotPermittedError
from dre.evidence import TamperedError

from dboxlib import api, clients, limits
from dboxlib.anchors import Anchors
from dboxlib.api import JSON, TEXT, Refused, Request
from dboxlib.clients import Client
from dboxlib.log import BusyError, ConflictError, Log, QuotaError

SKIP = 64 * 1024 * 1024  # octets of a refused body that are read, so that the client hears the refusal
ROLES = {
    "writer": {"append", "head"},
    "reader": {"head", "entry", "octets", "proof", "signature", "search", "status", "heads", "leaves"},
    "auditor": {"head", "entry", "proof", "search", "status", "heads", "leaves", "anchor"},
    "admin": {"head", "entry", "proof", "search", "status", "heads", "clients", "erase", "rotate", "anchor"},
}
# What a browser shall make of any answer: nothing. The page has a policy of its own. No Strict-Transport-Security: it
# holds for all ports of a host (RFC 6797, 8.3), and the specification's http://d-box:8080 would lead nowhere.
HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
FRONT = "/d_box_main.html"
StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Application:
    """One log behind HTTP."""

    def __init__(
        self, store: Any, log: Log, rate: float = 0.0, page: Wsgi | None = None, anchors: Anchors | None = None
    ) -> None:
        self.store = store
        self.log = log
        self.rate = limits.Rate(rate)
        self.page = page
        self.anchors = anchors

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if self.page is not None and (path == FRONT or path.startswith("/ui/")):
            return self.page(environ, _hardened(start))
        status, headers = "200 OK", dict[str, str]()
        try:
            body, kind = self._answer(environ)
        except Refused as refused:
            status, headers, body, kind = refused.status, refused.headers, f"{refused}\n".encode(), TEXT
            _skip(environ, headers)
        except TamperedError as error:
            status, body, kind = "500 Internal Server Error", f"tampered: {error}\n".encode(), TEXT
            self.log.tampered(error.index)
        except Exception as error:  # a bug or a sick disk: the client gets one line, the operator the reason
            sys.stderr.write(f"dboxd: {path!a}: {type(error).__name__}: {error}\n")
            status, body, kind = "500 Internal Server Error", b"internal error\n", TEXT
            headers = {"Connection": "close"}
        named = [("Content-Type", kind), ("Content-Length", str(len(body))), *headers.items(), *HEADERS]
        start(status, named)
        return [body]

    def _answer(self, environ: dict[str, Any]) -> api.Answer:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if self.page is not None and method in ("GET", "HEAD") and path == "/":
            raise Refused("302 Found", "see the page", Location=FRONT)
        if "DRE_CROWDED" in environ:
            raise Refused(
                "503 Service Unavailable", environ["DRE_CROWDED"], **{"Retry-After": "1", "Connection": "close"}
            )
        client = self._caller(environ)
        if seconds := self.rate.wait(client.fingerprint):
            raise Refused("429 Too Many Requests", "too many requests", **{"Retry-After": str(math.ceil(seconds))})
        right, call, match = api.find(method, path)
        if right not in ROLES[client.role]:
            raise Refused("403 Forbidden", f"role {client.role} may not do this: {method} {path}")
        answer: api.Answer = tried(lambda: call(Request(self.store, self.log, client, environ, match, self.anchors)))
        return answer

    def _caller(self, environ: dict[str, Any]) -> Client:
        """Who asks; the registration is in the log before it is honoured, or refused."""
        client = _find(self.store, environ)
        if client is None:
            raise Refused("403 Forbidden", f"{_told(environ)} has no role here; see dbox-init --client")
        if client.number > self.log.clients_logged:
            tried(self.log.log_clients)
        if not client.holds():
            raise Refused("403 Forbidden", f"{_told(environ)} has no role here any more: it was revoked or renewed")
        return client


def _find(store: Any, environ: dict[str, Any]) -> Client | None:
    if "DRE_LOCAL_USER" in environ:
        user, executable = environ["DRE_LOCAL_USER"], environ.get("DRE_LOCAL_EXE", "")
        for fingerprint in clients.candidates(user, executable) if user else ():
            found = clients.find(store, fingerprint)
            if found is not None and found.local:
                return found
        return None
    found = clients.find(store, environ.get("DRE_CLIENT", ""))
    return found if found is not None and not found.local else None


def _told(environ: dict[str, Any]) -> str:
    if "DRE_LOCAL_USER" in environ:
        user, executable = environ["DRE_LOCAL_USER"], environ.get("DRE_LOCAL_EXE", "")
        return f"user {user or '?'} running {ascii(executable or '?')[1:-1]}"
    return "this client certificate" if environ.get("DRE_CLIENT") else "a client without a certificate"


def tried(call: Callable[[], Any]) -> Any:
    """Ask the log; its refusals become answers."""
    try:
        return call()
    except BusyError as error:
        raise Refused("503 Service Unavailable", str(error), **{"Retry-After": "1"}) from None
    except ConflictError as error:
        raise Refused("409 Conflict", str(error)) from None
    except QuotaError as error:
        status = "507 Insufficient Storage" if error.full else "429 Too Many Requests"
        raise Refused(status, str(error), **{"Retry-After": str(error.retry_after)}) from None
    except NotPermittedError as error:
        raise Refused("403 Forbidden", str(error)) from None
    except TamperedError:
        raise
    except DreError as error:
        raise Refused("503 Service Unavailable", str(error), **{"Retry-After": "10"}) from None


def _skip(environ: dict[str, Any], headers: dict[str, str]) -> None:
    """Read and forget a body nobody wanted: a client that is still sending would not see the answer."""
    left = environ.get("CONTENT_LENGTH", "")
    left = int(left) if left.isdecimal() and len(left) < 19 else 0
    if left > SKIP:
        headers["Connection"] = "close"
        left = SKIP
    try:
        while left > 0 and (read := environ["wsgi.input"].read(min(left, 65_536))):
            left -= len(read)
    except OSError:
        headers["Connection"] = "close"


def _hardened(start: StartResponse) -> StartResponse:
    """*start* with our headers for what the page has none of its own."""

    def call(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        there = {name.lower() for name, _ in headers}
        return start(status, [*headers, *(one for one in HEADERS if one[0].lower() not in there)], *more)

    return call


def make(conf: Conf, store: Any, log: Log) -> Application:
    """The whole application of the settings, with the page where that is installed."""
    try:
        from dboxlib import page
    except ImportError:
        return Application(store, log, conf.dbox_client_rate, anchors=Anchors(conf, store))
    return Application(store, log, conf.dbox_client_rate, page.make(conf, store, log), Anchors(conf, store))


__all__ = ["JSON", "ROLES", "Application", "Refused", "make", "tried"]
