# SPDX-License-Identifier: Apache-2.0
"""What it is to change rules, for dre-rules and for the page alike: check, switch, have them taken, or go back.

Nothing here asks who somebody is, nor prints: the caller has done the one and does the other.
"""

import contextlib
from collections.abc import Mapping, Sequence

from dre.conf import Conf
from dre.errors import DreError, NotFoundError

from monitorlib import rulecheck, ruleset, taking, versions
from monitorlib.rulecheck import Book, Finding
from monitorlib.versions import Files, Person, Proposal, Switch

LINE = 16_384  # letters of a line, with all that continue it


class RefusedError(DreError):
    """Rules that are not acceptable, and why."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(map(str, findings[:3])))
        self.findings = findings


def read(conf: Conf, texts: Files, shown: Mapping[str, str] | None = None) -> list[Book]:
    """The rules in *texts*, as those of one set; nothing in them is run. Raises RefusedError.

    *shown* is how findings name a file, where that is not its name.
    """
    pipes = {path.name for path in conf.monitor_pipes}
    books = [book((shown or {}).get(name, name), octets, pipes) for name, octets in sorted(texts.items())]
    findings = [finding for book in books for finding in book.findings]
    findings += [Finding(name, 1, "odd file name") for name in texts if not versions.NAME.fullmatch(name)]
    if not findings and conf.monitor_correlator == "dre":
        findings = ruleset.compile(books, pipes)[1]
    if findings:
        raise RefusedError(findings)
    return books


def book(file: str, octets: bytes, pipes: set[str]) -> Book:
    """What is read of one file, and what is wrong with it; whatever it holds takes bounded time and depth."""
    try:
        text = rulecheck.text(octets)
        number, long = 1, 0
        for line in text.split("\n"):
            long += len(line)
            if long > LINE:
                return Book(file, findings=[Finding(file, number, f"a line longer than {LINE} letters")])
            long = long if line.endswith("\\") else 0
            number += 1
        return rulecheck.parse(file, text, pipes)
    except ValueError as error:
        return Book(file, findings=[Finding(file, 1, f"not a text in ASCII: {error}")])
    except RecursionError:
        return Book(file, findings=[Finding(file, 1, "something in it is nested too deeply")])


def check(conf: Conf, texts: Files, shown: Mapping[str, str] | None = None) -> None:
    """Whether *texts* may be put in force. Raises RefusedError, and DreError with what sec itself says."""
    read(conf, texts, shown)
    taking.tried(conf, {name: rulecheck.text(octets) for name, octets in texts.items()})


def put(
    conf: Conf, texts: Files, how: str, note: str = "", base: str | None = None, by: Person | None = None
) -> Switch | None:
    """Put rules that were checked in force, or those before again where the monitor does not live with them.

    None when they are in force already. Raises DreError, also where the rules were put back.
    """
    made = versions.switch(conf, texts, how, note, base, by)
    if made is None:
        return None
    try:
        wrong = taking.take(conf)
        if wrong:
            assert made.before is not None  # what was there at the first call is a version, too
            back = versions.switch(conf, versions.version(conf, made.before), "back", wrong, made.version, by)
            taking.take(conf)
            number = f", as version {back.number}" if back else ""
            raise DreError(f"version {made.number}: {wrong}; the rules before are in force again{number}")
    finally:
        with contextlib.suppress(DreError):  # it waits in the spool, as the D-Box may be away, or never set up
            versions.deliver(conf)
    return made


def approve(conf: Conf, identity: str, by: Person | None = None) -> Switch | None:
    """Put in force what somebody else proposed. Raises DreError, RefusedError."""
    made, texts = versions.proposed(conf, identity)
    versions.may_approve(conf, made, by)
    check(conf, texts)
    note = f"{made.by}: {made.note}" if made.note else f"proposed by {made.by}"
    done = put(conf, texts, "approve", note, made.base, by)
    with contextlib.suppress(NotFoundError):  # rejected meanwhile, when it was too late
        versions.drop(conf, identity)
    return done


def rollback(conf: Conf, number: int | None, note: str = "", by: Person | None = None) -> Switch | None:
    """Put earlier rules in force, those of the switch *number* or the ones before. Raises DreError, RefusedError.

    Without a second person: what was in force once was approved then, and a person in need must not wait.
    """
    found, texts = versions.find(conf, number)
    check(conf, texts)
    return put(conf, texts, "rollback", note or f"to {found.number}", by=by)


def changes(conf: Conf, made: Proposal) -> list[str]:
    """The files that would be added, changed and removed: +NAME, ~NAME, -NAME."""
    new, old = versions.proposed(conf, made.id)[1], versions.in_force(conf)
    signs = {name: "+" if name not in old else "-" if name not in new else "~" for name in sorted(new | old)}
    return [sign + name for name, sign in signs.items() if new.get(name) != old.get(name)]
