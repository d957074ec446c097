# SPDX-License-Identifier: Apache-2.0
"""The versions of each script: which was in force since when, by whom, and what waits for a second person.

    <state>/script/history/NAME/NUMBER.json   each switch of NAME to a version, from 1 on
    <state>/script/proposed/ID                an agreement that one person has signed
    <state>/script/agreed/SHA256              one that two persons have signed

A switch is begun when its file in the history is there; whoever comes next ends it. Each is recorded in the D-Box.
While no person is registered nobody need sign; from then on only what two have signed comes, and is kept, in force.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dre import event, files
from dre.conf import Conf
from dre.dbox import Recorder
from dre.errors import DreError, NotFoundError, NotPermittedError
from dre.event import Event

from dscriptlib import agreement, answers, persons, store
from dscriptlib.agreement import APPROVE, PROPOSE, Agreement
from dscriptlib.model import Script
from dscriptlib.persons import Person, Private

WAITING = 100  # proposals at once


@dataclass(frozen=True)
class Switch:
    """A script came in force; *how*: deploy, approve or rollback. *signed*: who proposed, and who approved it."""

    script: str
    number: int
    time: str
    sha256: str
    before: str | None
    how: str
    by: str
    signed: tuple[str, ...] = ()
    note: str = ""


def history(conf: Conf, name: str) -> list[Switch]:
    """All switches of the script *name*, the first one first."""
    return [_switch(path) for path in sorted((_home(conf) / "history" / name).glob("[0-9]*.json"))]


def names(conf: Conf) -> list[str]:
    """The scripts that have a history."""
    return sorted(path.name for path in (_home(conf) / "history").glob("[a-z0-9]*"))


def proposals(conf: Conf) -> list[Agreement]:
    """What waits, the oldest first. Raises DreError."""
    found = [_read(path) for path in (_home(conf) / "proposed").glob("*") if agreement.ID.fullmatch(path.name)]
    return sorted(found, key=lambda one: (one.time, one.id))


def proposed(conf: Conf, identity: str) -> tuple[Agreement, Script]:
    """The proposal of that id and its script. Raises NotFoundError, and DreError where it was changed."""
    path = _home(conf) / "proposed" / identity
    if not agreement.ID.fullmatch(identity) or not path.is_file():
        raise NotFoundError(f"{identity}: no such proposal")
    made = _read(path)
    script = store.version(conf, made.sha256)
    if made.id != identity or script is None or script.name != made.script:
        raise DreError(f"{path}: is not what was proposed")
    return made, script


def require(conf: Conf, script: Script) -> None:
    """Raise NotPermittedError where persons are registered and two of them have not signed *script*."""
    people = persons.all(conf)
    if not people:
        return
    path = _home(conf) / "agreed" / script.sha256
    if not path.is_file():
        raise NotPermittedError(f"{script.name} {script.sha256[:12]}: is not signed by two persons")
    made = _read(path)
    if (made.script, made.sha256) != (script.name, script.sha256):
        raise NotPermittedError(f"{path}: is about another version")
    agreement.verify(made, people)


def _agreed(conf: Conf, script: Script) -> bool:
    try:
        require(conf, script)
    except DreError:
        return False
    return True


def deploy(conf: Conf, script: Script, octets: bytes, note: str) -> Switch | None:
    """Put *script* in force where nobody need sign; None when it is. Raises DreError."""
    with _locked(conf, script.name) as done:
        if persons.all(conf):
            raise NotPermittedError(f"{script.name}: persons are registered, so one of them must sign it: --key")
        if done and done[-1].sha256 == script.sha256:
            return None
        store.keep(conf, script, octets)
        return _switch_to(conf, done, script, "deploy", answers.caller(), (), note)


def propose(conf: Conf, script: Script, octets: bytes, key: Private, note: str) -> Agreement:
    """Keep *script*, signed with *key*, until another person approves it. Raises DreError."""
    person = persons.holder(persons.all(conf), key)
    with _locked(conf, script.name) as done:
        if len(proposals(conf)) >= WAITING:
            raise DreError(f"{WAITING} proposals wait already: approve or refuse some first")
        before = done[-1].sha256 if done else None
        if before == script.sha256 and _agreed(conf, script):
            raise DreError(f"{script.name}: this version is in force already")
        store.keep(conf, script, octets)
        made = Agreement(script.name, script.sha256, before, os.urandom(6).hex(), event.stamp(), note)
        made = agreement.sign(made, PROPOSE, person, key)
        _write(_home(conf) / "proposed" / made.id, made)
    _record(
        conf, "proposed", script, made.time, {"id": made.id, "by": person.name, "note": note}, f"proposed-{made.id}"
    )
    return made


def approve(conf: Conf, identity: str, key: Private) -> Switch:
    """Put in force what another person proposed, signed with *key*, too. Raises DreError."""
    made, script = proposed(conf, identity)
    people = persons.all(conf)
    person = persons.holder(people, key)
    _may_approve(made, person)
    with _locked(conf, script.name) as done:
        agreement.verify(made, people, (PROPOSE,))
        # Else we were killed when that was done. What root alone had put in force may be signed as it is.
        if not done or done[-1].sha256 != script.sha256 or done[-1].time <= made.time:
            if (done[-1].sha256 if done else None) != made.before:
                raise DreError(f"{identity}: another version came in force since; propose it anew")
            made = agreement.sign(made, APPROVE, person, key)
            _write(_home(conf) / "agreed" / script.sha256, made)
            signed = tuple(one.person for one in made.signatures)
            done = [*done, _switch_to(conf, done, script, "approve", person.name, signed, made.note)]
            if made.before == script.sha256:
                _tell(conf, done[-1], script)  # it was in force, so nothing else came of it
        elif made.before == script.sha256:
            _tell(conf, done[-1], script)
        (_home(conf) / "proposed" / identity).unlink(missing_ok=True)
    return done[-1]


def _may_approve(made: Agreement, person: Person) -> None:
    if person.role != "approver":
        raise NotPermittedError(f"{made.id}: {person.name} is no approver")
    if person.name == made.by(PROPOSE):
        raise NotPermittedError(f"{made.id}: {person.name} proposed it, so another person has to approve it")


def refuse(conf: Conf, identity: str, why: str) -> None:
    """A proposal waits no more. Raises NotFoundError."""
    made, script = proposed(conf, identity)
    _record(conf, "refused", script, event.stamp(), {"id": made.id, "by": answers.caller(), "note": why})
    (_home(conf) / "proposed" / identity).unlink(missing_ok=True)


def rollback(conf: Conf, name: str, number: int | None, note: str) -> Switch:
    """Put an earlier version in force, that of the switch *number* or the one before. Raises DreError.

    Nobody need sign: it was agreed then, and a person in need must not wait.
    """
    with _locked(conf, name) as done:
        if not done:
            raise NotFoundError(f"{name}: no such script was ever deployed")
        if number is None:
            wanted = next((one.sha256 for one in reversed(done) if one.sha256 != done[-1].sha256), None)
            if wanted is None:
                raise NotFoundError(f"{name}: there is no earlier version")
        else:
            wanted = next((one.sha256 for one in done if one.number == number), None)
            if wanted is None:
                raise NotFoundError(f"{name}: no version {number}; there are {len(done)}")
        if wanted == done[-1].sha256:
            return done[-1]
        script = store.version(conf, wanted)
        if script is None:
            raise DreError(f"{name}: version {wanted[:12]} is not there any more, or was changed")
        require(conf, script)
        return _switch_to(conf, done, script, "rollback", answers.caller(), (), note)


# --- what is kept ---


@contextlib.contextmanager
def _locked(conf: Conf, name: str) -> Iterator[list[Switch]]:
    """Alone with the versions of *name*; a switch that was killed is ended first."""
    for place in (Path("proposed"), Path("agreed"), Path("history") / name):
        (_home(conf) / place).mkdir(mode=0o755, parents=True, exist_ok=True)
    with files.lock(conf.core_run_dir / "lock" / "dscript-versions", timeout=30.0):
        done = history(conf, name)
        if done:
            _settle(conf, done[-1])
        yield done


def _switch_to(
    conf: Conf, done: list[Switch], script: Script, how: str, by: str, signed: tuple[str, ...], note: str
) -> Switch:
    before = done[-1].sha256 if done else None
    number = done[-1].number + 1 if done else 1
    made = Switch(script.name, number, event.stamp(), script.sha256, before, how, by, signed, note)
    files.write_atomic(_home(conf) / "history" / script.name / f"{number:06}.json", json.dumps(asdict(made)) + "\n")
    _settle(conf, made)
    return made


def _settle(conf: Conf, made: Switch) -> None:
    """Record the switch and put its version in force, where that was not done yet."""
    if store.in_force(conf, made.script) == made.sha256:
        return
    script = store.version(conf, made.sha256)
    if script is None:
        raise DreError(f"{made.script}: version {made.sha256[:12]} is not there any more, or was changed")
    _tell(conf, made, script)
    store.put(conf, script)
    told = {key: vars(made)[key] for key in ("sha256", "number", "how", "by")}
    with contextlib.suppress(DreError):  # it is recorded already
        event.emit(conf, "script.deployed", f"{event.host()}/script:{script.name}", {"script": script.name, **told}, 5)


def _tell(conf: Conf, made: Switch, script: Script) -> None:
    """Record the switch in the D-Box, once."""
    data: dict[str, Any] = {key: value for key, value in vars(made).items() if key not in ("script", "time") and value}
    data.update({"signed": list(made.signed)} if made.signed else {})
    path = _home(conf) / "agreed" / made.sha256
    if made.how == "approve" and path.is_file():
        data["agreement"] = path.read_text()
    _record(conf, "deployed", script, made.time, data, f"deployed-{made.script}-{made.number}")


def _record(conf: Conf, word: str, script: Script, time: str, data: dict[str, Any], request: str = "") -> None:
    """Tell the D-Box; it waits in the spool until the engine delivers it. The same request has the same octets."""
    told = {"script": script.name, "sha256": script.sha256, **data}
    identity = hashlib.sha256(f"{request} {time}".encode()).hexdigest()[:16]
    made = Event(time, f"{event.host()}/script:{script.name}", f"script.{word}", 5, told, {"id": identity})
    Recorder(conf, "dscript").record("script", event.new_line(made).rstrip(b"\n"), request)


def _home(conf: Conf) -> Path:
    return store.directory(conf)


def _switch(path: Path) -> Switch:
    try:
        made = Switch(**json.loads(path.read_text()))
        return replace(made, signed=tuple(made.signed))
    except (ValueError, TypeError) as error:
        raise DreError(f"{path}: not a switch of a script: {error}") from None


def _read(path: Path) -> Agreement:
    return agreement.parse(path.read_text(errors="replace"), str(path))


def _write(path: Path, made: Agreement) -> None:
    files.write_atomic(path, made.format())
