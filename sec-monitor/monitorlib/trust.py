# SPDX-License-Identifier: Apache-2.0
"""What the intake believes: which user may speak for which part, and the form in which an event is kept.

Pure but for the look-up of user names and of who is in a container. An event is *proven* when the kernel told us that
its sender is root or the part's own service user, here and not in a container; every other is marked `claimed`.
"""

import pwd
import re
from pathlib import Path

from dre import event

# Who besides root may send events of our own types.
SERVICES: dict[str, tuple[str, ...]] = {
    "app": (),
    "system": (),
    "sysmon": (),
    "watch": ("dre-sec",),
    "monitor": ("dre-sec",),
    "dbox": ("dbox",),
    "script": ("dscript",),
}
LATE_ROOM = 24  # octets left for what dre-reorder may add: ,"late":<seconds>
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_GOAL = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def service_users() -> dict[str, frozenset[int]]:
    """For each part, the user ids whose events of it are proven; users that do not exist here are left out."""
    return {part: frozenset({0, *_uids(names)}) for part, names in SERVICES.items()}


def _uids(names: tuple[str, ...]) -> list[int]:
    known = []
    for name in names:
        try:
            known.append(pwd.getpwnam(name).pw_uid)
        except KeyError:
            continue
    return known


def is_here(pid: int) -> bool | None:
    """Whether the process *pid* is one of this host, or of the same container: it sees the same processes as we do.

    None when it has ended. One that we cannot see, as a container sees its host, is 0.
    """
    try:
        return bool(pid) and Path(f"/proc/{pid}/ns/pid").stat().st_ino == Path("/proc/self/ns/pid").stat().st_ino
    except (FileNotFoundError, ProcessLookupError):
        return None


def proven(type: str, uid: int | None, users: dict[str, frozenset[int]]) -> bool:
    """Whether an event of *type* from user *uid* (None: unknown, as on the FIFO) is more than a claim.

    Types of no part of ours (`shop.release`) are proven only from root.
    """
    return uid is not None and uid in users.get(type.partition(".")[0], frozenset({0}))


def proven_remotely(said: event.Event, name: str) -> bool:
    """Whether an event from the holder of the certificate *name* is more than a claim: of its own host, and of no part
    of ours, which only programs on this host may speak for."""
    own = f"/host:{name}"
    return said.type.partition(".")[0] not in SERVICES and (said.source == own or said.source.startswith(own + "/"))


def admit(
    line: bytes, uid: int | None, seen: str, users: dict[str, frozenset[int]], remote: str | None = None
) -> tuple[str, bytes]:
    """The id and the line to keep of a *line* that *uid* sent, or handed over for the certificate *remote*.

    Raises EventError saying why it is refused.

    The line is written anew, so its keys stand in the fixed order that rules rely on: time source type sev data id
    seen goal claimed. A sender may call its own event claimed, never proven; `late` and `skew` are ours to say.
    """
    said = event.parse(line)
    identity = said.optional.get("id") or event.new_id()
    goal = said.optional.get("goal")
    for key, value, form in (("id", identity, _ID), ("goal", goal, _GOAL)):
        if value is not None and not (isinstance(value, str) and form.fullmatch(value)):
            raise event.EventError(f"{key} {value!r} is not a word of at most 64 letters, digits and . _ : -")
    optional = {"id": identity, "seen": seen}
    if goal is not None:
        optional["goal"] = goal
    believed = proven(said.type, uid, users) if remote is None else proven_remotely(said, remote)
    claims = bool(said.optional.get("claimed")) or not believed
    kept: dict[str, object] = {**optional, **({"claimed": True} if claims else {})}
    made = event.format(event.Event(said.time, said.source, said.type, said.sev, said.data, kept))
    if len(made) > event.LIMIT - LATE_ROOM:
        raise event.EventError(f"event {said.type} is too long: {len(made)} octets with the intake's stamps")
    return str(identity), made


def salvage(line: bytes) -> bytes:
    """The last thing in a refused *line* that may be a whole event: a dead writer's half line stands before it."""
    start = line.rfind(b'{"time":"')
    return line[start:] if start > 0 else b""
