# SPDX-License-Identifier: Apache-2.0
"""The Flask application of the page: its parts put together, and what holds for every answer.

Nothing comes from elsewhere and nothing is inline: the policy in `HEADERS` lets a browser load our own style sheet and
script only, so that text of strangers stays text even if an escape were forgotten.
"""

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

from dre.conf import Conf
from dre.errors import DreError, NotFoundError, UsageError
from flask import Flask, Response, abort, current_app, g, render_template, request
from jinja2 import StrictUndefined
from werkzeug.exceptions import HTTPException

from dboxlib.log import BusyError, ConflictError, Log, QuotaError
from dboxlib.page import access, accounts, check, show
from dboxlib.page.accounts import Accounts

LARGEST = 17 * 1024 * 1024  # octets of a form: one entry of the largest size, and its fields
SKIP = 64 * 1024 * 1024  # octets of a refused form that are read
SMALL = 16 * 1024  # of one that nobody sends whom we know
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
MENU = (
    ("state.state", "State", "head"),
    ("search.search", "Search", "search"),
    ("record.record", "Record", "record"),
    ("audit.audit", "Audit", "audit"),
    ("admin.admin", "Admin", "admin"),
)


@dataclass
class Page:
    """What the views work with."""

    conf: Conf
    store: Any  # only read
    log: Log
    accounts: Accounts
    checker: check.Checker


def build(conf: Conf, store: Any, log: Log) -> Flask:
    """The page of one D-Box."""
    from dboxlib.page import view_admin, view_audit, view_entry, view_login, view_record, view_search, view_state

    app = Flask(__name__, static_url_path="/ui/static")
    app.config.update(
        PAGE=Page(conf, store, log, Accounts(accounts.prepare(conf)), check.Checker(conf, store, log)),
        MAX_CONTENT_LENGTH=LARGEST,
        SEND_FILE_MAX_AGE_DEFAULT=3600,
    )
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(plain=show.plain, size=show.size, span=show.span, short=lambda text: text[:16])
    app.jinja_env.globals.update(csrf=access.csrf, origin=store.origin, box=store.box)
    app.before_request(_before)
    app.after_request(_after)
    app.context_processor(lambda: {"who": g.get("who"), "menu": _menu()})
    app.register_error_handler(Exception, _failed)
    for view in (view_admin, view_audit, view_entry, view_login, view_record, view_search, view_state):
        app.register_blueprint(view.views)
    return app


def page() -> Page:
    """The page that serves this request."""
    found: Page = current_app.config["PAGE"]
    return found


def _before() -> None:
    g.who = None
    if request.endpoint == "static":
        return
    g.who = access.identify(page())
    if request.method not in ("GET", "HEAD"):
        if request.content_length is None:
            abort(411)
        if g.who is None and request.content_length > SMALL:
            abort(413)
        access.check_form()


def _after(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.method not in ("GET", "HEAD") and response.status_code >= 400:
        _skip()
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
        access.keep(response)
    return response


def _skip() -> None:
    """Read and forget a form that was refused: a browser that is still sending would not see the answer."""
    left = min(request.content_length or 0, SKIP)
    with contextlib.suppress(OSError):
        while left > 0 and (read := request.environ["wsgi.input"].read(min(left, 65_536))):
            left -= len(read)


def _menu() -> list[tuple[str, str]]:
    who = g.get("who")
    return [(endpoint, title) for endpoint, title, right in MENU if who and right in who.rights]


def _failed(error: Exception) -> tuple[str, int, dict[str, str]]:
    """Any refusal or failure as a page of its own."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        code, reason = error.code or 500, error.description or error.name
        if isinstance(wait := getattr(error, "retry_after", None), int):
            headers["Retry-After"] = str(wait)
    elif isinstance(error, QuotaError):
        code, reason, headers = (507 if error.full else 429), str(error), {"Retry-After": str(error.retry_after)}
    elif isinstance(error, BusyError):
        code, reason, headers = 503, str(error), {"Retry-After": "1"}
    elif isinstance(error, DreError | IndexError):
        known = {ConflictError: 409, UsageError: 400, NotFoundError: 404, IndexError: 404}
        code = next((status for kind, status in known.items() if isinstance(error, kind)), 409)
        reason = f"no entry {error}" if isinstance(error, IndexError) else str(error)
    else:  # a bug or a sick disk: the visitor gets one line, the operator the reason
        sys.stderr.write(f"dboxd: {request.path}: {type(error).__name__}: {error}\n")
        code, reason = 500, "internal error; the reason is in the server's log"
    if "who" not in g:
        g.who = None
    return render_template("error.html", code=code, reason=reason), code, headers
