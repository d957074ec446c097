# SPDX-License-Identifier: Apache-2.0
"""The audit page: a full audit, two tree heads compared, and proofs or heads that somebody holds."""

from dre import dbox, evidence
from dre.errors import UsageError
from flask import Blueprint, g, redirect, render_template, request
from werkzeug.wrappers import Response

from dboxlib.page import access, app
from dboxlib.page.audit import Audit
from dboxlib.page.check import Verdict

views = Blueprint("audit", __name__)
HEAD = 64 * 1024  # octets of a tree head


@views.get("/ui/audit")
@access.needs("audit")
def audit() -> str:
    """The forms, and how far the last audit is."""
    return _render()


def _render(title: str = "", verdicts: list[Verdict] | None = None) -> str:
    one = Audit(app.page())
    head, note = app.page().log.newest()
    last, running = one.last(), one.running()
    return render_template(
        "audit.html", last=last, running=running, title=title, verdicts=verdicts or [], head=head, note=note.format()
    )


@views.post("/ui/audit/run")
@access.needs("audit")
def run() -> Response:
    """Begin a full audit."""
    Audit(app.page()).start(g.who.client.name)
    return redirect("/ui/audit", 303)


@views.post("/ui/audit/compare")
@access.needs("audit")
def compare() -> str:
    """Compare two tree heads."""
    one, other = (_text(name) for name in ("one", "other"))
    return _render("Two tree heads compared", app.page().checker.compare(one, other))


@views.post("/ui/audit/check")
@access.needs("audit")
def check() -> str:
    """Check a proof with its octets, or a tree head."""
    given = _file("proof", evidence.LARGEST)
    if not given:
        raise UsageError("choose a file: a receipt (.tlog-proof) or a tree head")
    checker = app.page().checker
    if given.startswith(evidence.PROOF.encode()):
        return _render("A proof checked", checker.proof(given, _file("octets", dbox.LARGEST)))
    return _render("A tree head checked", checker.head(given.decode("utf-8", "replace")))


def _text(name: str) -> str:
    """A tree head that was pasted or sent as a file. Raises UsageError."""
    text = request.form.get(name, "")
    if len(text) > HEAD:
        raise UsageError("that is too long for a tree head")
    return text or _file(f"{name}-file", HEAD).decode("utf-8", "replace")


def _file(name: str, most: int) -> bytes:
    sent = request.files.get(name)
    octets = sent.read(most + 1) if sent is not None and sent.filename else b""
    if len(octets) > most:
        raise UsageError(f"a file of more than {most} octets")
    return bytes(octets)
