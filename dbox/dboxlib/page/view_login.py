# SPDX-License-Identifier: Apache-2.0
"""Coming in with an account and leaving again."""

import hmac

from dre import units
from flask import Blueprint, Response, abort, g, make_response, redirect, render_template, request
from werkzeug.exceptions import TooManyRequests

from dboxlib.page import access, app
from dboxlib.page.accounts import PER_ACCOUNT, fingerprint

views = Blueprint("login", __name__)


@views.get("/ui/login")
def login() -> str:
    """The form."""
    return render_template("login.html", wrong=False)


@views.post("/ui/login")
def come_in() -> Response:
    """A new session, with a token that was not there before: nobody can have prepared it."""
    page, address = app.page(), request.remote_addr or "?"
    name, password = request.form.get("name", ""), request.form.get("password", "")
    if not units.is_name(name):
        name = "-"  # no account can be called so; what was typed there may have been a password
    right = _right(page, name, password)
    client = access.registered(page, fingerprint(name)) if right else None
    if client is None:
        if page.accounts.blocked(name, address):
            page.log.submit_own("dbox.login.blocked", {"account": name, "address": address, "failures": PER_ACCOUNT})
        return make_response(render_template("login.html", wrong=True), 403)
    page.accounts.succeeded(name, address)
    if g.who is not None and g.who.token:
        page.accounts.end(g.who.token)
    g.came_in = True
    response = make_response(redirect("/d_box_main.html", 303))
    access.cookie(response, access.SESSION, page.accounts.begin(name, client.number))
    access.cookie(response, access.BEFORE, "")
    return response


def _right(page: app.Page, name: str, password: str) -> bool:
    """Whether the password is right; not so often that it could be guessed."""
    wait = page.accounts.attempt(name, request.remote_addr or "?")
    if wait:
        raise TooManyRequests(f"too many failed logins: try again in {wait} s", retry_after=wait)
    return page.accounts.right(name, password)


@views.post("/ui/logout")
def leave() -> Response:
    """The session ends here as well, not only in the browser."""
    if g.who is None or not g.who.token:
        abort(400, "nobody is logged in with an account")
    app.page().accounts.end(g.who.token)
    response = make_response(redirect("/ui/login", 303))
    access.cookie(response, access.SESSION, "")
    return response


@views.post("/ui/password")
@access.needs("head")
def change_password() -> Response:
    """Another password for the account of this session; all its sessions end."""
    page = app.page()
    if not g.who.token:
        abort(400, "you came with a certificate: there is no password")
    name = g.who.client.name
    if not _right(page, name, request.form.get("old", "")):
        abort(403, "the present password is wrong")
    page.accounts.succeeded(name, request.remote_addr or "?")
    password, again = request.form.get("new", ""), request.form.get("again", "")
    if not hmac.compare_digest(password.encode(), again.encode()):
        abort(400, "the new password was typed in two ways")
    page.accounts.set_password(name, password)
    page.log.submit_own("dbox.account.password", {"account": name})
    response = make_response(redirect("/ui/login", 303))
    access.cookie(response, access.SESSION, "")
    return response
