# SPDX-License-Identifier: Apache-2.0
"""Searching, the newest entry first."""

from urllib.parse import urlencode

from flask import Blueprint, Response, abort, g, redirect, render_template, request

from dboxlib import clients
from dboxlib.page import access, app, find

views = Blueprint("search", __name__)


@views.get("/ui/search")
@access.needs("search")
def search() -> str | Response:
    """The form and one page of what was found."""
    page, given = app.page(), request.args.to_dict()
    number = given.get("index", "").strip()
    if number:
        if not number.isdecimal() or len(number) > 18:
            abort(400, "index: expected the number of an entry")
        return redirect(f"/ui/entries/{int(number)}", 303)  # type: ignore[return-value]
    asked, before = find.wanted(given), given.get("before", "")
    if before and (not before.isdecimal() or len(before) > 18):
        abort(400, "before: expected the number of an entry")
    size = page.log.newest()[0].size
    found = find.find(page.store, size, asked, int(before) if before else None, "octets" in g.who.rights)
    fields = {key: value for key, value in asked.__dict__.items() if value}
    older = "/ui/search?" + urlencode({**fields, "before": found.before}) if found.before else ""
    newest = "/ui/search?" + urlencode(fields)
    names = {client.fingerprint: client.name for client in clients.current(page.store)}
    return render_template(
        "search.html",
        asked=asked,
        found=found,
        size=size,
        older=older,
        newest=newest,
        first=not before,
        names=names,
        octets="octets" in g.who.rights,
    )
