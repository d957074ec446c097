# SPDX-License-Identifier: Apache-2.0
"""Programs of actions.d that a `run` step names: started once for a request, whatever becomes of the engine.

A note for each request tells what is known of it: nothing (it was not begun), `begun`, or its outcome. Who supervises
the program holds the note's lock, so an engine that comes back waits for it, and a note that says `begun` and is not
locked means that nobody knows how it ended: then it is not started again.
"""

import fcntl
import json
import os
import pwd
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dre import event
from dre.errors import DreError, NotFoundError, NotPermittedError, TimedOutError

from dscriptlib import supervise
from dscriptlib.steps import FailedStep, Setting, Told

GRACE = 10.0  # seconds that the supervisor may need beyond the time of the program
KEPT = 30 * 86400.0  # seconds until a note is removed; no request is asked again so late
NOTHING: Mapping[str, str] = {}
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def run(setting: Setting, argv: Sequence[str], user: str, more: Mapping[str, str] = NOTHING) -> list[Told]:
    """Run *argv* as *user*, with *more* in its environment, and wait for its end.

    Raises DreError when it failed, or when that cannot be known.
    """
    path = _program(setting.conf.core_etc_dir / "actions.d", argv[0])
    note = _note(setting)
    try:
        _lock(note, setting)
        lines = _read(note)
        if not lines:
            asked = {
                "note": note,
                "request": setting.request,
                "path": str(path),
                "arguments": list(argv[1:]),
                "environment": {**environment(setting), **more},
                "timeout": setting.timeout,
                **_account(user),
            }
            _supervise(asked, note, setting.timeout)
            lines = _read(note)
        if len(lines) < 2:
            _end_rest(lines)
            raise DreError(f"{argv[0]}: whether it did its work is not known, so it is not started again")
        return _told(argv, json.loads(lines[1]))
    finally:
        os.close(note)


def _note(setting: Setting) -> int:
    directory = setting.conf.core_state_dir / "script" / "programs"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in directory.iterdir():
        if old.stat().st_mtime < time.time() - KEPT:
            old.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(directory / setting.request, flags, 0o600)


def _lock(note: int, setting: Setting) -> None:
    """Wait for who may still be supervising the program of this request."""
    deadline = time.monotonic() + setting.timeout + GRACE
    while True:
        try:
            return fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimedOutError("the program of this request does not end") from None
            time.sleep(0.05)  # flock(2) has no deadline


def _read(note: int) -> list[bytes]:
    """The whole lines of the note."""
    octets = os.pread(note, 65536, 0)
    return octets[: octets.rfind(b"\n") + 1].splitlines()


def _supervise(asked: dict[str, Any], note: int, timeout: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", str(Path(supervise.__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[note],
        start_new_session=True,
    )
    try:
        process.communicate(json.dumps(asked).encode(), timeout + GRACE)
    except subprocess.TimeoutExpired:
        raise TimedOutError("the program of this request does not end") from None


def _end_rest(lines: Sequence[bytes]) -> None:
    """End what a program has left whose supervisor was killed."""
    group = lines[0].decode().partition(" ")[2] if lines else ""
    if group:
        supervise.end(Path(group))


def _told(argv: Sequence[str], outcome: dict[str, Any]) -> list[Told]:
    data = {"argv": [word[:100] for word in argv[:8]], **{key: outcome[key] for key in ("status", "octets", "sha256")}}
    told = [Told("script.run.output", {**data, "output": outcome["output"]}, 4 if outcome["error"] else 6)]
    if outcome["error"]:
        raise FailedStep(f"{argv[0]}: {outcome['error']}", told)
    return told


def environment(setting: Setting) -> dict[str, str]:
    """What the program is told: the script, the request, and the event as DRE_EVENT_TIME, …, DRE_EVENT_DATA_<KEY>."""
    told = {"DRE_SCRIPT": setting.script.name, "DRE_SCRIPT_RESPONSE": setting.response}
    told["DRE_SCRIPT_REQUEST"] = setting.request
    if setting.about is None:
        return {**_ENVIRONMENT, **told, "DRE_EVENT_ID": next(iter(setting.events), "")}
    return {**_ENVIRONMENT, **told, **event.environment(event.parse(setting.about))}


def _program(directory: Path, name: str) -> Path:
    """The executable *name* in *directory*, which nobody but root or we may have written."""
    try:
        place = directory.resolve(strict=True)
        path = (place / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise NotFoundError(f"{directory / name}: no such program") from None
    if path.parent != place:
        raise NotPermittedError(f"{directory / name}: leads out of {directory}")
    found = [place.stat(), path.stat()]
    if not stat.S_ISREG(found[1].st_mode) or not found[1].st_mode & 0o111:
        raise NotPermittedError(f"{path}: not an executable file")
    if any(one.st_uid not in (0, os.geteuid()) or one.st_mode & 0o022 for one in found):
        raise NotPermittedError(f"{path}: somebody else than root may write it")
    return path


def _account(user: str) -> dict[str, Any]:
    """As whom the program runs; an engine that is not root can run it as itself only."""
    if os.geteuid() != 0:
        return {}
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise NotFoundError(f"no user {user!r} on this host") from None
    groups = os.getgrouplist(user, found.pw_gid) if user != "nobody" else []
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": groups}
