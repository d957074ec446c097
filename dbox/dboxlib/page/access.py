# SPDX-License-Identifier: Apache-2.0
"""Who asks for the page and what that one may: a session of an account, or else the verified client certificate.

The certificate's fingerprint comes from the server (DRE_CLIENT), never from a header of the request. A registration
is in the log before anybody acts in its role, as in the API.
"""

import functools
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from dre import event
from flask import Response, abort, current_app, g, redirect, request

from dboxlib import clients
from dboxlib.clients import Client
from dboxlib.page.accounts import Accounts, fingerprint
from dboxlib.wsgi import ROLES

SESSION = "__Host-dbox"  # the browser itself refuses this name from a page that is not ours, or not HTTPS
BEFORE = "__Host-dbox-login"  # binds the form of the login to the browser it was sent to
TOKEN = "csrf"  # noqa: S105  # the field of a form
# What the page offers beyond the API; reading is the same in both.
_MORE = {
    "writer": {"record"},
    "reader": {"status"},
    "auditor": {"status", "audit"},
    "admin": {"status", "audit", "record", "admin"},
}
RIGHTS = {role: ROLES[role] | more for role, more in _MORE.items()}
_Call = TypeVar("_Call", bound=Callable[..., Any])


@dataclass(frozen=True)
class Who:
    """One who may see the page."""

    client: Client
    token: str = ""  # of the session; none: by certificate

    @property
    def rights(self) -> set[str]:
        """What the page lets this one do."""
        return RIGHTS[self.client.role]

    @property
    def how(self) -> str:
        """By what this one is known."""
        return "account" if self.token else "certificate"


def identify(page: Any) -> Who | None:
    """Who asks, or None."""
    token = request.cookies.get(SESSION, "")
    session = page.accounts.session(token) if token else None
    if session is not None:
        client = registered(page, fingerprint(session[0]))
        if client is not None and client.number == session[1]:
            return Who(client, token)
        page.accounts.end(token)
    client = registered(page, request.environ.get("DRE_CLIENT", ""))
    return Who(client) if client and not client.local else None


def registered(page: Any, identity: str) -> Client | None:
    """The client of this fingerprint whose role is in force, and in the log."""
    client = clients.find(page.store, identity)
    if client is None or not client.holds(event.stamp()):
        return None
    if client.number > page.log.clients_logged:
        page.log.log_clients()
    return client


def needs(right: str) -> Callable[[_Call], _Call]:
    """A view only for those who have *right*; others are asked to log in, or refused."""

    def wrap(view: _Call) -> _Call:
        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if g.who is None:
                return redirect("/ui/login", 303) if request.method == "GET" else abort(403, "nobody is logged in")
            if right not in g.who.rights:
                abort(403, f"the role {g.who.client.role} may not do this")
            return view(*args, **kwargs)

        return cast(_Call, guarded)

    return wrap


# --- Forms come from our own page and from the one who sends them ---


def csrf() -> str:
    """The token for the forms of this page."""
    accounts: Accounts = current_app.config["PAGE"].accounts
    who: Who | None = g.who
    if who is None:
        g.before = request.cookies.get(BEFORE) or g.get("before") or secrets.token_urlsafe(32)
        return accounts.mac("csrf", "login", g.before)
    return accounts.mac("csrf", who.how, who.token, who.client.fingerprint, str(who.client.number))


def check_form() -> None:
    """Refuse a POST that another site made, or that has no token of ours.

    Browsers say "null" for the origin of our own forms, because of our referrer policy; the token decides.
    """
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "same-origin")
    if site not in ("same-origin", "none") or (
        origin not in (None, "null") and urlsplit(origin).netloc != request.host
    ):
        abort(403, "this form was sent by another site")
    if g.who is None and BEFORE not in request.cookies:
        abort(403, "this form was not made for this browser: load the page again (cookies must be allowed)")
    if not hmac.compare_digest(csrf().encode(), request.form.get(TOKEN, "").encode()):
        abort(403, "this form is too old or not ours: load the page again")


def keep(response: Response) -> None:
    """Let the browser keep what binds the login form to it."""
    if g.get("before") and BEFORE not in request.cookies and not g.get("came_in"):
        cookie(response, BEFORE, g.before)


def cookie(response: Response, name: str, value: str) -> None:
    """Set a cookie that no script and no other site gets; empty: remove it."""
    left = 0 if not value else None
    response.set_cookie(name, value, max_age=left, path="/", secure=True, httponly=True, samesite="Strict")
