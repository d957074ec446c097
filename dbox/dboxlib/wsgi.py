# SPDX-License-Identifier: Apache-2.0
"""The WSGI application of the D-Box: who may ask what, and the octets of each answer.

It expects the SHA-256 fingerprint of the verified client certificate in the environment (DRE_CLIENT, set by the
server in front and not by a request header) and looks up its role in the store. Text that came in as an entry only
ever goes out as octets.
"""

import base64
import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from dre import dbox, event, trust, units
from dre.errors import DreError, UsageError

from dboxlib import clients
from dboxlib.clients import Client
from dboxlib.log import BusyError, ConflictError
from dboxlib.sequencer import Sequencer
from dboxlib.store import Store

ENTRIES = 5_000  # in one batch
BODY = dbox.LARGEST + 65_536  # one entry of the largest size, or many with their lengths
PAGE = 1_000  # rows of one search
SKIP = 64 * 1024 * 1024  # octets of a refused body that are read, so that the client hears the refusal
ROLES = {
    "writer": {"append", "head"},
    "reader": {"head", "entry", "octets", "proof", "signature", "search"},
    "auditor": {"head", "entry", "proof", "search"},
    "admin": {"head", "entry", "proof", "search"},
}
_ENTRY = re.compile(r"/v1/entries/(0|[1-9][0-9]{0,17})(?:/(octets|proof|signature))?")
Answer = tuple[bytes, str]  # body, content type
StartResponse = Callable[..., Any]
TEXT, OCTETS, JSON = "text/plain; charset=utf-8", "application/octet-stream", "application/json"


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: str, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class Application:
    """One log behind HTTP."""

    def __init__(self, store: Store, sequencer: Sequencer) -> None:
        self.store = store
        self.sequencer = sequencer

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        headers: dict[str, str] = {}
        try:
            body, kind = self._answer(environ)
            status = "200 OK"
        except Refused as refused:
            status, headers, body, kind = refused.status, refused.headers, f"{refused}\n".encode(), TEXT
            _skip(environ)
        except Exception as error:  # a bug or a sick disk: the client gets one line, the operator the reason
            sys.stderr.write(f"dboxd: {environ.get('PATH_INFO')}: {type(error).__name__}: {error}\n")
            status, body, kind = "500 Internal Server Error", b"internal error\n", TEXT
            headers = {"Connection": "close"}
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *headers.items()])
        return [body]

    def _answer(self, environ: dict[str, Any]) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        client = self._caller(environ)

        def may(what: str) -> None:
            if what not in ROLES[client.role]:
                raise Refused("403 Forbidden", f"role {client.role} may not do this: {method} {path}")

        if method == "POST" and path in ("/v1/entries", "/v1/batch"):
            may("append")
            return self._append(environ, client, path == "/v1/batch")
        if method != "GET":
            raise Refused("405 Method Not Allowed", f"{method} is not a method of {path}")
        if match := _ENTRY.fullmatch(path):
            may(match[2] or "entry")
            return self._entry(int(match[1]), match[2])
        if path == "/v1/checkpoint":
            may("head")
            return self.sequencer.note.format().encode(), TEXT
        if path == "/v1/keys":
            may("head")
            return self.store.chain().encode(), "application/x-pem-file"
        if path == "/v1/consistency":
            may("head")
            return self._consistency(_query(environ))
        if path == "/v1/search":
            may("search")
            return self._search(_query(environ))
        raise Refused("404 Not Found", f"{path}: no such resource")

    def _caller(self, environ: dict[str, Any]) -> Client:
        """Who asks; the registration is in the log before it is honoured, or refused."""
        client = clients.find(self.store, environ.get("DRE_CLIENT", ""))
        if client is None:
            raise Refused("403 Forbidden", "this client has no role here; see dbox-init --client")
        if client.number > self.sequencer.clients_logged:
            _tried(self.sequencer.log_clients)
        if not client.holds(event.stamp()):
            raise Refused("403 Forbidden", "this client has no role here any more: it was revoked or renewed")
        return client

    def _append(self, environ: dict[str, Any], client: Client, batch: bool) -> Answer:
        stream, seq = _named(environ)
        if not client.may_write_to(stream):
            raise Refused("403 Forbidden", f"client {client.name} may not write to stream {stream}")
        body = _body(environ)
        parts = [body]
        if batch:
            try:
                parts = dbox.unframe(body)
            except UsageError as error:
                raise Refused("400 Bad Request", str(error)) from None
        if not parts or not all(parts):
            raise Refused("400 Bad Request", "an entry of no octets")
        if len(parts) > ENTRIES:
            raise Refused("413 Content Too Large", f"more than {ENTRIES} entries in a batch")
        if max(map(len, parts)) > dbox.LARGEST:
            raise Refused("413 Content Too Large", f"an entry is at most {dbox.LARGEST} octets")
        outcome = _tried(lambda: self.sequencer.submit(client.fingerprint, stream, seq, parts))
        receipts = [self.sequencer.receipt(number, outcome).format().encode() for number in outcome.numbers]
        return (dbox.frame(receipts), OCTETS) if batch else (receipts[0], TEXT)

    def _entry(self, number: int, part: str | None) -> Answer:
        fields = self.store.entry(number)
        if fields is None or number >= self.sequencer.head.size:
            raise Refused("404 Not Found", f"no entry {number}; the log has {self.sequencer.head.size}")
        if part == "proof":
            return self.sequencer.receipt(number).format().encode(), TEXT
        if part == "signature":
            return self._signature(number), JSON
        if part == "octets":
            return self._octets(number), OCTETS
        return _json(fields), JSON

    def _octets(self, number: int) -> bytes:
        payload = self.store.payload(number)
        if payload is None or payload[1] is None:
            raise Refused("404 Not Found", f"the octets of entry {number} are gone")
        return payload[1]

    def _signature(self, number: int) -> bytes:
        """The specification's signed digest, made when it is first asked for and kept."""
        if self.store.signature(number) is None:
            signer = self.sequencer.signer
            value, key = signer.digest(self._octets(number)), trust.fingerprint(signer.sign.certificate)
            self.store.keep_signature(number, key, event.stamp(), value)
        kept = self.store.signature(number)
        assert kept is not None
        fields = dict(zip(("key", "time", "signature"), (*kept[:2], base64.b64encode(kept[2]).decode()), strict=True))
        return _json({"index": number, **fields})

    def _consistency(self, query: dict[str, str]) -> Answer:
        old, new = (_count(query, key, 0) for key in ("old", "new"))
        if not 0 < old <= new <= self.sequencer.head.size:
            raise Refused("400 Bad Request", f"expected 0 < old <= new <= {self.sequencer.head.size}")
        return dbox.frame(self.sequencer.tree.consistency(old, new)), OCTETS

    def _search(self, query: dict[str, str]) -> Answer:
        unknown = set(query) - {"stream", "type", "writer", "after", "limit"}
        if unknown:
            raise Refused("400 Bad Request", f"cannot search by {min(unknown)!r}")
        wanted: dict[str, str | int] = {key: query[key] for key in ("stream", "type", "writer") if key in query}
        if "after" in query:
            wanted["after"] = _count(query, "after", 0)
        limit = min(_count(query, "limit", PAGE), PAGE)
        return b"".join(_json(row) for row in self.store.search(wanted, limit)), "application/jsonl"


def _tried(call: Callable[[], Any]) -> Any:
    """Ask the sequencer; its refusals become answers."""
    try:
        return call()
    except BusyError as error:
        raise Refused("503 Service Unavailable", str(error), **{"Retry-After": "1"}) from None
    except ConflictError as error:
        raise Refused("409 Conflict", str(error)) from None
    except DreError as error:
        raise Refused("503 Service Unavailable", str(error), **{"Retry-After": "10"}) from None


def _named(environ: dict[str, Any]) -> tuple[str, int]:
    """Stream and sequence number of what is appended."""
    stream, seq = environ.get("HTTP_X_DRE_STREAM", ""), environ.get("HTTP_X_DRE_SEQ", "")
    if not units.NAME.fullmatch(stream):
        raise Refused("400 Bad Request", "X-DRE-Stream: expected a name of 1 to 31 of a-z, 0-9 and '-'")
    if not re.fullmatch(r"[1-9][0-9]{0,17}", seq):
        raise Refused("400 Bad Request", "X-DRE-Seq: expected a number from 1")
    return stream, int(seq)


def _body(environ: dict[str, Any]) -> bytes:
    length = environ.get("CONTENT_LENGTH", "")
    if not length.isdecimal() or "HTTP_TRANSFER_ENCODING" in environ:
        raise Refused("411 Length Required", "a body needs a Content-Length", Connection="close")
    if int(length) > BODY:
        raise Refused("413 Content Too Large", f"an entry is at most {dbox.LARGEST} octets", Connection="close")
    body = bytes(environ["wsgi.input"].read(int(length)))
    if len(body) != int(length):
        raise Refused("400 Bad Request", "the body ended early", Connection="close")
    return body


def _skip(environ: dict[str, Any]) -> None:
    """Read and forget a body nobody wanted: a client that is still sending would not see the answer."""
    left = environ.get("CONTENT_LENGTH", "")
    left = min(int(left), SKIP) if left.isdecimal() else 0
    while left > 0 and (read := environ["wsgi.input"].read(min(left, 65_536))):
        left -= len(read)


def _query(environ: dict[str, Any]) -> dict[str, str]:
    return dict(parse_qsl(environ.get("QUERY_STRING", ""), max_num_fields=16))


def _count(query: dict[str, str], key: str, default: int) -> int:
    text = query.get(key, str(default))
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Refused("400 Bad Request", f"{key}: expected a number")
    return int(text)


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
