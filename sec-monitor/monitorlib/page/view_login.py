# SPDX-License-Identifier: Apache-2.0
"""Coming in with an account, and leaving again; another password."""

from flask import Blueprint, abort, g, redirect, render_template, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from monitorlib.page import app
from monitorlib.page.ask import BEFORE, SESSION, ask

views = Blueprint("login", __name__)


@views.get("/")
def front() -> Response:
    """The way to the rules."""
    return redirect("/rules", 303)


@views.get("/login")
def login() -> str:
    """The form."""
    ask("hello")
    return render_template("login.html", wrong="")


@views.post("/login")
def come_in() -> Response | tuple[str, int]:
    """A new session."""
    try:
        told = ask("login", name=request.form.get("name", "")[:100], password=request.form.get("password", "")[:300])
    except HTTPException as error:
        if error.code != 403:
            raise
        return render_template("login.html", wrong=error.description), 403
    g.came_in = True
    response = redirect("/rules", 303)
    app.cookie(response, SESSION, told["token"])
    app.cookie(response, BEFORE, "")
    return response


@views.post("/logout")
def leave() -> Response:
    """The session ends here as well, not only in the browser."""
    ask("logout")
    return _out()


@views.get("/account")
def account() -> str:
    """Who is here, and the form for another password."""
    ask("watch")
    return render_template("account.html")


@views.post("/account")
def change_password() -> Response:
    """Another password; all sessions of the account end."""
    new = request.form.get("new", "")
    if new != request.form.get("again", ""):
        abort(400, "the new password was typed in two ways")
    ask("password", old=request.form.get("old", "")[:300], new=new[:300])
    return _out()


def _out() -> Response:
    response = redirect("/login", 303)
    app.cookie(response, SESSION, "")
    return response
