# SPDX-License-Identifier: Apache-2.0
"""What the page may ask of root, and who of its visitors may have it: the page itself may do nothing.

A request is an object whose `do` is in `ASKED`. Who is asking is found here, from the token of a session or the
fingerprint of a certificate; so are a form's token, the role and the second person, and rules are checked as dre-rules
does. An answer has `who` and `csrf` (the token for the next forms), and `error`, `code` (of dre.errors) and `findings`
where something is refused. Of a certificate the page's word is taken: Apache has verified it.
"""

import contextlib
import hmac
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dre import event, files
from dre.conf import Conf
from dre.errors import DreError, NotPermittedError, UsageError

from monitorlib import changing, people, replay, rulecheck, ruleset, spool, supervise, versions
from monitorlib.cmd.dre_correlate import watched
from monitorlib.correlate import Correlator
from monitorlib.people import ROLES, People, Registered
from monitorlib.versions import Person

FILES, NAME, NOTE = 64, 100, 500  # files in a request, letters of a name and of a note
POSTS = 60  # forms of one person in accounts.WINDOW
RECORDED = 8 << 20  # octets of the spool that rules are tried on
LISTED = 1000  # switches that the history tells
SECONDS = 20  # of processor time for one trial
ROWS, SHOWN = 20_000, 200  # lines that a trial may write, and that are told
Fields = dict[str, Any]


class WaitError(DreError):
    """Too much was asked; *seconds* until more will be heard."""

    def __init__(self, seconds: int, said: str) -> None:
        super().__init__(f"{said}: try again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Visitor:
    """One who asks, and how we know him; *token* is of a session."""

    person: Registered
    token: str = ""

    @property
    def via(self) -> str:
        """What the history tells of it."""
        return "account" if self.token else f"certificate {self.person.certificate}"

    @property
    def by(self) -> Person:
        """As those who change rules are named."""
        return Person(self.person.name, self.via)


class Desk:
    """Answers one request of the page after the other."""

    def __init__(self, conf: Conf) -> None:
        self.conf = conf
        self.people = People(people.prepare(conf))

    def answer(self, request: Fields) -> Fields:
        """The answer to *request*; whatever a request holds, it is data and the answer tells what is wrong with it."""
        visitor, told = None, Fields()
        try:
            visitor = self._visitor(request)
            told = self._asked(visitor, request)
            if "visitor" in told:
                visitor = told.pop("visitor")
        except changing.RefusedError as error:
            findings = [[one.file, one.line, one.reason[:500]] for one in error.findings]
            told = {"error": "the rules are refused", "code": error.code, "findings": findings[:SHOWN]}
        except WaitError as error:
            told = {"error": str(error), "code": error.code, "wait": error.seconds}
        except DreError as error:
            told = {"error": str(error), "code": error.code}
        known: Fields | None = None
        if visitor:
            name, role = visitor.person.name, visitor.person.role
            known = {"name": name, "role": role, "rights": sorted(ROLES[role]), "session": bool(visitor.token)}
        return {**told, "who": known, "csrf": self._csrf(visitor, request)}

    # --- Who asks ---

    def _visitor(self, request: Fields) -> Visitor | None:
        token, certificate = _word(request, "session", 64), _word(request, "certificate", 64)
        session = self.people.session(token) if token else None
        if session:
            person = self.people.find(session[0])
            if person and person.number == session[1]:
                return Visitor(person, token)
            self.people.end(token)
        person = self.people.find(certificate=certificate)
        return Visitor(person) if person else None

    def _csrf(self, visitor: Visitor | None, request: Fields) -> str:
        """The token of the forms of this visitor; before anybody is known, of this browser."""
        if visitor is None:
            return self.people.mac("csrf", "login", _word(request, "before", 64))
        person = visitor.person
        return self.people.mac("csrf", visitor.via, visitor.token, person.name, str(person.number))

    def _asked(self, visitor: Visitor | None, request: Fields) -> Fields:
        """Do it, if this visitor may and the form is ours."""
        do = _word(request, "do", 20)
        if do not in ASKED:
            raise UsageError(f"nothing is called {do!r}")
        right, form, call = ASKED[do]
        if form and not hmac.compare_digest(self._csrf(visitor, request).encode(), _word(request, "csrf", 64).encode()):
            raise NotPermittedError("this form is too old or not ours: load the page again")
        if not right:
            return call(self, visitor, request)
        if visitor is None:
            raise NotPermittedError("nobody is logged in")
        if right not in ROLES[visitor.person.role]:
            raise NotPermittedError(f"the role {visitor.person.role} may not do this")
        if form and (wait := self.people.count((f"form {visitor.person.name}", POSTS))):
            raise WaitError(wait, "too many forms")
        return call(self, visitor, request)

    def _hello(self, visitor: Visitor | None, request: Fields) -> Fields:
        """Nothing but who asks, and that he may."""
        return {}

    def _login(self, visitor: Visitor | None, request: Fields) -> Fields:
        """A session that was not there before: nobody can have prepared its token."""
        name, address = _word(request, "name", 100), _word(request, "address", 100)
        person = self.people.find(name)
        if person is None:
            name = "-"  # what was typed there may have been a password
        if wait := self.people.attempt(name, address):
            raise WaitError(wait, "too many failed logins")
        if not self.people.right(name, _word(request, "password", 300)) or person is None:
            if self.people.blocked(name, address):
                with contextlib.suppress(event.EventError):
                    told = {"account": name, "address": address}
                    event.emit(self.conf, "monitor.login.blocked", f"{event.host()}/monitor", told, 4)
            raise NotPermittedError("name or password is wrong, or the account has no role")
        self.people.succeeded(name, address)
        if visitor and visitor.token:
            self.people.end(visitor.token)
        token = self.people.begin(name, person.number)
        return {"token": token, "visitor": Visitor(person, token)}

    def _logout(self, visitor: Visitor | None, request: Fields) -> Fields:
        if visitor and visitor.token:
            self.people.end(visitor.token)
        return {"visitor": None}

    def _password(self, visitor: Visitor, request: Fields) -> Fields:
        """Another password for the account of this session; all its sessions end."""
        name, address = visitor.person.name, _word(request, "address", 100)
        if not visitor.token:
            raise UsageError("you came with a certificate: there is no password")
        if wait := self.people.attempt(name, address):
            raise WaitError(wait, "too many failed tries")
        if not self.people.right(name, _word(request, "old", 300)):
            raise NotPermittedError("the present password is wrong")
        self.people.succeeded(name, address)
        self.people.set_password(name, _word(request, "new", 300))
        return {"visitor": None}

    # --- Looking; nothing is written ---

    def _overview(self, visitor: Visitor, request: Fields) -> Fields:
        texts, done = versions.in_force(self.conf), versions.seen(self.conf)
        now = versions.digest(texts)
        return {
            "version": now,
            "noted": bool(done) and done[-1].version == now,
            "files": [[name, len(octets), octets.count(b"\n")] for name, octets in texts.items()],
            "proposals": [{**asdict(one), "changes": changing.changes(self.conf, one)} for one in self._waiting()],
            "history": [asdict(one) for one in done[:-6:-1]],
            "stages": supervise.status(self.conf),
            "correlator": self.conf.monitor_correlator,
        }

    def _waiting(self) -> list[versions.Proposal]:
        return versions.proposals(self.conf)

    def _rules(self, visitor: Visitor, request: Fields) -> Fields:
        texts = versions.in_force(self.conf)
        return {"version": versions.digest(texts), "texts": _readable(texts)}

    def _proposal(self, visitor: Visitor, request: Fields) -> Fields:
        made, texts = versions.proposed(self.conf, _word(request, "id", 40))
        now = versions.in_force(self.conf)
        told = {"proposal": asdict(made), "texts": _readable(texts), "before": _readable(now)}
        return {**told, "current": versions.digest(now) == made.base}

    def _history(self, visitor: Visitor, request: Fields) -> Fields:
        return {"history": [asdict(one) for one in versions.seen(self.conf)[: -LISTED - 1 : -1]]}

    def _switch(self, visitor: Visitor, request: Fields) -> Fields:
        number, done = _number(request), versions.seen(self.conf)
        found = next((one for one in done if one.number == number), None)
        if found is None:
            raise UsageError(f"no version {number}; there are {len(done)}")
        before = _readable(versions.version(self.conf, found.before)) if found.before else {}
        texts, newest = _readable(versions.version(self.conf, found.version)), done[-1].version == found.version
        return {"switch": asdict(found), "texts": texts, "before": before, "current": newest}

    # --- Changing ---

    def _check(self, visitor: Visitor, request: Fields) -> Fields:
        with self._alone():
            changing.read(self.conf, self._wanted(request)[0])
        return {}

    def _test(self, visitor: Visitor, request: Fields) -> Fields:
        """What the rules would write for recorded events, beside what those in force would."""
        if identity := _word(request, "id", 40):
            texts = versions.proposed(self.conf, identity)[1]
        else:
            texts, _ = self._wanted(request)
        given = request.get("events", "")
        if not isinstance(given, str):
            raise UsageError("events are no text")
        with self._alone(), _events(self.conf, given) as events:
            new = self._rules_of(texts)
            written, counted = self._written(new, events)
            before, _ = self._written(self._rules_of(versions.in_force(self.conf)), events)
        more, less = _without(written, before), _without(before, written)
        told = {"written": len(written), "more": len(more), "less": len(less), "counted": counted}
        return {**told, "given": bool(given), "rows": more[:SHOWN], "gone": less[:SHOWN], "all": written[:SHOWN]}

    def _propose(self, visitor: Visitor, request: Fields) -> Fields:
        texts, base = self._wanted(request)
        with self._alone():
            changing.check(self.conf, texts)
        if versions.digest(texts) == base:
            raise UsageError("these rules are in force already: nothing was changed")
        made = versions.propose(self.conf, texts, _note(request), base, visitor.by)
        return {"id": made.id}

    def _approve(self, visitor: Visitor, request: Fields) -> Fields:
        made = changing.approve(self.conf, _word(request, "id", 40), visitor.by)
        return {"number": made.number if made else 0}

    def _reject(self, visitor: Visitor, request: Fields) -> Fields:
        """An approver rejects; an author takes back what is his own."""
        made, _ = versions.proposed(self.conf, identity := _word(request, "id", 40))
        if made.by != visitor.person.name and "approve" not in ROLES[visitor.person.role]:
            raise NotPermittedError(f"the role {visitor.person.role} may only take back its own proposals")
        versions.drop(self.conf, identity)
        return {}

    def _rollback(self, visitor: Visitor, request: Fields) -> Fields:
        made = changing.rollback(self.conf, _number(request), _note(request), visitor.by)
        return {"number": made.number if made else 0}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One reads strangers' rules at a time, and has only the time that nobody else wants."""
        os.nice(10)
        with files.lock(self.conf.core_run_dir / "lock" / "rules-read", timeout=30.0):
            yield

    def _wanted(self, request: Fields) -> tuple[dict[str, bytes], str]:
        """What is in force with the files that were sent, and the version it was made from. Raises DreError."""
        texts = versions.in_force(self.conf)
        base, sent, gone = versions.digest(texts), request.get("texts"), request.get("remove", [])
        if not isinstance(sent, dict) or not isinstance(gone, list) or len(sent) > FILES:
            raise UsageError(f"expected at most {FILES} files")
        if _word(request, "base", 64) != base:
            raise DreError("other rules came into force since this form was made: begin anew from them")
        for name, text in sent.items():
            if not versions.NAME.fullmatch(name) or len(name) > NAME or not isinstance(text, str):
                raise UsageError(f"{name[:NAME]!r}: expected a name of letters, digits and _.- that ends in .sec")
            texts[name] = text.encode("utf-8", "backslashreplace")
        if sum(map(len, sent.values())) > rulecheck.LIMIT:
            raise UsageError(f"at most {rulecheck.LIMIT >> 20} MiB of rules at once")
        for name in gone:
            texts.pop(str(name), None)
        return texts, base

    def _rules_of(self, texts: versions.Files) -> ruleset.Ruleset:
        books = changing.read(self.conf, texts)
        rules, findings = ruleset.compile(books, {path.name for path in self.conf.monitor_pipes})
        if findings:
            raise changing.RefusedError(findings)
        return rules

    def _written(self, rules: ruleset.Ruleset, events: int) -> tuple[list[list[str]], Fields]:
        """The lines that *rules* write, as [time, rule, pipe, line], and how many events were read."""
        pipes, rows = [path.name for path in self.conf.monitor_pipes], list[list[str]]()
        os.lseek(events, 0, os.SEEK_SET)
        with contextlib.closing(replay.replay(Correlator(rules, pipes, explain=True), events, watched, SECONDS)) as run:
            for row in run:
                if "pipe" not in row:
                    return rows, row
                if len(rows) == ROWS:
                    raise DreError(f"the rules write more than {ROWS} lines for these events")
                rows.append([str(row[key])[:4096] for key in ("time", "rule", "pipe", "output")])
        return rows, {}


# What may be asked: the right that it needs (none: anybody), whether it is a form, and what answers.
ASKED: dict[str, tuple[str, bool, Callable[..., Fields]]] = {
    "hello": ("", False, Desk._hello),
    "login": ("", True, Desk._login),
    "logout": ("", True, Desk._logout),
    "password": ("see", True, Desk._password),
    "overview": ("see", False, Desk._overview),
    "watch": ("see", False, Desk._hello),
    "rules": ("see", False, Desk._rules),
    "proposal": ("see", False, Desk._proposal),
    "history": ("see", False, Desk._history),
    "switch": ("see", False, Desk._switch),
    "check": ("test", True, Desk._check),
    "test": ("test", True, Desk._test),
    "propose": ("propose", True, Desk._propose),
    "approve": ("approve", True, Desk._approve),
    "reject": ("propose", True, Desk._reject),
    "rollback": ("approve", True, Desk._rollback),
}


def _word(request: Fields, key: str, most: int) -> str:
    """A text of the request, or nothing. Raises UsageError."""
    value = request.get(key, "")
    if not isinstance(value, str) or len(value) > most:
        raise UsageError(f"{key}: expected a text of at most {most} letters")
    return value


def _note(request: Fields) -> str:
    note = " ".join(_word(request, "note", NOTE).split())
    if not note.isprintable():
        raise UsageError("a note has printable characters only")
    return note


def _number(request: Fields) -> int:
    number = request.get("number")
    if not isinstance(number, int) or not 0 < number < 1 << 31:
        raise UsageError("expected the number of a version")
    return number


def _readable(texts: versions.Files) -> dict[str, str]:
    return {name: octets.decode("ascii", "backslashreplace") for name, octets in texts.items()}


@contextlib.contextmanager
def _events(conf: Conf, given: str) -> Iterator[int]:
    """A descriptor of the events in the order of their time: those that were given, or else the newest of the spool."""
    octets = given.encode() or spool.tail(conf.core_state_dir / "spool" / "ingest", RECORDED)
    lines = sorted((line for line in octets.splitlines() if line.strip()), key=lambda line: line[9:33])
    with tempfile.TemporaryFile() as stream:
        stream.write(b"\n".join(lines) + b"\n" if lines else b"")
        stream.flush()
        yield stream.fileno()


def _without(rows: list[list[str]], others: list[list[str]]) -> list[list[str]]:
    """Those of *rows* that are not among *others*, whatever rule wrote them."""
    there, left = Counter((row[0], row[2], row[3]) for row in others), list[list[str]]()
    for row in rows:
        key = (row[0], row[2], row[3])
        if there[key]:
            there[key] -= 1
        else:
            left.append(row)
    return left
