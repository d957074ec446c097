# SPDX-License-Identifier: Apache-2.0
"""Events over HTTPS: `POST /events`, behind Apache and mod_wsgi, which has verified the client's certificate.

Nothing is kept here: lines go to the intake, packet by packet, and the answer says how many it has spooled. Who asks is
what mod_ssl says; headers of the request come as HTTP_… and are never asked. The settings are those of DRE_CONFIG.
"""

import base64
import contextlib
import functools
import json
import re
import socket
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from dre import conf, event

from monitorlib import remotes

LARGEST = 4 * 1024 * 1024  # octets of a request
WAIT = 5.0  # seconds for an answer of the intake
AFTER = "1"  # seconds until the client should send the rest again
_LENGTH = re.compile(r"\d{1,12}")
_LINES = ("application/x-ndjson", "application/jsonl", "application/json", "text/plain", "")
_CLOUDS = ("application/cloudevents+json", "application/cloudevents-batch+json")
_ATTRIBUTE = "HTTP_CE_"
Line = tuple[int, bytes]  # its number in the request, from 1, and an event
Refusal = dict[str, Any]  # line and reason
Start = Callable[..., Any]


class _RefusedError(Exception):
    """A request that is not taken: *status*, and what is wrong with it."""

    def __init__(self, status: HTTPStatus, said: str, **headers: str) -> None:
        super().__init__(said)
        self.status, self.headers = status, headers


def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """WSGI (PEP 3333)."""
    headers: dict[str, str] = {}
    try:
        name, lines, refused = _request(environ)
        status, told = _hand_over(_conf(environ.get("DRE_CONFIG") or None), name, lines, refused)
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = AFTER
    except _RefusedError as error:
        status, told, headers = error.status, {"error": str(error)}, error.headers
    body = json.dumps(told).encode() + b"\n"
    headers |= {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    start(f"{status.value} {status.phrase}", list(headers.items()))
    return [body]


@functools.lru_cache(maxsize=4)
def _conf(path: str | None) -> conf.Conf:
    return conf.load(path)


def _request(environ: dict[str, Any]) -> tuple[str, list[Line], list[Refusal]]:
    """Who sends which lines, and what of the request is none."""
    if environ.get("PATH_INFO") != "/events":
        raise _RefusedError(HTTPStatus.NOT_FOUND, "there is /events only")
    if environ["REQUEST_METHOD"] != "POST":
        raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "events are sent by POST", Allow="POST")
    name = environ.get("SSL_CLIENT_S_DN_CN", "") if environ.get("SSL_CLIENT_VERIFY") == "SUCCESS" else ""
    if not remotes.NAME.fullmatch(name):
        raise _RefusedError(HTTPStatus.FORBIDDEN, "a client certificate with a host's name is needed")
    length = environ.get("CONTENT_LENGTH") or ""
    if not _LENGTH.fullmatch(length):
        raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "the length of the body must be told")
    if int(length) > LARGEST:
        raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST} octets at once")
    body = environ["wsgi.input"].read(int(length))
    if len(body) != int(length):
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "the body ends early")
    lines, refused = _lines(environ, body)
    if not lines and not refused:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "no event in it")
    return name, lines, refused


def _lines(environ: dict[str, Any], body: bytes) -> tuple[list[Line], list[Refusal]]:
    """The event lines of a body, by its media type; and which of its CloudEvents are none."""
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if "HTTP_CE_SPECVERSION" in environ:
        return _clouds([_from_headers(environ, kind, body)])
    if kind in _CLOUDS:
        from monitorlib.formats import cloudevents

        return _clouds(record for _, record in cloudevents.records([body]))
    if kind in _LINES:
        return [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()], []
    raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{kind[:60]!r}: send application/x-ndjson, or CloudEvents")


def _clouds(records: Iterable[Any]) -> tuple[list[Line], list[Refusal]]:
    """The lines of CloudEvents."""
    from monitorlib.formats import cloudevents

    lines, refused = list[Line](), list[Refusal]()
    for number, record in enumerate(records, 1):
        try:
            lines.append((number, event.format(cloudevents.read(record)).rstrip(b"\n")))
        except event.EventError as error:
            refused.append({"line": number, "reason": str(error)[:300]})
    return lines, refused


def _from_headers(environ: dict[str, Any], kind: str, body: bytes) -> dict[str, Any]:
    """The CloudEvent whose attributes are headers and whose data are the body: the HTTP binding's binary mode."""
    found: dict[str, Any] = {
        key.removeprefix(_ATTRIBUTE).lower(): urllib.parse.unquote(value, errors="replace")
        for key, value in environ.items()
        if key.startswith(_ATTRIBUTE)
    }
    if "sev" in found and found["sev"].isdecimal():
        found["sev"] = int(found["sev"][:3])
    if body and (kind == "application/json" or kind.endswith("+json")):
        try:
            return {**found, "data": json.loads(body.decode())}
        except (ValueError, RecursionError) as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"data: not JSON: {error}"[:300]) from None
    if body:
        found |= {"data_base64": base64.b64encode(body).decode(), **({"datacontenttype": kind} if kind else {})}
    return found


def _hand_over(
    settings: conf.Conf, name: str, lines: list[Line], none: list[Refusal]
) -> tuple[HTTPStatus, dict[str, Any]]:
    """Give *lines* to the intake; the status and what to tell: 202 once each was kept or refused, else 503.

    Lines go in order, so with 503 the first accepted + refused ones are dealt with, and the rest is to be sent again.
    """
    kept, refused, reasons = 0, len(none), none[: remotes.TOLD]
    told: dict[str, Any] = {"accepted": 0, "refused": refused}
    try:
        with contextlib.closing(_connect(settings)) as intake:
            for part in _packets(name, lines):
                intake.send(remotes.pack(name, [line for _, line in part]))
                answer = intake.recv(remotes.PACKET)
                if answer.startswith(b"no: "):
                    raise _RefusedError(HTTPStatus.FORBIDDEN, answer[4:].decode())
                if not answer:
                    raise ConnectionError("the intake ended")
                said = json.loads(answer)
                if said["full"]:
                    return HTTPStatus.SERVICE_UNAVAILABLE, {**told, "error": said["full"]}
                kept, refused = kept + said["kept"], refused + said["refused"]
                reasons += [{"line": part[number][0], "reason": reason} for number, reason in said["reasons"]]
                told = {"accepted": kept, "refused": refused}
    except OSError as error:
        return HTTPStatus.SERVICE_UNAVAILABLE, {**told, "error": f"intake: {error.strerror or error}"}
    if reasons:
        told["reasons"] = reasons[: remotes.TOLD]
    return HTTPStatus.ACCEPTED if kept else HTTPStatus.BAD_REQUEST, told


def _connect(settings: conf.Conf) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(WAIT)
        connection.connect(str(settings.monitor_sink))
    except OSError:
        connection.close()
        raise
    return connection


def _packets(name: str, lines: list[Line]) -> Iterator[list[Line]]:
    """What goes into one packet of the intake each."""
    room = remotes.PACKET - len(remotes.FROM) - len(name)
    size, part = 0, list[Line]()
    for number, line in lines:
        cut = line[: event.LIMIT + 1]  # the intake says what is wrong with it
        if part and (len(part) == remotes.LINES or size + len(cut) + 1 > room):
            yield part
            size, part = 0, []
        part.append((number, cut))
        size += len(cut) + 1
    if part:
        yield part
