# SPDX-License-Identifier: Apache-2.0
"""One entry: its three states, its octets made harmless, and what can be taken away to prove it elsewhere."""

import base64
import io
import zipfile

from dre.errors import NotFoundError
from flask import Blueprint, Response, g, render_template, request

from dboxlib import anchoring, clients
from dboxlib.page import access, app, show

views = Blueprint("entry", __name__)
NAMES = ("entry.tlog-proof", "entry.octets", "chain.pem")  # in the zip; dbox-verify wants these and nothing else
COMMENT = """Entry {number} of the log {origin}. Check it anywhere, without the D-Box and without a network:
dbox-verify --root root.pem entry-{number}.zip
root.pem is not in here: trust in evidence cannot come with the evidence. Get it on another way.
"""


@views.get("/ui/entries/<int:number>")
@access.needs("entry")
def entry(number: int) -> str:
    """The page of an entry."""
    page = app.page()
    found = page.checker.entry(number)
    readable = "octets" in g.who.rights
    shown = show.octets(found.octets) if readable and found.octets is not None else None
    writer = clients.find(page.store, found.header.writer) if found.header else None
    return render_template("entry.html", found=found, shown=shown, readable=readable, writer=writer)


@views.get("/ui/entries/<int:number>/octets")
@access.needs("octets")
def octets(number: int) -> Response:
    """The octets, unchanged, as a file and never as a document of this site."""
    return _file(_payload(number)[1], f"entry-{number}.octets")


@views.get("/ui/entries/<int:number>/proof")
@access.needs("proof")
def proof(number: int) -> Response:
    """The receipt under the newest tree head, or with ?anchored=yes under the newest that a witness cosigned."""
    page = app.page()
    if request.args.get("anchored") != "yes":
        return _file(page.log.receipt(number).format().encode(), f"entry-{number}.tlog-proof")
    found = anchoring.receipt(page.store, page.log, number)
    if found is None:
        raise NotFoundError(f"no tree head over entry {number} was cosigned by a witness")
    return _file(found.format().encode(), f"entry-{number}-anchored.tlog-proof")


@views.get("/ui/entries/<int:number>/zip")
@access.needs("octets")
def together(number: int) -> Response:
    """All that `dbox-verify` needs but the root."""
    page = app.page()
    parts = (page.log.receipt(number).format().encode(), _payload(number)[1], page.store.chain().encode())
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in zip(NAMES, parts, strict=True):
            archive.writestr(name, part)
        archive.comment = COMMENT.format(number=number, origin=page.store.origin).encode()
    return _file(made.getvalue(), f"entry-{number}.zip")


@views.get("/ui/entries/<int:number>/signature")
@access.needs("signature")
def signature(number: int) -> str:
    """The specification's signed digest."""
    key, time, value = app.page().log.signature(number)
    return render_template("signature.html", number=number, key=key, time=time, value=base64.b64encode(value).decode())


@views.get("/ui/chain.pem")
@access.needs("head")
def chain() -> Response:
    """The certificates below the root."""
    return _file(app.page().store.chain().encode(), "chain.pem")


@views.get("/ui/root.pem")
@access.needs("head")
def root() -> Response:
    """The root certificate as it lies on this box."""
    return _file(app.page().checker.root(), "root.pem")


@views.get("/ui/head")
@access.needs("head")
def head() -> Response:
    """The newest tree head."""
    return _file(app.page().log.newest()[1].format().encode(), "tree-head.txt")


def _payload(number: int) -> tuple[bytes, bytes, bytes]:
    kept = app.page().store.payload(number) if number < app.page().log.newest()[0].size else None
    if kept is None:
        raise NotFoundError(f"no entry {number}")
    if kept[1] is None:
        raise NotFoundError(f"the octets of entry {number} were erased")
    header, value, salt = kept
    return header, value, salt


def _file(value: bytes, name: str) -> Response:
    response = Response(value, mimetype="application/octet-stream")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'; sandbox"
    return response
