# SPDX-License-Identifier: Apache-2.0
"""The rules of /etc/dre/rules.d as versions: all files of one are in force, or all of the other, and each is kept.

    <state>/rules/versions/SHA256/NAME.sec   what was in force, or is to be
    <state>/rules/history/NUMBER.json        each switch, from 1 on; what a person changed by hand is one, too
    <state>/rules/switch.json                a switch at work; whoever comes next ends it
    <state>/rules/proposed/ID/               what waits for a second person: proposal.json, and all files of the set

A version's name is the digest of what sha256sum(1) prints of its files in the order of their names: in its directory,
`LC_ALL=C; sha256sum *.sec | sha256sum`. Each switch is an entry of the D-Box, stream `rules`, by the client `monitor`.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dre import event, files
from dre.conf import Conf
from dre.dbox import Recorder
from dre.errors import DreError, NotFoundError, NotPermittedError, UsageError

CLIENT, STREAM = "monitor", "rules"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.sec")
WAITING = 100  # proposals at once
_ID = re.compile(r"[0-9a-f]{12}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
_NOBODY = 0xFFFFFFFF  # a login uid that was never set: proc(5), loginuid
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Person:
    """Who is at work; *via* is how the page knows: "account", or "certificate" and its fingerprint; else nothing."""

    name: str
    via: str = ""


@dataclass(frozen=True)
class Switch:
    """A change of what is in force; *before* is None for the first. *how*: install, approve, rollback, hand or back."""

    number: int
    time: str
    version: str
    before: str | None
    by: str
    how: str
    note: str = ""
    id: str = ""
    via: str = ""


@dataclass(frozen=True)
class Proposal:
    """Rules that wait for a second person; *base* is the version that they were made from."""

    id: str
    time: str
    version: str
    base: str
    by: str
    note: str = ""
    via: str = ""


def in_force(conf: Conf) -> dict[str, bytes]:
    """The rule files as they are now, by name."""
    return _read(conf.core_etc_dir / "rules.d")


def digest(texts: Files) -> str:
    """The name of the version that consists of *texts*."""
    lines = (f"{hashlib.sha256(texts[name]).hexdigest()}  {name}\n" for name in sorted(texts))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def person() -> str:
    """Who calls on this host: who logged in, else whom sudo tells, else the process's user. Root can be anybody."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        number = int(Path("/proc/self/loginuid").read_text())
        if number != _NOBODY:
            return pwd.getpwuid(number).pw_name
    name = os.environ.get("SUDO_USER", "")
    if os.getuid() == 0 and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", name):
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def history(conf: Conf) -> list[Switch]:
    """All switches, the first one first; what was changed by hand until now is one."""
    with _locked(conf):
        return _settled(conf)


def seen(conf: Conf) -> list[Switch]:
    """All switches that are noted; unlike `history` it writes nothing, so a change by hand may not be among them."""
    return [_told(path) for path in sorted((_home(conf) / "history").glob("[0-9]*.json"))]


def find(conf: Conf, number: int | None) -> tuple[Switch, dict[str, bytes]]:
    """The switch *number*, or for None the one whose rules were in force before the present ones, and its rules.

    Raises NotFoundError, and DreError where the version is not what its name says.
    """
    done = history(conf)
    if number is None:
        earlier = [switch for switch in done if switch.version == done[-1].before] if done else []
        if not earlier:
            raise NotFoundError("there are no earlier rules")
        found = earlier[-1]
    else:
        try:
            found = next(switch for switch in done if switch.number == number)
        except StopIteration:
            raise NotFoundError(f"no version {number}; there are {len(done)}") from None
    return found, version(conf, found.version)


def switch(
    conf: Conf, texts: Files, how: str, note: str = "", base: str | None = None, by: Person | None = None
) -> Switch | None:
    """Put *texts* in force, and nothing else; None when they are. *by*: who does, if not the caller on this host.

    Raises DreError, also where other rules are in force by now than those of the version *base*.
    """
    by = by or Person(person())
    with _locked(conf):
        done = _settled(conf)
        before = _unchanged(done, base)
        if digest(texts) == before:
            return None
        number, identity = done[-1].number + 1, event.new_id()
        made = Switch(number, event.stamp(), _keep(conf, texts), before, by.name, how, note, identity, by.via)
        files.write_atomic(_home(conf) / "switch.json", json.dumps(asdict(made)) + "\n")
        _exchange(conf.core_etc_dir / "rules.d", texts)
        return _settled(conf)[-1]


def _unchanged(done: list[Switch], base: str | None) -> str:
    """The version in force. Raises DreError where that is not *base*."""
    if base not in (None, done[-1].version):
        raise DreError("other rules came into force meanwhile; nothing was changed")
    return done[-1].version


def deliver(conf: Conf, seconds: float = 2.0) -> None:
    """Bring what was recorded to the D-Box, if it answers. Raises DreError; it waits in the spool then."""
    Recorder(conf, CLIENT).drain(seconds)


# --- What waits for a second person ---


def propose(conf: Conf, texts: Files, note: str, base: str | None = None, by: Person | None = None) -> Proposal:
    """Keep *texts* until somebody else approves them. Raises DreError, also where *base* is not in force by now."""
    by = by or Person(person())
    with _locked(conf):
        if len(proposals(conf)) >= WAITING:
            raise DreError(f"{WAITING} proposals wait already: approve or reject some first")
        base = _unchanged(_settled(conf), base)
        made = Proposal(os.urandom(6).hex(), event.stamp(), digest(texts), base, by.name, note, by.via)
        with _new(_home(conf) / "proposed" / made.id) as scratch:
            _write(scratch, texts)
            files.write_atomic(scratch / "proposal.json", json.dumps(asdict(made)) + "\n")
    return made


def proposals(conf: Conf) -> list[Proposal]:
    """What waits, the oldest first."""
    found = [_proposal(place) for place in (_home(conf) / "proposed").glob("*") if _ID.fullmatch(place.name)]
    return sorted(found, key=lambda one: (one.time, one.id))


def proposed(conf: Conf, identity: str) -> tuple[Proposal, dict[str, bytes]]:
    """The proposal of that id, and its rules. Raises NotFoundError, and DreError where it was changed."""
    place = _home(conf) / "proposed" / identity
    if not _ID.fullmatch(identity) or not place.is_dir():
        raise NotFoundError(f"{identity}: no such proposal")
    made, texts = _proposal(place), _read(place)
    if digest(texts) != made.version:
        raise DreError(f"{place}: is not what was proposed")
    return made, texts


def may_approve(conf: Conf, made: Proposal, by: Person | None = None) -> None:
    """Raise NotPermittedError for who proposed it, and DreError where other rules are in force by now."""
    if made.by == (by.name if by else person()):
        raise NotPermittedError(f"{made.id}: {made.by} proposed it, so somebody else has to approve it")
    if history(conf)[-1].version != made.base:
        raise DreError(f"{made.id}: other rules are in force than those it was made from; propose it anew")


def drop(conf: Conf, identity: str) -> None:
    """A proposal waits no more. Raises NotFoundError."""
    proposed(conf, identity)
    place = _home(conf) / "proposed"
    try:
        (place / identity).rename(place / f"half-{identity}")  # at once; whoever is killed then leaves no half of one
    except FileNotFoundError:
        raise NotFoundError(f"{identity}: no such proposal") from None
    _remove(place / f"half-{identity}")


# --- Files ---


def _home(conf: Conf) -> Path:
    return conf.core_state_dir / "rules"


@contextlib.contextmanager
def _locked(conf: Conf) -> Iterator[None]:
    home = _home(conf)
    (conf.core_run_dir / "lock").mkdir(mode=0o755, parents=True, exist_ok=True)
    with files.lock(conf.core_run_dir / "lock" / "rules", timeout=30.0):
        for name in ("versions", "history", "proposed"):
            (home / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        for half in (*home.glob("*/half-*"), *conf.core_etc_dir.glob(".rules.d-*")):  # of one that was killed
            _remove(half)
        yield


def _settled(conf: Conf) -> list[Switch]:
    """End a switch that was killed, note what was changed by hand, and return all switches; there is at least one."""
    home, texts = _home(conf), in_force(conf)
    done = [_told(path) for path in sorted((home / "history").glob("[0-9]*.json"))]
    now = digest(texts)
    with contextlib.suppress(FileNotFoundError):
        begun = Switch(**json.loads((home / "switch.json").read_text()))
        if begun.version == now and (not done or done[-1].number < begun.number):
            done.append(_note(conf, begun))
        (home / "switch.json").unlink()
    if not done or done[-1].version != now:
        before, number = (done[-1].version, done[-1].number + 1) if done else (None, 1)
        identity = hashlib.sha256(f"{number} {before} {now}".encode()).hexdigest()[:16]
        _keep(conf, texts)
        done.append(_note(conf, Switch(number, event.stamp(), now, before, "", "hand", "", identity)))
    return done


def _note(conf: Conf, made: Switch) -> Switch:
    """Record a switch that was made, and then add it to the history."""
    held = {name: hashlib.sha256(octets).hexdigest() for name, octets in version(conf, made.version).items()}
    said = {**asdict(made), "host": os.uname().nodename, "files": held}
    Recorder(conf, CLIENT).record(STREAM, json.dumps(said).encode(), f"rules-{made.id}")
    files.write_atomic(_home(conf) / "history" / f"{made.number:06}.json", json.dumps(asdict(made)) + "\n")
    return made


def _told(path: Path) -> Switch:
    try:
        return Switch(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DreError(f"{path}: not a switch of rules: {error}") from None


def _proposal(place: Path) -> Proposal:
    try:
        return Proposal(**json.loads((place / "proposal.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DreError(f"{place}: not a proposal: {error}") from None


def _read(place: Path) -> dict[str, bytes]:
    try:
        return {path.name: path.read_bytes() for path in sorted(place.glob("*.sec"))}
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None


def version(conf: Conf, name: str) -> dict[str, bytes]:
    """The rules of the version *name*. Raises DreError where it is not what its name says."""
    texts = _read(_home(conf) / "versions" / name)
    if digest(texts) != name:
        raise DreError(f"{_home(conf) / 'versions' / name}: is not what its name says")
    return texts


def _keep(conf: Conf, texts: Files) -> str:
    """Have *texts* as a version; its name."""
    version = digest(texts)
    place = _home(conf) / "versions" / version
    if not place.exists():
        with _new(place) as scratch:
            _write(scratch, texts)
    return version


def _write(place: Path, texts: Files) -> None:
    for name, octets in texts.items():
        files.write_atomic(place / name, octets)


@contextlib.contextmanager
def _new(place: Path) -> Iterator[Path]:
    """A directory to fill, which becomes *place* when it is whole."""
    scratch = Path(tempfile.mkdtemp(prefix="half-", dir=place.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        files.fsync_dir(scratch)
        scratch.rename(place)
        files.fsync_dir(place.parent)
    except BaseException:
        _remove(scratch)
        raise


def _exchange(place: Path, texts: Files) -> None:
    """Replace the *.sec files of the directory *place* by *texts* at once; what else is there stays.

    Raises DreError where the file system cannot exchange two directories: renameat2(2), RENAME_EXCHANGE.
    """
    place.mkdir(mode=0o755, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".rules.d-", dir=place.parent))
    try:
        for entry in place.iterdir():
            if entry.name in texts:
                shutil.copystat(entry, _written(scratch, entry.name, texts))  # its mode
                os.utime(scratch / entry.name)
            elif not entry.name.endswith(".sec") and not entry.is_dir():
                shutil.copy2(entry, scratch / entry.name, follow_symlinks=False)
        for name in texts:
            if not (scratch / name).exists():
                _written(scratch, name, texts)
        shutil.copystat(place, scratch)
        found = place.stat()
        os.chown(scratch, found.st_uid, found.st_gid)
        files.fsync_dir(scratch)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(scratch), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE) != 0:
            raise DreError(f"{place}: cannot be exchanged for another directory: {os.strerror(ctypes.get_errno())}")
        files.fsync_dir(place.parent)
    finally:
        _remove(scratch)


def _written(place: Path, name: str, texts: Files) -> Path:
    files.write_atomic(place / name, texts[name])
    return place / name


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
