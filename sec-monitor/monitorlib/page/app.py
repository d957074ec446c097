# SPDX-License-Identifier: Apache-2.0
"""The Flask application of the page: its parts put together, and what holds for every answer.

Nothing comes from elsewhere, nothing is inline and there is no script: the policy in `HEADERS` lets a browser load our
own style sheet and pictures only, so that text of strangers stays text even if an escape were forgotten.
"""

import contextlib
import sys
import unicodedata
from urllib.parse import urlsplit

from dre.conf import Conf
from dre.errors import DreError
from flask import Flask, Response, abort, g, render_template, request
from jinja2 import StrictUndefined
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from monitorlib.page import ask

LARGEST = 4 << 20  # octets of a form
SKIP = 64 << 20  # octets of a refused form that are read
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
MENU = (("rules.overview", "Rules"), ("rules.history", "History"), ("watch.overview", "Watched"))


def build(conf: Conf) -> Flask:
    """The page of one monitor."""
    from monitorlib.page import view_login, view_rules, view_watch

    app = Flask(__name__)
    app.config.update(
        CONF=conf, MAX_CONTENT_LENGTH=LARGEST, MAX_FORM_MEMORY_SIZE=LARGEST, SEND_FILE_MAX_AGE_DEFAULT=3600
    )
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(plain=plain, short=lambda text: text[:12])
    app.before_request(_before)
    app.after_request(_after)
    app.context_processor(lambda: {"who": g.get("who"), "csrf": g.get("csrf", ""), "menu": MENU})
    app.register_error_handler(Exception, _failed)
    for view in (view_login, view_rules, view_watch):
        app.register_blueprint(view.views)
    return app


def plain(text: str, most: int = 300) -> str:
    """A stranger's *text* for the eye: bounded, and with a name for each character that would act on what is around."""
    short = text[:most] + ("…" if len(text) > most else "")
    return "".join(
        letter if letter.isprintable() and unicodedata.category(letter) not in ("Cf", "Co") else ascii(letter)[1:-1]
        for letter in short
    )


def _before() -> None:
    """Refuse a form of another site. Browsers say "null" for the origin of ours, because of our referrer policy."""
    g.who = None
    if request.method in ("GET", "HEAD"):
        return
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "same-origin")
    if site not in ("same-origin", "none") or (
        origin not in (None, "null") and urlsplit(origin).netloc != request.host
    ):
        abort(403, "this form was sent by another site")
    if request.content_length is None:
        abort(411)
    if ask.SESSION not in request.cookies and ask.BEFORE not in request.cookies:
        abort(403, "this form was not made for this browser: load the page again (cookies must be allowed)")


def _after(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.method not in ("GET", "HEAD") and response.status_code >= 400:
        _skip()
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
        if g.get("before") and not g.get("came_in"):
            cookie(response, ask.BEFORE, g.before)
    return response


def _skip() -> None:
    """Read and forget a form that was refused: a browser that is still sending would not see the answer."""
    left = min(request.content_length or 0, SKIP)
    with contextlib.suppress(OSError):
        while left > 0 and (read := request.environ["wsgi.input"].read(min(left, 65_536))):
            left -= len(read)


def cookie(response: AnyResponse, name: str, value: str) -> None:
    """Set a cookie that no script and no other site gets; empty: remove it."""
    left = 0 if not value else None
    response.set_cookie(name, value, max_age=left, path="/", secure=True, httponly=True, samesite="Strict")


def _failed(error: Exception) -> tuple[str, int, dict[str, str]] | AnyResponse:
    """Any refusal or failure as a page of its own."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        if error.response is not None:  # the way to log in
            return error.response  # type: ignore[return-value]
        code, reason = error.code or 500, error.description or error.name
        if code == 413:
            reason = f"a form has at most {LARGEST >> 20} MiB"
        if isinstance(wait := getattr(error, "retry_after", None), int):
            headers["Retry-After"] = str(wait)
    elif isinstance(error, DreError):
        code, reason = 400, str(error)
    else:  # a bug: the visitor gets one line, the operator the reason
        sys.stderr.write(f"dre-page: {request.path!a}: {type(error).__name__}: {error}\n")
        code, reason = 500, "internal error; the reason is in the server's log"
    return render_template("error.html", code=code, reason=reason), code, headers
