# SPDX-License-Identifier: Apache-2.0
"""What happened, from the request log and the evidence: the time line and the checks. Pure; nothing is asked here.

What is the same for all scenarios is here; what each one promises says its own kind of Facts.
"""

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from demolib import answers, journal
from demolib.answers import Request
from demolib.journal import Event


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


@dataclass(frozen=True)
class Promise:
    """At most *most* seconds from *begin* to *end* (None: it did not happen); *aim* is our own and decides nothing."""

    name: str
    begin: float | None
    end: float | None
    most: float
    aim: float | None = None

    @property
    def took(self) -> float | None:
        """Seconds."""
        return None if self.begin is None or self.end is None else self.end - self.begin

    @property
    def check(self) -> Check:
        """The judgement."""
        took = self.took
        if took is None:
            return Check(self.name, False, "it did not happen")
        detail = f"after {took:.2f} s (at most {self.most:g} s: {_met(took, self.most)})"
        if self.aim is not None:
            detail += f"; our aim of {self.aim:g} s: {_met(took, self.aim)}"
        return Check(self.name, took <= self.most, detail)


def _met(took: float, most: float) -> str:
    return "met" if took <= most else "MISSED"


@dataclass(frozen=True)
class Usage:
    """What an app used at a moment: processor in percent of one core, memory in octets; None is unknown."""

    time: float
    name: str
    cpu: float | None
    cpu_limit: float | None
    memory: int | None
    memory_limit: int | None

    @property
    def full(self) -> float | None:
        """How much of the memory it may have is used, in percent."""
        return 100 * self.memory / self.memory_limit if self.memory is not None and self.memory_limit else None


@dataclass
class Facts:
    """What was measured."""

    requests: Sequence[Request]
    evidence: Sequence[Event]  # the events in the D-Box
    spool: Sequence[Event]  # the events that the intake took in
    arrivals: Sequence[tuple[float, Event]]  # what was read from /run/dre/script, and when
    began: float  # when the accident began, just before it could do harm
    notes: list[tuple[float, str]] = field(default_factory=list)  # what the demonstration itself did, and when
    usage: Sequence[Usage] = ()

    @property
    def struck(self) -> float:
        """The moment after which a bad request is the accident's doing."""
        return self.began

    @property
    def bad(self) -> Request | None:
        """The first request slower than 0.3 s, or failed, after it struck."""
        return answers.first_bad(self.requests, self.struck)

    def entry(self, type: str, **data: object) -> Event | None:
        """The first such event after the accident began that is evidence."""
        return journal.first(self.evidence, type, self.began - 1.0, **data)

    def told(self, type: str, after: float | None = None, **data: object) -> Event | None:
        """The first such event after the accident began, or after *after*, that the intake took in."""
        return journal.first(self.spool, type, self.began if after is None else after, **data)

    @property
    def green(self) -> float | None:
        """When the first 10 s began in which all requests were answered well, after it went wrong."""
        return self.green_after(self.bad and self.bad.due)

    def green_after(self, moment: float | None) -> float | None:
        """When the first 10 s of good answers began after *moment*, if that has come."""
        return None if moment is None else answers.restored(list(self.requests), moment)

    def slowed(self, name: str) -> Check:
        """The accident, called *name*, really made a request slow."""
        return Check(name, self.bad is not None, "" if self.bad else "no request became slow")

    @property
    def restored(self) -> Event | None:
        """The script engine's own view that all is well again."""
        return self.entry("script.response.done", restored=True)

    # --- what each scenario says for itself ---

    def answered(self) -> bool:
        """Whether D-RE did what was agreed."""
        raise NotImplementedError

    def harm(self) -> Check:
        """The accident really was one."""
        raise NotImplementedError

    def promises(self) -> Sequence[Promise]:
        """What must happen within a time."""
        raise NotImplementedError

    def found(self) -> Mapping[str, Event | None]:
        """The steps that must be evidence, by what they are called."""
        raise NotImplementedError

    def moments(self) -> Sequence[tuple[float | None, str]]:
        """What belongs on the time line if it happened, and the words for it."""
        raise NotImplementedError


def at(event: Event | None) -> float | None:
    """The time of an event that may not have happened."""
    return journal.moment(event) if event else None


def times(facts: Facts) -> list[Check]:
    """The accident, and the promises about time."""
    return [facts.harm(), *(promise.check for promise in facts.promises())]


def steps(facts: Facts) -> list[Check]:
    """Each step of the recovery is evidence in the D-Box."""
    found = facts.found()
    missing = [name for name, event in found.items() if event is None]
    return [
        Check(
            "every step is in the D-Box", not missing, f"missing: {', '.join(missing)}" if missing else ", ".join(found)
        )
    ]


def requests(facts: Facts, wanted: int = 2500) -> list[Check]:
    """What the load was, *wanted* a minute, and what became of it."""
    sent, orders = len(facts.requests), sum(request.kind == "order" for request in facts.requests)
    failed = [request for request in facts.requests if request.failed]
    slow = sum(request.slow for request in facts.requests)
    span = facts.requests[-1].due - facts.requests[0].due if sent > 1 else 0.0
    rate = (sent - 1) * 60 / span if span else 0.0
    late = max((request.sent - request.due for request in facts.requests), default=0.0)
    outside = [r for r in failed if r.done < facts.struck or facts.green is None or r.due >= facts.green]
    when = (
        f"{len(outside)} of them before the accident or after the restoration" if outside else "all of them in between"
    )
    return [
        Check(
            f"{wanted} accesses a minute by schedule",
            rate >= 0.99 * wanted,
            f"{rate:.0f}, none sent over {late:.3f} s late",
        ),
        Check("5 % of them or more are orders", orders >= sent * 0.05 > 0, f"{orders} of {sent}"),
        Check(
            "requests failed", not outside, f"{len(failed)} of {sent}, {when}; slower than {answers.SLOW:g} s: {slow}"
        ),
    ]


def left_out(without: str, facts: Facts) -> tuple[int, str]:
    """Exit status and words for a run without one part: 1 when that part is the reason why nothing was undone."""
    if facts.answered():
        return 2, "an undo was accepted all the same"
    suffered = facts.bad is not None
    if suffered == (without == "release"):
        return 2, f"nothing was undone, but the shop {'was slow all the same' if suffered else 'was not overloaded'}"
    return 1, "nothing was undone"


def line(facts: Facts) -> list[tuple[float, str]]:
    """What happened and when, in the order of time."""
    rows = list(facts.notes)
    bad = facts.bad
    if bad:
        what = f"failed with {bad.status}" if bad.failed else f"took {bad.done - bad.due:.2f} s"
        rows.append((bad.due, f"first bad request: {bad.kind}, {what}"))
    first = next((request.release for request in facts.requests if request.release), None)
    fresh = [request for request in facts.requests if request.release not in (None, first)]
    if fresh:
        rows.append((min(request.done for request in fresh), f"first answer by release {fresh[0].release}"))
    again = [r for r in facts.requests if fresh and r.release == first and r.due > fresh[-1].due]
    if again:
        rows.append((again[0].due, f"first request answered by release {first} again"))
    if facts.green is not None:
        rows.append((facts.green, f"from here {answers.GREEN:g} s and more without a slow or failed request: restored"))
    rows += [(moment, text) for moment, text in facts.moments() if moment]
    return sorted(rows)


def zero(facts: Facts) -> float:
    """The moment from which seconds are counted: the first bad request, or else the accident."""
    return facts.bad.due if facts.bad else facts.began


def shown(facts: Facts) -> list[str]:
    """The time line for a person: clock, seconds, what happened."""
    begin = zero(facts)
    return [f"  {clock(moment)}  {moment - begin:+8.2f} s  {text}" for moment, text in line(facts)]


def clock(moment: float) -> str:
    """The time of day of this host, with milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"
