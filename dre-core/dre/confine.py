# SPDX-License-Identifier: Apache-2.0
"""What an app is held by, as policy: ids of the host that are its alone, and its filter of system calls.

How files are then seen through these ids is dre.idmap's; the LXC configuration is dre.lxcconfig's.
"""

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dre import app as apps
from dre import files
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, UsageError
from dre.run import run
from dre.spec import Spec

COUNT = 65536  # ids of one app
# In systemd's table of ids (systemd.io/UIDS-GIDS) nobody's; what useradd(8) gives to users lies far below.
SPARE = (1879048192, 268304384)
SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


def privileged(base: str, wanted: bool | None, refused: bool | None) -> bool:
    """Whether a new app is privileged; *wanted* and *refused* are what was asked for. Raises UsageError."""
    if wanted and refused:
        raise UsageError("--privileged and --unprivileged exclude each other")
    if refused and base == "host":
        raise UsageError("--unprivileged needs a tree as base: an app that shares the host is always privileged")
    return bool(wanted) or base == "host"


def check_privileged(app: App, spec: Spec) -> Spec:
    """The check of property `privileged`: ids are given by create, and not to an app that shares the host."""
    if not spec.privileged and spec.ids is None and app.exists():
        raise DreError(f"{app.name}: has no ids of its own, for it was created privileged; create it anew")
    return spec


def check_seccomp(app: App, spec: Spec) -> Spec:
    """The check of property `seccomp`, done again at each start: a profile that others can write would be none."""
    if spec.seccomp == "default":
        return spec
    path = Path(spec.seccomp)
    try:
        status = path.stat()
        first = path.read_text(errors="replace").partition("\n")[0].strip() if stat.S_ISREG(status.st_mode) else ""
    except OSError as error:
        raise UsageError(f"seccomp {spec.seccomp}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or first not in ("1", "2"):
        raise UsageError(f"seccomp {spec.seccomp}: not a profile as LXC has them: its first line must be 1 or 2")
    for item in (path.resolve(), *path.resolve().parents):
        status = item.stat()
        others = status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0))
        if status.st_uid != 0 or (others and not status.st_mode & stat.S_ISVTX):
            raise UsageError(f"seccomp {spec.seccomp}: {item} must be owned by root and not be writable by others")
    return spec


def allot(app: App, spec: Spec) -> Spec:
    """*spec* of a new app with ids that no other app has. The caller holds the lock `addresses` until it is stored."""
    if spec.privileged:
        return replace(spec, ids=None)
    taken = set()
    for name in apps.names(app.conf):
        with contextlib.suppress(DreError):
            ids = App(app.conf, name).spec().ids
            if ids is not None and name != app.name:
                taken.add(ids[0])
    return replace(spec, ids=(_free(app.conf, taken), COUNT))


def _free(conf: Conf, taken: set[int]) -> int:
    """The first id of the highest free range: those who write maps by hand begin with the lowest."""

    def free() -> int | None:
        found = (first for first in _reserved(conf.app_ids) if all(abs(first - other) >= COUNT for other in taken))
        return next(found, None)

    first = free()
    if first is None:
        _reserve(conf, *(conf.app_ids or SPARE))
        first = free()
    if first is None:
        raise DreError("no ids are left for one more unprivileged app; DRE_APP_IDS in dre.conf(5) can give more")
    return first


def _reserve(conf: Conf, first: int, count: int) -> None:
    """Give root this range for good, as an administrator would do it; what was added is noted for a purge."""
    argv = ["usermod"]
    noted = conf.core_state_dir / "app" / "ids"
    lines = noted.read_text() if noted.exists() else ""
    for path, option in ((SUBUID, "--add-subuids"), (SUBGID, "--add-subgids")):
        if not any(line.root and line.holds(first, count) for line in _lines(path)):
            argv += [option, f"{first}-{first + count - 1}"]
            lines += f"{path} {first} {count}\n"
    if len(argv) > 1:
        noted.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(noted, lines, 0o600)
        run([*argv, "root"])


@dataclass(frozen=True)
class Line:
    """A line of /etc/subuid or /etc/subgid."""

    root: bool
    first: int
    count: int

    def holds(self, first: int, count: int = COUNT) -> bool:
        """Whether all the *count* ids from *first* on are in it."""
        return self.first <= first and first + count <= self.first + self.count

    def meets(self, first: int) -> bool:
        """Whether an app's range from *first* on has ids of it."""
        return self.first < first + COUNT and first < self.first + self.count


def _lines(path: Path) -> list[Line]:
    try:
        words = [line.split(":") for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [
        Line(word[0] in ("root", "0"), int(word[1]), int(word[2]))
        for word in words
        if len(word) == 3 and word[1].isdecimal() and word[2].isdecimal()
    ]


def _reserved(within: tuple[int, int] | None) -> Iterator[int]:
    """First ids of ranges that /etc/subuid and /etc/subgid give to root and to nobody else; the highest first.

    newuidmap(1), which LXC calls where it is installed, asks for that, and no user is given them later.
    """
    users, groups = _lines(SUBUID), _lines(SUBGID)
    others = [line for line in (*users, *groups) if not line.root]
    limit = Line(True, *within) if within else None
    for line in sorted((line for line in users if line.root), key=lambda line: -line.first):
        for first in reversed(range(line.first, line.first + line.count - COUNT + 1, COUNT)):
            if (
                (limit is None or limit.holds(first))
                and any(group.root and group.holds(first) for group in groups)
                and not any(other.meets(first) for other in others)
            ):
                yield first
