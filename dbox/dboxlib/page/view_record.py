# SPDX-License-Identifier: Apache-2.0
"""Recording an entry by hand: typed, or a file."""

import re
import secrets

from dre import dbox, units
from dre.errors import UsageError
from flask import Blueprint, abort, g, render_template, request

from dboxlib.log import BusyError, ConflictError, Outcome
from dboxlib.page import access, app

views = Blueprint("record", __name__)
TRIES = 5
STREAM = "notes"  # what the form proposes to those who may write to any stream


@views.get("/ui/record")
@access.needs("record")
def record() -> str:
    """The form."""
    bound = g.who.client.streams.split()
    stream = bound[0] if bound else STREAM
    return render_template("record.html", bound=bound, stream=stream, once=secrets.token_hex(16))


@views.post("/ui/record")
@access.needs("record")
def keep() -> str:
    """Append what was sent and show where it is; the octets are exactly those of the field or the file."""
    page, client = app.page(), g.who.client
    stream = units.name(request.form.get("stream", "").strip())
    if not client.may_write_to(stream):
        abort(403, f"{client.name} may not write to stream {stream}")
    octets = _octets()
    token = request.form.get("once", "")
    if not re.fullmatch(r"[0-9a-f]{32}", token):
        abort(400, "this form is too old: load the page again")
    outcome = _append(page, client.fingerprint, stream, token, octets)
    return render_template("recorded.html", number=outcome.numbers[0], stream=stream, length=len(octets))


def _append(page: app.Page, identity: str, stream: str, token: str, octets: bytes) -> Outcome:
    """Append once however often the form is sent; another entry may take the number we mean to take."""
    known = page.accounts.once(identity, token)
    for _ in range(TRIES):
        seq = known[1] if known and known[0] == stream else page.store.last_seq(identity, stream) + 1
        page.accounts.keep_once(identity, token, stream, seq)
        try:
            return page.log.submit(identity, stream, seq, [octets])
        except ConflictError:
            known = None
    raise BusyError(f"others keep writing to stream {stream} in your name: try again")


def _octets() -> bytes:
    """What is to be recorded. Raises UsageError."""
    sent = request.files.get("file")
    octets = sent.read(dbox.LARGEST + 1) if sent is not None and sent.filename else b""
    typed = request.form.get("text", "").replace("\r\n", "\n").encode("utf-8", "replace")
    if octets and typed:
        raise UsageError("a text and a file were given: record one of them")
    octets = octets or typed
    if not octets:
        raise UsageError("nothing to record: no entry has no octets")
    if len(octets) > dbox.LARGEST:
        raise UsageError(f"an entry is at most {dbox.LARGEST} octets")
    return bytes(octets)
