# SPDX-License-Identifier: Apache-2.0
"""The resources of the D-Box under /v1/: what is asked, how it is checked, and the octets of the answer.

Who may ask is decided before, in `dboxlib.wsgi`. Nothing here keeps anything between two requests.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl

from dre import dbox, evidence, handover, units
from dre.errors import UsageError

from dboxlib import anchoring, clients, rotation, searching
from dboxlib.anchors import Anchors
from dboxlib.clients import Client
from dboxlib.log import Log
from dboxlib.page import erasing

ENTRIES = 5_000  # in one batch
BODY = dbox.LARGEST + 65_536  # one entry of the largest size, or many with their lengths
PAGE = 1_000  # rows of one search, tree heads of one answer
LEAVES = 20_000  # headers of one answer
SMALL = 64 * 1024  # octets of what is no entry
ANCHORS = ("witness", "rfc3161")
TEXT, OCTETS, JSON, LINES = (
    "text/plain; charset=utf-8",
    "application/octet-stream",
    "application/json",
    "application/jsonl",
)
SEARCH = ("stream", "type", "writer", "digest", "text", "after", "before", "since", "until")
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
Answer = tuple[bytes, str]  # body, content type


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: str, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


@dataclass(frozen=True)
class Request:
    """One question of *client*, who has the right to ask it."""

    store: Any
    log: Log
    client: Client
    environ: dict[str, Any]
    match: re.Match[str]
    anchors: Anchors | None = None

    @property
    def number(self) -> int:
        """The entry that the path names."""
        return int(self.match[1])

    def query(self, *known: str) -> dict[str, str]:
        """What stands behind the question mark; nothing but *known* may."""
        query = dict(parse_qsl(self.environ.get("QUERY_STRING", ""), keep_blank_values=True, max_num_fields=16))
        for key in query:
            if key not in known:
                raise Refused("400 Bad Request", f"cannot search by {key[:40]!a}")
        return query


def append(request: Request) -> Answer:
    """POST /v1/entries: one entry."""
    body = _body(request.environ)
    stream, seq = _checked(request, [body])
    return request.log.append(request.client.fingerprint, stream, seq, body), TEXT


def append_batch(request: Request) -> Answer:
    """POST /v1/batch: several entries; their receipts, or one for the run where that is asked for and can be."""
    try:
        parts = dbox.unframe(_body(request.environ))
    except UsageError as error:
        raise Refused("400 Bad Request", str(error)) from None
    stream, seq = _checked(request, parts)
    outcome = request.log.submit(request.client.fingerprint, stream, seq, parts)
    if request.environ.get("HTTP_X_DRE_RECEIPTS") == "run" and outcome.first is not None:
        return outcome.run().format().encode(), TEXT
    receipts = request.log.receipts(outcome.numbers, outcome)
    return dbox.frame([one.format().encode() for one in receipts]), OCTETS


def _checked(request: Request, parts: list[bytes]) -> tuple[str, int]:
    """Stream and number under which *parts* may be appended as consecutive entries, all or none."""
    stream, seq = _named(request.environ)
    if not request.client.may_write_to(stream):
        raise Refused("403 Forbidden", f"client {request.client.name} may not write to stream {stream}")
    if not parts or not all(parts):
        raise Refused("400 Bad Request", "an entry of no octets")
    if len(parts) > ENTRIES:
        raise Refused("413 Content Too Large", f"more than {ENTRIES} entries in a batch")
    if max(map(len, parts)) > dbox.LARGEST:
        raise Refused("413 Content Too Large", f"an entry is at most {dbox.LARGEST} octets")
    return stream, seq


def entry(request: Request) -> Answer:
    """GET /v1/entries/N: its fields."""
    fields = request.store.entry(_there(request))
    assert fields is not None
    return _json(fields), JSON


def octets(request: Request) -> Answer:
    """GET /v1/entries/N/octets."""
    payload = request.store.payload(_there(request))
    if payload[1] is None:
        raise Refused("404 Not Found", f"the octets of entry {request.number} are gone")
    return payload[1], OCTETS


def proof(request: Request) -> Answer:
    """GET /v1/entries/N/proof[?anchored=yes]: its receipt under the newest tree head, or the newest cosigned one."""
    number = _there(request)
    if request.query("anchored").get("anchored") == "yes":
        return _anchored(request, number).format().encode(), TEXT
    return request.log.receipt(number).format().encode(), TEXT


def _anchored(request: Request, number: int) -> evidence.Receipt:
    """The receipt of an entry under the newest tree head that witnesses cosigned, with their lines."""
    found = anchoring.receipt(request.store, request.log, number)
    if found is None:
        raise Refused("404 Not Found", f"no tree head over entry {number} was cosigned by a witness")
    return found


def signature(request: Request) -> Answer:
    """GET /v1/entries/N/signature: the specification's signed digest."""
    key, time, value = request.log.signature(_there(request))
    told: dict[str, Any] = {"index": request.number, "key": key, "time": time}
    told["signature"] = base64.b64encode(value).decode()
    weak = request.log.md5_signature(request.number)
    if weak is not None:
        told["md5"] = {"key": weak[0], "signature": base64.b64encode(weak[1]).decode()}
    return _json(told), JSON


def checkpoint(request: Request) -> Answer:
    """GET /v1/checkpoint: the newest tree head."""
    return request.log.newest()[1].format().encode(), TEXT


def keys(request: Request) -> Answer:
    """GET /v1/keys: all certificates below the root."""
    return request.store.chain().encode(), "application/x-pem-file"


def handovers(request: Request) -> Answer:
    """GET /v1/handovers: the proofs of all changes of the sign key."""
    return handover.format(rotation.proofs(request.store, request.log)), TEXT


def consistency(request: Request) -> Answer:
    """GET /v1/consistency?old=M&new=N."""
    query = request.query("old", "new")
    old, new = (_count(query, key, 0) for key in ("old", "new"))
    size = request.log.newest()[0].size
    if not 0 < old <= new <= size:
        raise Refused("400 Bad Request", f"expected 0 < old <= new <= {size}")
    return dbox.frame(request.log.consistency(old, new)), OCTETS


def search(request: Request) -> Answer:
    """GET /v1/search: entries as JSON Lines."""
    query = request.query(*SEARCH, "limit")
    wanted: dict[str, str | int] = {key: query[key] for key in SEARCH if key in query}
    for key in ("after", "before"):
        if key in query:
            wanted[key] = _count(query, key, 0)
    for key in ("since", "until"):
        if key in query and not _STAMP.fullmatch(query[key]):
            raise Refused("400 Bad Request", f"{key}: expected a time such as 2026-11-23T08:00:00.123Z")
    if not re.fullmatch("[0-9a-f]{64}", query.get("digest", "0" * 64)):
        raise Refused("400 Bad Request", "digest: expected SHA-256 in hex")
    limit = min(_count(query, "limit", PAGE), PAGE)
    return b"".join(_json(row) for row in searching.find(request.store, wanted, limit)), LINES


def status(request: Request) -> Answer:
    """GET /v1/status."""
    told = request.log.status()
    judged = request.anchors.judge(told["size"]) if request.anchors else None
    return _json({**told, "anchored": asdict(judged)} if judged else told), JSON


def heads(request: Request) -> Answer:
    """GET /v1/heads?after=N: tree heads of more than N entries, each with its anchors, as JSON Lines."""
    query = request.query("after", "limit")
    after = _count(query, "after", 0) if "after" in query else -1
    limit = max(1, min(_count(query, "limit", PAGE), PAGE))
    found = list(request.store.heads(after, limit))
    anchors: dict[int, list[dict[str, str]]] = {}
    for kind, name, size, time, value in request.store.anchors(after) if found else ():
        told = {"kind": kind, "name": name, "time": time, "octets": base64.b64encode(value).decode()}
        anchors.setdefault(size, []).append(told)
    rows = ({"size": size, "note": note, "anchors": anchors.get(size, [])} for size, note in found)
    return b"".join(_json(row) for row in rows), LINES


def leaves(request: Request) -> Answer:
    """GET /v1/leaves?from=M&to=N: the headers of entries M to N-1, framed; fewer where they are many."""
    query = request.query("from", "to")
    size = request.log.newest()[0].size
    first, end = _count(query, "from", 0), min(_count(query, "to", size), size)
    return dbox.frame([header for _, header, _ in request.store.headers(first, min(end, first + LEAVES))]), OCTETS


def registered(request: Request) -> Answer:
    """GET /v1/clients: everybody's registration that counts, as JSON Lines."""
    request.log.log_clients()
    return b"".join(_json({**one.fields(), "time": one.time}) for one in clients.current(request.store)), LINES


def erase(request: Request) -> Answer:
    """POST /v1/entries/N/erase with {"reason": "…"}: the first admin's is asked for in the log, the second's is done.

    What was asked for is an entry of the D-Box itself, so that nothing is kept here and both are on record.
    """
    number, reason = _there(request), str(_fields(request, "reason")["reason"])
    if not 0 < len(reason) <= 500 or not reason.isprintable():
        raise Refused("400 Bad Request", "reason: expected 1 to 500 printable characters")
    if request.store.payload(number)[1] is None:
        raise Refused("409 Conflict", f"the octets of entry {number} are gone already")
    others = (one for one in erasing.waiting(request.store) if one.by.fingerprint != request.client.fingerprint)
    first = next((one.by.fingerprint for one in others if (one.index, one.reason) == (number, reason)), None)
    if first is not None:
        outcome = request.log.erase(number, reason, first, request.client.fingerprint)
        return _json({"index": number, "state": "erased", "entry": outcome.numbers[-1]}), JSON
    data: dict[str, object] = {"index": number, "reason": reason, "by": request.client.fingerprint}
    outcome = request.log.submit_own(erasing.ASKED, data)
    return _json({"index": number, "state": "asked", "entry": outcome.numbers[-1]}), JSON


def rotate(request: Request) -> Answer:
    """POST /v1/rotate: the next sign key now."""
    _body(request.environ, SMALL)
    request.log.rotate()
    return _json(request.log.status()["key"]), JSON


def anchor(request: Request) -> Answer:
    """POST /v1/anchors with {"kind", "octets": base64, "name", "size"}: what a third party said of a tree head."""
    fields = _fields(request, "kind", "octets", "name", "size")
    kind, name, size = fields["kind"], fields.get("name", ""), fields.get("size")
    newest = request.log.newest()[0].size
    if kind not in ANCHORS or not isinstance(name, str) or not name.isprintable() or len(name) > 255:
        raise Refused("400 Bad Request", f"expected kind ({' or '.join(ANCHORS)}) and name")
    if size is not None and not (isinstance(size, int) and 0 <= size <= newest):
        raise Refused("400 Bad Request", f"size: expected that of a tree head, at most {newest}")
    try:
        value = base64.b64decode(str(fields["octets"]), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("400 Bad Request", "octets: expected base64") from None
    if not value:
        raise Refused("400 Bad Request", "octets: expected some")
    request.log.anchor(kind, value, name, size)
    return _json({"kind": kind, "name": name, "size": newest if size is None else size}), JSON


# --- Finding the resource ---

Call = Callable[[Request], Answer]
_N = "(0|[1-9][0-9]{0,17})"
_RESOURCES: list[tuple[str, re.Pattern[str], str, Call]] = [
    (method, re.compile(path), right, call)
    for method, path, right, call in (
        ("POST", "/v1/entries", "append", append),
        ("POST", "/v1/batch", "append", append_batch),
        ("GET", f"/v1/entries/{_N}", "entry", entry),
        ("GET", f"/v1/entries/{_N}/octets", "octets", octets),
        ("GET", f"/v1/entries/{_N}/proof", "proof", proof),
        ("GET", f"/v1/entries/{_N}/signature", "signature", signature),
        ("GET", "/v1/checkpoint", "head", checkpoint),
        ("GET", "/v1/keys", "head", keys),
        ("GET", "/v1/handovers", "head", handovers),
        ("GET", "/v1/consistency", "head", consistency),
        ("GET", "/v1/search", "search", search),
        ("GET", "/v1/status", "status", status),
        ("GET", "/v1/heads", "heads", heads),
        ("GET", "/v1/leaves", "leaves", leaves),
        ("GET", "/v1/clients", "clients", registered),
        ("POST", f"/v1/entries/{_N}/erase", "erase", erase),
        ("POST", "/v1/rotate", "rotate", rotate),
        ("POST", "/v1/anchors", "anchor", anchor),
    )
]


def find(method: str, path: str) -> tuple[str, Call, re.Match[str]]:
    """The right that is needed, who answers, and what the path names. Raises Refused."""
    there = False
    for asked, pattern, right, call in _RESOURCES:
        if match := pattern.fullmatch(path):
            if asked == method:
                return right, call, match
            there = True
    if there or method != "GET":
        raise Refused("405 Method Not Allowed", f"{method} is not a method of {path}")
    raise Refused("404 Not Found", f"{path}: no such resource")


# --- What comes in ---


def _there(request: Request) -> int:
    size = request.log.newest()[0].size
    if request.number >= size:
        raise Refused("404 Not Found", f"no entry {request.number}; the log has {size}")
    return request.number


def _named(environ: dict[str, Any]) -> tuple[str, int]:
    """Stream and sequence number of what is appended."""
    stream, seq = environ.get("HTTP_X_DRE_STREAM", ""), environ.get("HTTP_X_DRE_SEQ", "")
    if not units.is_name(stream):
        raise Refused("400 Bad Request", "X-DRE-Stream: expected a name of 1 to 31 of a-z, 0-9 and '-'")
    if not re.fullmatch(r"[1-9][0-9]{0,17}", seq):
        raise Refused("400 Bad Request", "X-DRE-Seq: expected a number from 1")
    return stream, int(seq)


def _body(environ: dict[str, Any], most: int = BODY) -> bytes:
    length = environ.get("CONTENT_LENGTH", "")
    if not length.isdecimal() or "HTTP_TRANSFER_ENCODING" in environ:
        raise Refused("411 Length Required", "a body needs a Content-Length", Connection="close")
    if len(length) > 18 or int(length) > most:
        what = f"an entry is at most {dbox.LARGEST} octets" if most == BODY else f"at most {most} octets"
        raise Refused("413 Content Too Large", what, Connection="close")
    try:
        body = bytes(environ["wsgi.input"].read(int(length)))
    except OSError:
        body = b""
    if len(body) != int(length):
        raise Refused("400 Bad Request", "the body ended early", Connection="close")
    return body


def _fields(request: Request, needed: str, *more: str) -> dict[str, Any]:
    """The JSON object of a body. Its first named field must be there, and no others than those named."""
    try:
        fields = json.loads(_body(request.environ, SMALL))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or needed not in fields or not set(fields) <= {needed, *more}:
        raise Refused("400 Bad Request", f"expected a JSON object with {', '.join((needed, *more))}")
    return fields


def _count(query: dict[str, str], key: str, default: int) -> int:
    text = query.get(key, str(default))
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Refused("400 Bad Request", f"{key}: expected a number")
    return int(text)


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
