# SPDX-License-Identifier: Apache-2.0
"""Control groups of a running process, version 1 and 2 alike: read use, write files, remove what a crash left.

A group is found through /proc/PID/cgroup and never built from a name: after a crash LXC numbers its groups.
This module knows no settings, no LXC library and no policy; what limits are made of stands in dre.limits.
"""

import errno
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dre import freezer, glance
from dre.errors import DreError

ROOT = Path("/sys/fs/cgroup")
_SERVED = ("blkio", "blkio.throttle.io_service_bytes")
_USED = "memory.usage_in_bytes"
# What a group does takes processor time, being held too; on version 2 its writes may come later.
_BEATS_V1 = (("cpuacct", "cpuacct.usage"),)
_BEATS_V2 = (("", "cpu.stat"), ("", "io.stat"))
_NO_LIMIT = 1 << 60  # version 1 says "no limit" with a number near 2^63
PRESSURE = ("cpu", "memory", "io")

Pressure = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Size:
    """How large a group is now, and may be; memory is without the file cache that the kernel could drop at once."""

    memory: int
    memory_limit: int | None
    cpu_limit: float | None
    pids: int


@dataclass(frozen=True)
class Usage(Size):
    """What a group uses now, and its limits."""

    cpu_ns: int
    running: bool
    pids_limit: int | None = None
    io_read: int | None = None
    io_write: int | None = None


@dataclass(frozen=True)
class Strain:
    """How a group suffers: *periods* of its quota, in how many *throttled*, processes killed for want of memory."""

    periods: int = 0
    throttled: int = 0
    oom_kills: int | None = None


@dataclass(frozen=True)
class Limits:
    """Limits of an app; None is no limit. cpu is percent of one core; memory and swap octets, io and net per second.

    weight is relative to other apps, 100 being everybody's; cpus a list such as `0-1,3`; swap what may be swapped out
    beyond memory, and counts only with it.
    """

    cpu: float | None = None
    weight: int | None = None
    cpus: str | None = None
    memory: int | None = None
    swap: int | None = 0
    pids: int | None = None
    io: int | None = None
    net: int | None = None


def unified(root: Path = ROOT) -> bool:
    """Whether the host has version 2 alone; on a hybrid host the controllers are those of version 1."""
    return glance.there(f"{root}/cgroup.controllers")


@functools.lru_cache(maxsize=256)  # who serves looks at the same ones again and again
def _places(membership: str, top: str, own: str) -> dict[str, str]:
    """The directories below *top*, by controller; of version 2, below *own* in it."""
    found = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        group = freezer.group(path)
        for controller in controllers.split(","):
            found[controller] = f"{top}/{controller}/{group}" if controller else f"{top}{own}/{group}"
    return found


class Group:
    """The groups of one container, by controller; `""` is its group of version 2, which a hybrid host has as well."""

    def __init__(self, membership: str, root: Path = ROOT) -> None:
        """*membership* is the text of /proc/PID/cgroup of the container's init."""
        self.root = root
        self.v2 = unified(root)
        self._membership = membership

    @property
    def paths(self) -> dict[str, Path]:
        """The directories, by controller."""
        return {controller: Path(place) for controller, place in self._places.items()}

    @functools.cached_property
    def _places(self) -> dict[str, str]:
        """The same as text, which is quicker. Late: who lists many apps needs one file of each."""
        return _places(self._membership, str(self.root), "" if self.v2 else "/unified")

    def is_same(self, other: "Group") -> bool:
        """Whether both are groups of one container."""
        return self._membership == other._membership or self._places == other._places

    @classmethod
    def of(cls, pid: int) -> Self:
        """The groups of process *pid*. Raises OSError when it is gone."""
        return cls(glance.text(f"/proc/{pid}/cgroup"))

    def file(self, controller: str, name: str) -> Path:
        """The file *name* of *controller*, which version 2 keeps in one directory."""
        place = self._places.get("" if self.v2 else controller)
        if place is None:
            raise DreError(f"the kernel has no {controller} control group")
        return Path(place, name)

    def size(self) -> Size:
        """What a list shows of the group. Raises OSError when the group is gone."""
        return Size(
            memory=self.memory(),
            memory_limit=self._number("memory", "memory.max" if self.v2 else "memory.limit_in_bytes"),
            cpu_limit=self._cpu_limit(),
            pids=self._number("pids", "pids.current") or 0,
        )

    def usage(self) -> Usage:
        """What the group uses now. Raises OSError when the group is gone."""
        if self.v2:
            cpu = _field(self._text("cpu", "cpu.stat"), "usage_usec") * 1000
        else:
            cpu = self._number("cpuacct", "cpuacct.usage") or 0
        read, written = self._io()
        return Usage(
            **vars(self.size()),
            cpu_ns=cpu,
            running=True,
            pids_limit=self._number("pids", "pids.max"),
            io_read=read,
            io_write=written,
        )

    def memory(self) -> int:
        """Octets in use that the kernel cannot simply drop."""
        now, droppable = ("memory.current", "inactive_file") if self.v2 else (_USED, "total_inactive_file")
        used = self._number("memory", now) or 0
        return max(used - _field(self._text("memory", "memory.stat"), droppable), 0)

    def strain(self) -> Strain:
        """How the group suffers; what the kernel does not tell is as Strain's defaults have it."""
        cpu = self._text("cpu", "cpu.stat", optional=True)
        killed = ("memory.events", "oom_kill") if self.v2 else ("memory.oom_control", "oom_kill")
        told = self._text("memory", killed[0], optional=True)
        return Strain(
            periods=_field(cpu, "nr_periods"),
            throttled=_field(cpu, "nr_throttled"),
            oom_kills=_field(told, killed[1]) if told else None,
        )

    def pressure(self) -> Pressure | None:
        """For cpu, memory and io the percent of the last 10 s in which some, or all, processes waited for it.

        None where the kernel does not count it. It renews these every 2 s.
        """
        # Not through `file`: on a hybrid host it is in the group of version 2, whoever has the controllers.
        told = {kind: self._at("", f"{kind}.pressure", optional=True) for kind in PRESSURE}
        return {kind: _shares(text) for kind, text in told.items()} if any(told.values()) else None

    def frozen(self) -> bool:
        """Whether its processes are held. Raises OSError when the group is gone."""
        if self.v2:
            return freezer.held(self._text("", "cgroup.events"), unified=True)
        with open(f"{self.root}/{freezer.file(self._membership, unified=False)}") as file:
            return freezer.held(file.read(), unified=False)

    def read(self, controller: str, name: str) -> str:
        """The text of a file, stripped. Raises OSError, or DreError where the kernel has no such controller."""
        return self._text(controller, name).strip()

    def write(self, controller: str, name: str, value: str) -> None:
        """Write *value* into a file that exists. Raises OSError."""
        # Not write_text: it would create a plain file where the group is only imitated.
        fd = os.open(self.file(controller, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def pids(self) -> list[int]:
        """All processes of the container, those of its own sub-groups included."""
        path = self.paths[""] if self.v2 else self.paths["pids"]
        found: list[int] = []
        for directory, _, _ in os.walk(path):
            found += map(int, (Path(directory) / "cgroup.procs").read_text().split())
        return found

    def _cpu_limit(self) -> float | None:
        if self.v2:
            amount, period = (self._text("cpu", "cpu.max") or "max 1").split()
            return None if amount == "max" else int(amount) * 100 / int(period)
        amount = self._text("cpu", "cpu.cfs_quota_us").strip()
        return None if amount.startswith("-") else int(amount) * 100 / (self._number("cpu", "cpu.cfs_period_us") or 1)

    def _io(self) -> tuple[int | None, int | None]:
        """Octets read and written since the container began; None where the kernel does not count them."""
        try:
            text = self._text(*(("io", "io.stat") if self.v2 else _SERVED))
        except (OSError, DreError):
            return None, None
        if self.v2:
            found = re.findall(r"rbytes=(\d+) wbytes=(\d+)", text)
            return sum(int(read) for read, _ in found), sum(int(written) for _, written in found)
        if text == "Total 0\n":  # as it is of most groups
            return 0, 0
        return (
            sum(map(int, re.findall(r"Read (\d+)", text))),
            sum(map(int, re.findall(r"Write (\d+)", text))),
        )

    def _text(self, controller: str, name: str, optional: bool = False) -> str:
        return self._at("" if self.v2 else controller, name, optional)

    def _at(self, key: str, name: str, optional: bool = False) -> str:
        """The text of file *name* of the group `paths[key]`; empty when it is *optional* and not there."""
        try:
            if key not in self._places:
                raise DreError(f"the kernel has no {key} control group")
            return self._load(key, name)
        except (OSError, DreError):
            if optional:
                return ""
            raise

    def _load(self, key: str, name: str) -> str:
        return glance.text(f"{self._places[key]}/{name}")

    def _number(self, controller: str, name: str) -> int | None:
        text = self._text(controller, name)
        return None if text.startswith("max") or int(text) >= _NO_LIMIT else int(text)


class HeldGroup(Group):
    """A Group whose files stay open, for who looks at it often; a group that is gone raises OSError."""

    def __init__(self, membership: str, root: Path = ROOT) -> None:
        super().__init__(membership, root)
        self._open: dict[tuple[str, str], int | None] = {}
        beats = [(key, name) for key, name in (_BEATS_V2 if self.v2 else _BEATS_V1) if key in self._places]
        self._beats = [self._descriptor(*file) for file in beats if Path(self._places[file[0]], file[1]).exists()]

    def pulse(self) -> tuple[bytes, ...]:
        """What tells whether it did anything: while it is the same, so is all but what is done to it.

        That is pressure, limits, and memory that the kernel takes away.
        """
        return tuple([os.pread(fd, 4096, 0) for fd in self._beats])

    def _load(self, key: str, name: str) -> str:
        return os.pread(self._descriptor(key, name), 1 << 16, 0).decode()

    def _descriptor(self, key: str, name: str) -> int:
        try:
            fd = self._open[key, name]
        except KeyError:
            try:
                fd = os.open(f"{self._places[key]}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                fd = None  # a kernel without it will not get it
            self._open[key, name] = fd
        if fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self._places[key]}/{name}")
        return fd

    def close(self) -> None:
        """Let go of the files."""
        for fd in self._open.values():
            if fd is not None:
                os.close(fd)
        self._open.clear()


def sweep(name: str, taken: set[str], root: Path = ROOT) -> None:
    """Remove the empty groups that a killed monitor of container *name* left; *taken* are other containers' names.

    A group with a process in it cannot be removed, which is what makes this safe.
    """
    wanted = re.compile(rf"lxc\.(?:payload|monitor)\.({re.escape(name)}(?:-\d+)?)")
    # Not through Path and its glob: each verb that changes an app is here, and seldom finds anything.
    for directory in [str(root)] if unified(root) else [entry.path for entry in os.scandir(root) if _is_own(entry)]:
        for group in os.listdir(directory):
            match = wanted.fullmatch(group)
            if match and (match[1] == name or match[1] not in taken):
                remove(Path(directory, group))


def _is_own(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)  # `cpu` may be a link to `cpu,cpuacct`


def remove(group: Path) -> None:
    """Remove the group at *group* and those inside; what has a process in it stays."""
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            Path(directory).rmdir()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT, errno.ENOTEMPTY):
                raise


def _field(text: str, key: str) -> int:
    """The number after *key*, which begins a line; 0 when there is none. Quick: most files have dozens of lines."""
    begin = 0 if text.startswith(key + " ") else text.find(f"\n{key} ") + 1
    if begin == 0 and not text.startswith(key + " "):
        return 0
    end = text.find("\n", begin)
    return int(text[begin + len(key) + 1 : end if end >= 0 else None])


@functools.lru_cache(maxsize=1024)  # of hundreds of idle groups it stays the same
def _shares(text: str) -> dict[str, float]:
    """avg10 of each line of a pressure file: some, and full where the kernel has that."""
    return {kind: float(share) for kind, share in re.findall(r"(some|full) avg10=([0-9.]+)", text)}
