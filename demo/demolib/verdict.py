# SPDX-License-Identifier: Apache-2.0
"""What happened, from the request log and the evidence: the time line and the checks. Pure; nothing is asked here.

The limits are those of the CD-shop requirements (recognise in 1 s, accept in 1 s, restore in 300 s); the aim of 5 s
is our own and decides nothing.
"""

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from demolib import answers, journal
from demolib.answers import Request
from demolib.journal import Event

RECOGNISE, ACCEPT, RESTORE, AIM = 1.0, 1.0, 300.0, 5.0


@dataclass(frozen=True)
class Check:
    """One thing that must be true for the demonstration to succeed."""

    name: str
    ok: bool
    detail: str = ""

    def __str__(self) -> str:
        text = f"{self.name}: {self.detail}" if self.detail else self.name
        return textwrap.fill(
            text, 108, initial_indent=f"  {'ok' if self.ok else 'FAILED':<8}", subsequent_indent=" " * 10
        )


@dataclass
class Facts:
    """What was measured."""

    requests: Sequence[Request]
    evidence: Sequence[Event]  # the events in the D-Box
    spool: Sequence[Event]  # the events that the intake took in
    arrivals: Sequence[tuple[float, Event]]  # what was read from /run/dre/script, and when
    deployed: float  # when the release was announced, just before the server was told to load it
    notes: list[tuple[float, str]] = field(default_factory=list)  # what the demonstration itself did, and when

    @property
    def bad(self) -> Request | None:
        """The first request slower than 0.3 s, or failed, after the deployment."""
        return answers.first_bad(self.requests, self.deployed)

    def entry(self, type: str, **data: object) -> Event | None:
        """The first such event after the deployment that is evidence."""
        return journal.first(self.evidence, type, self.deployed - 1.0, **data)

    @property
    def release(self) -> Event | None:
        return self.entry("shop.release")

    @property
    def raised(self) -> Event | None:
        return self.entry("watch.raised", id="slow")

    @property
    def overload(self) -> Event | None:
        """The detection."""
        return self.entry("shop.overload")

    @property
    def recognised(self) -> float | None:
        """When the detection was read from /run/dre/script. Its own time is a little earlier."""
        return min((at for at, event in self.arrivals if event == self.overload), default=None)

    @property
    def limited(self) -> Event | None:
        return self.entry("script.step.done", action="limit")

    @property
    def undone(self) -> Event | None:
        return self.entry("script.step.done", action="undo")

    @property
    def restored(self) -> Event | None:
        """The script engine's own view that all is well again."""
        return self.entry("script.response.done", restored=True)

    @property
    def accepted(self) -> Event | None:
        """dre-app's word that the undo will happen, whatever comes; its intent is on the disk by then."""
        return journal.first(self.spool, "app.undo.accepted", self.deployed)

    @property
    def green(self) -> float | None:
        """When the first 10 s began in which all requests were answered well, after it went wrong."""
        return answers.restored(list(self.requests), self.bad.due) if self.bad else None


def times(facts: Facts) -> list[Check]:
    """The three promises about time."""
    bad, recognised, accepted, green = facts.bad, facts.recognised, facts.accepted, facts.green
    checks = [Check("the release overloaded the shop", bad is not None, "" if bad else "no request became slow")]
    for name, begin, end, most in (
        ("overload recognised", bad and bad.due, recognised, RECOGNISE),
        ("undo accepted", recognised, accepted and journal.moment(accepted), ACCEPT),
        ("service restored", accepted and journal.moment(accepted), green, RESTORE),
    ):
        if begin is None or end is None:
            checks.append(Check(name, False, "it did not happen"))
        else:
            detail = f"after {end - begin:.2f} s (at most {most:g} s)"
            if most == RESTORE:
                detail += f"; our aim of {AIM:g} s: {'met' if end - begin <= AIM else 'MISSED'}"
            checks.append(Check(name, end - begin <= most, detail))
    return checks


def steps(facts: Facts) -> list[Check]:
    """Each step of the recovery is evidence in the D-Box."""
    found = {
        "release": facts.release,
        "raised": facts.raised,
        "recognised": facts.overload,
        "limit": facts.limited,
        "undo": facts.undone,
        "restored": facts.restored,
    }
    missing = [name for name, event in found.items() if event is None]
    return [
        Check(
            "every step is in the D-Box", not missing, f"missing: {', '.join(missing)}" if missing else ", ".join(found)
        )
    ]


def requests(facts: Facts) -> list[Check]:
    """What the load was, and what became of it."""
    sent, orders = len(facts.requests), sum(request.kind == "order" for request in facts.requests)
    failed = [request for request in facts.requests if request.failed]
    slow = sum(request.slow for request in facts.requests)
    span = facts.requests[-1].due - facts.requests[0].due if sent > 1 else 0.0
    rate = (sent - 1) * 60 / span if span else 0.0
    late = max((request.sent - request.due for request in facts.requests), default=0.0)
    outside = [r for r in failed if r.done < facts.deployed or facts.green is None or r.due >= facts.green]
    when = (
        f"{len(outside)} of them before the release or after the restoration" if outside else "all of them in between"
    )
    return [
        Check("2500 accesses a minute by schedule", rate >= 2475, f"{rate:.0f}, none sent over {late:.3f} s late"),
        Check("5 % of them or more are orders", orders >= sent * 0.05 > 0, f"{orders} of {sent}"),
        Check(
            "requests failed", not outside, f"{len(failed)} of {sent}, {when}; slower than {answers.SLOW:g} s: {slow}"
        ),
    ]


def left_out(without: str, facts: Facts) -> tuple[int, str]:
    """Exit status and words for a run without one part: 1 when that part is the reason why nothing was undone."""
    if facts.accepted:
        return 2, "an undo was accepted all the same"
    suffered = facts.bad is not None
    if suffered == (without == "release"):
        return 2, f"nothing was undone, but the shop {'was slow all the same' if suffered else 'was not overloaded'}"
    return 1, "nothing was undone"


def line(facts: Facts) -> list[str]:
    """The time line: clock, seconds since the first bad request (or the deployment), and what happened."""
    rows = list(facts.notes)
    bad = facts.bad
    if bad:
        what = f"failed with {bad.status}" if bad.failed else f"took {bad.done - bad.due:.2f} s"
        rows.append((bad.due, f"first bad request: {bad.kind}, {what}"))
    fresh = [request for request in facts.requests if request.release and request.release != facts.requests[0].release]
    if fresh:
        rows.append((min(request.done for request in fresh), f"first answer by release {fresh[0].release}"))
    again = [r for r in facts.requests if fresh and r.release == facts.requests[0].release and r.due > fresh[-1].due]
    if again:
        rows.append((again[0].due, f"first request answered by release {again[0].release} again"))
    if facts.green is not None:
        rows.append((facts.green, f"from here {answers.GREEN:g} s and more without a slow or failed request: restored"))
    if facts.recognised:
        rows.append((facts.recognised, "shop.overload read from /run/dre/script: recognised"))
    for event, text in (
        (facts.release, "shop.release announced"),
        (facts.raised, "watch.raised: a probe of the shop is slow"),
        (facts.limited, "script: shop-app limited"),
        (facts.accepted, "undo accepted: its intent is on the disk"),
        (facts.undone, "script: shop-app undone"),
        (facts.restored, "script: the shop is restored"),
    ):
        if event:
            rows.append((journal.moment(event), text))
    zero = bad.due if bad else facts.deployed
    return [f"  {_clock(moment)}  {moment - zero:+8.2f} s  {text}" for moment, text in sorted(rows)]


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"
