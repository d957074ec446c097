# SPDX-License-Identifier: Apache-2.0
"""The state of the box, the page of the specification: /d_box_main.html."""

import time
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from dre import event, trust
from dre.errors import DreError
from flask import Blueprint, g, redirect, render_template
from werkzeug.wrappers import Response

from dboxlib.page import app, audit

views = Blueprint("state", __name__)
SOON = 30 * 86400.0  # seconds before a certificate ends at which it turns amber; sign keys are shorter-lived
FILLING = 0.8  # of a quota or a disk


@dataclass(frozen=True)
class Link:
    """One certificate as the page shows it."""

    kind: str
    name: str
    begin: str
    end: str
    fingerprint: str
    state: str  # good, wait (ends soon) or bad

    @property
    def word(self) -> str:
        """The state in a word."""
        return {"good": "valid", "wait": "ends soon", "bad": "not valid now"}[self.state]


@views.get("/d_box_main.html")
def state() -> str | Response:
    """The state, or the way to log in."""
    if g.who is None:
        return redirect("/ui/login", 303)
    page = app.page()
    head, note, signed = page.checker.newest()
    asked = "status" in g.who.rights
    told: dict[str, Any] = page.log.status() if asked else {}
    policy, anchors = page.checker.policy() if asked else (None, [])
    last = audit.Audit(page).last() if asked else None
    return render_template(
        "state.html",
        head=head,
        age=_age(head.time),
        signed=signed,
        key_ids=[f"{signature.name} {signature.key.hex()}" for signature in note.signatures],
        chain=chain(page),
        told=told,
        anchors=[(one, _age(one.proven or one.time)) for one in anchors],
        policy=policy,
        last=last,
        bad=sorted({*page.checker.seen_bad, *(one["index"] for one in told.get("tampered", []))}),
        filling=FILLING,
    )


def chain(page: app.Page) -> list[Link]:
    """From the root down to the keys in use; older sign keys are counted, not listed."""
    found = []
    for kind in ("root", "centre", "manufacturer", "owner", "sign", "note"):
        try:
            pem = page.checker.root() if kind == "root" else page.store.certificate(kind).encode()
            found.append(_link(kind, trust.certificates(pem, kind)[0]))
        except (DreError, OSError) as error:
            found.append(Link(kind, str(error), "", "", "", "bad"))
    return found


def _link(kind: str, certificate: x509.Certificate) -> Link:
    begin, end = trust.period([certificate])
    now, names = time.time(), certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    left, whole = event.seconds(end) - now, event.seconds(end) - event.seconds(begin)
    state = "bad" if left < 0 or event.seconds(begin) > now + 60 else "wait" if left < min(SOON, whole / 4) else "good"
    name = str(names[0].value) if names else "(no name)"
    return Link(kind, name, begin, end, trust.fingerprint(certificate), state)


def _age(stamp: str) -> float:
    return max(0.0, time.time() - event.seconds(stamp))
