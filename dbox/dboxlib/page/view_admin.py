# SPDX-License-Identifier: Apache-2.0
"""For administrators: roles, accounts, the sign key, and erasures that two must want. Every change is an entry."""

import secrets

from dre import units
from dre.errors import UsageError
from dre.streams import DEFAULT, OTHERS, Policy
from flask import Blueprint, abort, g, redirect, render_template, request
from werkzeug.wrappers import Response

from dboxlib import clients
from dboxlib.page import access, app, erasing
from dboxlib.page.accounts import fingerprint

views = Blueprint("admin", __name__)
ASKED = {*clients.ROLES, clients.REVOKED}


@views.get("/ui/admin")
@access.needs("admin")
def admin() -> str:
    """The lists and forms."""
    return _render()


def _render(made: tuple[str, str] | None = None) -> str:
    page = app.page()
    known = clients.current(page.store)
    accounts = {fingerprint(name) for name in page.accounts.names()}
    return render_template(
        "admin.html",
        known=known,
        accounts=accounts,
        roles=clients.ROLES,
        made=made,
        erasures=erasing.waiting(page.store),
        told=page.log.status(),
        rules=[*page.conf.dbox_streams.named, *_others(page)],
    )


def _others(page: app.Page) -> list[tuple[str, Policy]]:
    """The rules of streams that are not named, where the settings leave them out."""
    there = any(name == OTHERS for name, _ in page.conf.dbox_streams.named)
    return [] if there else [(OTHERS, DEFAULT)]


@views.post("/ui/admin/role")
@access.needs("admin")
def role() -> Response:
    """Another role for a client, or none."""
    page, wanted = app.page(), request.form.get("role", "")
    client = clients.find(page.store, request.form.get("fingerprint", ""))
    if client is None:
        abort(404, "no such client")
    if wanted not in ASKED:
        raise UsageError(f"no role {wanted[:20]!r}")
    if client.role == clients.REVOKED and client.fingerprint != fingerprint(client.name):
        raise UsageError("a revoked certificate never comes back into force: issue a new one with dbox-init --client")
    bound = clients.streams(request.form.get("streams", "").split()) if wanted == "writer" else ""
    page.log.register(client.fingerprint, client.name, wanted, bound, client.local)
    return redirect("/ui/admin", 303)


@views.post("/ui/admin/account")
@access.needs("admin")
def account() -> str:
    """A new account, or a new password for one that is there; it is shown once."""
    page, name, wanted = app.page(), units.name(request.form.get("name", "").strip()), request.form.get("role", "")
    if wanted not in clients.ROLES:
        raise UsageError(f"no role {wanted[:20]!r}")
    password = secrets.token_urlsafe(15)
    page.log.register(fingerprint(name), name, wanted, "", "")
    page.accounts.set_password(name, password)
    return _render((name, password))


@views.post("/ui/admin/rotate")
@access.needs("admin")
def rotate() -> Response:
    """Replace the sign key now."""
    app.page().log.rotate()
    return redirect("/ui/admin", 303)


@views.post("/ui/admin/erase")
@access.needs("admin")
def erase() -> Response:
    """One administrator asks; nothing is erased yet."""
    page, who = app.page(), g.who.client
    number, reason = request.form.get("entry", "").strip(), request.form.get("reason", "").strip()
    if not number.isdecimal() or len(number) > 18 or int(number) >= page.log.newest()[0].size:
        raise UsageError("expected the number of an entry of this log")
    if not 5 <= len(reason) <= 500 or not reason.isprintable():
        raise UsageError("an erasure needs a reason of 5 to 500 printable characters, which stays in the log")
    kept = page.store.payload(int(number))
    if kept is not None and kept[1] is None:
        raise UsageError(f"the octets of entry {int(number)} are erased already")
    told: dict[str, object] = {"index": int(number), "reason": reason, "by": who.fingerprint}
    page.log.submit_own(erasing.ASKED, told)
    return redirect("/ui/admin", 303)


@views.post("/ui/admin/erase/<int:number>")
@access.needs("admin")
def agree(number: int) -> Response:
    """A second administrator agrees."""
    page, who = app.page(), g.who.client
    by = request.form.get("by", "")
    wanted = next((one for one in erasing.waiting(page.store) if (one.index, one.by.fingerprint) == (number, by)), None)
    if wanted is None:
        abort(404, f"no erasure of entry {number} waits: it was done, is too old, or who asked is no administrator now")
    if who.fingerprint == wanted.by.fingerprint or who.name == wanted.by.name:
        abort(403, "the one who asked for an erasure cannot agree to it: a second administrator must")
    page.log.erase(number, wanted.reason, wanted.by.fingerprint, who.fingerprint)
    return redirect("/ui/admin", 303)
