# SPDX-License-Identifier: Apache-2.0
"""The configuration of a container that dre-app did not make, read as what an app can be; what cannot be is refused.

Only keys that are known here are taken. Pure text: it touches no container, and looks only at whether paths exist.
"""

import os
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dre import spec, units
from dre.errors import DreError, UsageError
from dre.spec import Bind

# What LXC's packages bring; an app's own configuration takes the place of these.
SHIPPED = re.compile(r"/usr/share/lxc/config/[a-z0-9.-]+")
# Keys without a meaning for an app: it has no console, its log is its own, its confinement is never looser.
UNNEEDED = re.compile(
    r"lxc\.(tty\.(max|dir)|pty\.max|console\.(path|logfile|buffer\.size|size)|log\.(level|file|syslog)|autodev|hook\.version"
    r"|apparmor\.allow_(nesting|incomplete)|signal\.reboot|rootfs\.managed|start\.(delay|order)|group|monitor\.unshare"
    r"|net\.0\.(link|flags|name|hwaddr|mtu|veth\.pair|veth\.mode|ipv4\.gateway))"
)
# Values of keys that say no more than every app has.
USUAL: dict[str, set[str]] = {
    "lxc.arch": {"linux64", "amd64", "x86_64", os.uname().machine},
    "lxc.apparmor.profile": {"generated", "unconfined", "lxc-container-default", "lxc-container-default-cgns"},
    "lxc.signal.stop": {"SIGKILL", "9"},
    "lxc.init.uid": {"0"},
    "lxc.init.gid": {"0"},
    "lxc.ephemeral": {"0"},
    "lxc.idmap": set(),
    "lxc.rootfs.options": set(),
}
DROPPED = {"mac_admin", "mac_override", "sys_time", "sys_module", "sys_rawio"}  # by every app
MOUNTED = {"proc", "proc:mixed", "sys", "sys:ro", "sys:mixed", "cgroup", "cgroup:ro", "cgroup:mixed"}
# Mounted by a template, and there, or of no use, in an app.
SYSTEM_MOUNTS = {"dev/shm", "dev/mqueue", "sys/kernel/security", "sys/kernel/debug", "sys/fs/pstore"}
INIT = "/sbin/init"  # what LXC runs when nothing is said


@dataclass
class Container:
    """What was read: *rootfs* as configured, *halt* the signal that ends an init of its own, and fields of Spec."""

    rootfs: str = ""
    command: tuple[str, ...] = ()
    halt: int | None = int(signal.SIGPWR)
    ip: str | None = None
    network: bool = False
    autostart: bool = False
    env: dict[str, str] = field(default_factory=dict)
    binds: list[Bind] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)


def read(path: Path, name: str) -> Container:
    """The container *name* of the LXC configuration *path*. Raises DreError naming the line that cannot be kept."""
    found = Container()
    for number, key, value in _lines(path):
        try:
            _take(found, name, key, value)
        except (UsageError, ValueError) as error:
            reason = str(error) or "an app cannot have that"
            raise DreError(f"{path}:{number}: {key} = {value}: {reason}") from None
    if not found.rootfs:
        raise DreError(f"{path}: no lxc.rootfs.path")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, key and value of each line; an empty value, which clears what stood before, has nothing to clear here."""
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        key, _, value = (part.strip() for part in text.partition("="))
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if value:
            yield number, key, value


def _take(found: Container, name: str, key: str, value: str) -> None:
    """Take one line. Raises UsageError or ValueError when an app cannot have it."""
    if UNNEEDED.fullmatch(key) or value in USUAL.get(key, ()):
        return
    take = _TAKERS.get(key)
    if take is not None:
        take(found, value)
    elif key == "lxc.uts.name":
        _only(value == name, f"an app is called by its name, {name}")
    elif match := re.fullmatch(r"lxc\.cgroup2?\.(.*)", key):
        _limit(found, match[1], value)
    else:
        raise ValueError


def _only(holds: bool, reason: str = "") -> None:
    if not holds:
        raise UsageError(reason)


def _include(found: Container, value: str) -> None:
    _only(SHIPPED.fullmatch(value) is not None, "only what LXC's packages bring is known")


def _rootfs(found: Container, value: str) -> None:
    found.rootfs = value


def _init(found: Container, value: str) -> None:
    words = shlex.split(value)
    if Path(words[0]).name in ("init.lxc", "init.lxc.static", "lxc-init") and "--" in words:
        found.command = tuple(words[words.index("--") + 1 :])
        found.halt = None
    else:
        found.command = tuple(words)


def number(text: str) -> int:
    """The number of a signal as LXC names it. Raises UsageError."""
    match = re.fullmatch(r"(?:SIG)?(RTMIN|RTMAX|[A-Z0-9]+?)(?:([+-])([0-9]{1,2}))?", text)
    try:
        if text.isdecimal():
            return int(signal.Signals(int(text))) if int(text) < signal.SIGRTMIN else int(text)
        if match is None or (match[2] and not match[1].startswith("RT")):
            raise ValueError
        base = int(signal.Signals[f"SIG{match[1]}"])
    except (ValueError, KeyError):
        raise UsageError("not a signal") from None
    found = base + int(f"{match[2] or '+'}{match[3] or 0}")
    _only(0 < found <= signal.SIGRTMAX, "not a signal")
    return found


def _halt(found: Container, value: str) -> None:
    if found.halt is not None:
        found.halt = number(value)


def _type(found: Container, value: str) -> None:
    _only(value in ("veth", "empty"), "an app is on the bridge or on no network")
    found.network = value == "veth"


def _address(found: Container, value: str) -> None:
    found.ip = value


def _autostart(found: Container, value: str) -> None:
    found.autostart = value == "1"


def _environment(found: Container, value: str) -> None:
    _only("=" in value, "its value would come from whoever starts it")
    found.env |= spec.env([value])


def _capabilities(found: Container, value: str) -> None:
    more = set(value.lower().replace("cap_", "").split()) - DROPPED
    _only(not more, f"an app keeps {' '.join(sorted(more))}")


def _auto(found: Container, value: str) -> None:
    _only(set(value.split()) <= MOUNTED)


def _seccomp(found: Container, value: str) -> None:
    _only(SHIPPED.fullmatch(value) is not None)


def _mount(found: Container, value: str) -> None:
    words = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word) for word in value.split()]
    _only(len(words) >= 4, "not a mount")
    source, target, options = words[0], words[1].lstrip("/"), set(words[3].split(","))
    if target in SYSTEM_MOUNTS:
        return
    _only("bind" in options and options <= {"bind", "ro", "rw", "create=dir", "create=file", "optional", "defaults"})
    if "optional" in options and not Path(source).exists():
        return
    found.binds.append(spec.bind(f"{source}:/{target}{':ro' if 'ro' in options else ''}"))


def _limit(found: Container, file: str, value: str) -> None:
    """A limit in either version of the kernel's files; what lifts a limit is none."""
    if value in ("max", "-1", "-1 100000") or value.startswith("max "):
        _only(file in ("memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us", "pids.max"))
    elif file in ("memory.max", "memory.limit_in_bytes"):
        found.limits["memory"] = units.size(value)
    elif file == "pids.max":
        found.limits["pids"] = int(value)
    elif file == "cpu.max":
        quota, period = value.split()
        found.limits["cpu"] = 100 * int(quota) / int(period)
    elif file == "cpu.cfs_period_us":
        _only(value == "100000", "an app's period is 100000")
    elif file == "cpu.cfs_quota_us":
        found.limits["cpu"] = int(value) / 1000
    else:
        raise ValueError


_TAKERS = {
    "lxc.include": _include,
    "lxc.rootfs.path": _rootfs,
    "lxc.init.cmd": _init,
    "lxc.signal.halt": _halt,
    "lxc.net.0.type": _type,
    "lxc.net.0.ipv4.address": _address,
    "lxc.start.auto": _autostart,
    "lxc.environment": _environment,
    "lxc.cap.drop": _capabilities,
    "lxc.mount.auto": _auto,
    "lxc.mount.entry": _mount,
    "lxc.seccomp.profile": _seccomp,
}
