# SPDX-License-Identifier: Apache-2.0
"""The page's end of the socket of `dre-rules serve`: who asks goes along, who that is comes back with each answer."""

import json
import secrets
import socket
from typing import Any, NoReturn

from flask import abort, current_app, g, redirect, request
from werkzeug.exceptions import HTTPException

from monitorlib import deskserver
from monitorlib.page import CERTIFICATE

SESSION = "__Host-dre-rules"  # the browser itself refuses this name from a page that is not ours, or not HTTPS
BEFORE = "__Host-dre-rules-login"  # binds the form of the login to the browser it was sent to
TOKEN = "csrf"  # noqa: S105  # the field of a form
_STATUS = {1: 409, 2: 400, 3: 404, 4: 403, 5: 504, 6: 503, 500: 500}
Fields = dict[str, Any]


def ask(do: str, **fields: Any) -> Fields:
    """What is answered, with `error` where the rules in question are refused; any other refusal ends this request."""
    told = _asked(do, fields)
    g.who, g.csrf = told["who"], told["csrf"]
    if "error" in told and "findings" not in told:
        _refuse(told)
    return told


def _asked(do: str, fields: Fields) -> Fields:
    if not request.cookies.get(BEFORE):
        g.before = g.get("before") or secrets.token_urlsafe(32)
    sent = {
        "do": do,
        "session": request.cookies.get(SESSION, "")[:64],
        "certificate": request.environ.get(CERTIFICATE, ""),
        "before": (request.cookies.get(BEFORE) or g.before)[:64],
        "csrf": request.form.get(TOKEN, "")[:64] if request.method == "POST" else "",
        "address": (request.remote_addr or "?")[:100],
        **fields,
    }
    path = deskserver.path(current_app.config["CONF"])
    octets = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(deskserver.PATIENCE + 5)
            connection.connect(str(path))
            connection.sendall(json.dumps(sent).encode())
            connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(1 << 16):
                octets += block
    except OSError as error:
        abort(503, f"dre-rules serve does not answer: {error.strerror or error}")
    if not octets:
        abort(504, "it took too long, or too much, and was given up; nothing is half done")
    told: Fields = json.loads(octets)
    return told


def _refuse(told: Fields) -> NoReturn:
    """End this request with what was answered; who is nobody may log in instead."""
    status = 429 if "wait" in told else _STATUS.get(told["code"], 409)
    if status == 403 and g.who is None and request.method in ("GET", "HEAD"):
        abort(redirect("/login", 303))
    refused = HTTPException(told["error"])
    refused.code = status
    refused.retry_after = told.get("wait")  # type: ignore[attr-defined]
    raise refused
