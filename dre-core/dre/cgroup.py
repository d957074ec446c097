# SPDX-License-Identifier: Apache-2.0
"""Control groups of a running process, version 1 and 2 alike: read use, set limits, remove what a crash left.

A group is found through /proc/PID/cgroup and never built from a name: after a crash LXC numbers its groups.
This module knows no settings, no LXC library and no policy.
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dre.errors import DreError

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000  # microseconds; quota = percent * PERIOD / 100
_NO_LIMIT = 1 << 60  # version 1 says "no limit" with a number near 2^63


@dataclass(frozen=True)
class Usage:
    """What a group uses now, and its limits; memory is without the file cache that the kernel could drop at once."""

    cpu_ns: int
    memory: int
    memory_limit: int | None
    cpu_limit: float | None
    pids: int
    running: bool
    pids_limit: int | None = None
    io_read: int = 0
    io_write: int = 0


@dataclass(frozen=True)
class Limits:
    """Limits of an app; None is no limit. cpu is percent of one core, memory octets."""

    cpu: float | None = None
    memory: int | None = None
    pids: int | None = None


def unified(root: Path = ROOT) -> bool:
    """Whether the host has version 2 alone; on a hybrid host the controllers are those of version 1."""
    return (root / "cgroup.controllers").exists()


class Group:
    """The groups of one container, by controller."""

    def __init__(self, membership: str, root: Path = ROOT) -> None:
        """*membership* is the text of /proc/PID/cgroup of the container's init."""
        self.root = root
        self.v2 = unified(root)
        self.paths: dict[str, Path] = {}
        for line in membership.splitlines():
            _, controllers, path = line.split(":", 2)
            if bool(controllers) == self.v2:
                continue
            for controller in controllers.split(","):
                self.paths[controller] = root / controller / _container(path)

    @classmethod
    def of(cls, pid: int) -> "Group":
        """The groups of process *pid*. Raises OSError when it is gone."""
        return cls(Path(f"/proc/{pid}/cgroup").read_text())

    def file(self, controller: str, name: str) -> Path:
        """The file *name* of *controller*, which version 2 keeps in one directory."""
        path = self.paths.get("" if self.v2 else controller)
        if path is None:
            raise DreError(f"the kernel has no {controller} control group")
        return path / name

    def usage(self) -> Usage:
        """What the group uses now. Raises OSError when the group is gone."""
        if self.v2:
            cpu = _fields(self._text("cpu", "cpu.stat")).get("usage_usec", 0) * 1000
            memory, cache = self._number("memory", "memory.current"), "inactive_file"
            limit = self._number("memory", "memory.max")
            pids_now, pids_max = "pids.current", "pids.max"
        else:
            cpu = self._number("cpuacct", "cpuacct.usage") or 0
            memory, cache = self._number("memory", "memory.usage_in_bytes"), "total_inactive_file"
            limit = self._number("memory", "memory.limit_in_bytes")
            pids_now, pids_max = "pids.current", "pids.max"
        droppable = _fields(self._text("memory", "memory.stat")).get(cache, 0)
        read, written = self._io()
        return Usage(
            cpu_ns=cpu,
            memory=max((memory or 0) - droppable, 0),
            memory_limit=limit,
            cpu_limit=self._cpu_limit(),
            pids=self._number("pids", pids_now) or 0,
            running=True,
            pids_limit=self._number("pids", pids_max),
            io_read=read,
            io_write=written,
        )

    def set_memory(self, limit: int | None) -> None:
        """Set the memory limit, swap included; None lifts it. Raises DreError when more is in use than that."""
        used = self.usage().memory
        if limit is not None and limit < used:
            # Version 2 would not refuse: it would kill processes until the rest fits.
            raise DreError(f"memory limit {limit} is below the {used} octets in use")
        if self.v2:
            self._write("memory", "memory.max", "max" if limit is None else str(limit))
            self._write("memory", "memory.swap.max", "max" if limit is None else "0", optional=True)
            return
        names = ["memory.limit_in_bytes"]
        if self.file("memory", "memory.memsw.limit_in_bytes").exists():
            # The kernel wants limit <= memsw at every moment: raise memsw first, lower it last.
            now = self._number("memory", "memory.limit_in_bytes")
            raising = limit is None or (now is not None and limit > now)
            names.insert(0 if raising else 1, "memory.memsw.limit_in_bytes")
        for name in names:
            self._write("memory", name, "-1" if limit is None else str(limit))

    def set_cpu(self, percent: float | None) -> None:
        """Set the CPU quota in percent of one core; None lifts it."""
        if self.v2:
            self._write("cpu", "cpu.max", f"{'max' if percent is None else quota(percent)} {PERIOD}")
        else:
            self._write("cpu", "cpu.cfs_period_us", str(PERIOD))
            self._write("cpu", "cpu.cfs_quota_us", "-1" if percent is None else str(quota(percent)))

    def set_pids(self, count: int | None) -> None:
        """Set how many processes and threads there may be; None lifts it."""
        self._write("pids", "pids.max", "max" if count is None else str(count))

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

    def _io(self) -> tuple[int, int]:
        """Octets read and written since the container began; 0 where the kernel does not count them."""
        if self.v2:
            text = self._text("io", "io.stat", optional=True)
            found = re.findall(r"rbytes=(\d+) wbytes=(\d+)", text)
            return sum(int(read) for read, _ in found), sum(int(written) for _, written in found)
        text = self._text("blkio", "blkio.throttle.io_service_bytes", optional=True)
        return (
            sum(map(int, re.findall(r"Read (\d+)", text))),
            sum(map(int, re.findall(r"Write (\d+)", text))),
        )

    def _text(self, controller: str, name: str, optional: bool = False) -> str:
        try:
            return self.file(controller, name).read_text()
        except (OSError, DreError):
            if optional:
                return ""
            raise

    def _number(self, controller: str, name: str) -> int | None:
        text = self._text(controller, name).strip()
        return None if text == "max" or int(text) >= _NO_LIMIT else int(text)

    def _write(self, controller: str, name: str, value: str, optional: bool = False) -> None:
        path = self.file(controller, name)
        try:
            # Not write_text: it would create a plain file where the group is only imitated.
            fd = os.open(path, os.O_WRONLY)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            if optional and error.errno == errno.ENOENT:
                return
            if error.errno == errno.EBUSY:
                raise DreError(f"{name}: more than {value} is in use") from None
            raise DreError(f"{path}: cannot write {value}: {error.strerror}") from None


def quota(percent: float) -> int:
    """Microseconds of CPU time per PERIOD; the kernel takes no less than 1000."""
    return max(round(percent * PERIOD / 100), 1000)


def keys(limits: Limits, root: Path = ROOT) -> list[tuple[str, str]]:
    """The lines of an LXC configuration for *limits*, for both versions; LXC ignores the family the host lacks."""
    lines: list[tuple[str, str]] = []
    if limits.memory is not None:
        lines.append(("lxc.cgroup.memory.limit_in_bytes", str(limits.memory)))
        # A key whose file is missing would stop the start, and these two depend on how the kernel was built.
        if (root / "memory" / "memory.memsw.limit_in_bytes").exists():
            lines.append(("lxc.cgroup.memory.memsw.limit_in_bytes", str(limits.memory)))
        lines.append(("lxc.cgroup2.memory.max", str(limits.memory)))
        if unified(root) and any(root.glob("*/memory.swap.max")):
            lines.append(("lxc.cgroup2.memory.swap.max", "0"))
    if limits.cpu is not None:
        lines.append(("lxc.cgroup.cpu.cfs_period_us", str(PERIOD)))
        lines.append(("lxc.cgroup.cpu.cfs_quota_us", str(quota(limits.cpu))))
        lines.append(("lxc.cgroup2.cpu.max", f"{quota(limits.cpu)} {PERIOD}"))
    if limits.pids is not None:
        lines.append(("lxc.cgroup.pids.max", str(limits.pids)))
        lines.append(("lxc.cgroup2.pids.max", str(limits.pids)))
    return lines


def sweep(name: str, taken: set[str], root: Path = ROOT) -> None:
    """Remove the empty groups that a killed monitor of container *name* left; *taken* are other containers' names.

    A group with a process in it cannot be removed, which is what makes this safe.
    """
    wanted = re.compile(rf"lxc\.(?:payload|monitor)\.({re.escape(name)}(?:-\d+)?)")
    for directory in [root] if unified(root) else [entry for entry in root.iterdir() if not entry.is_symlink()]:
        for group in directory.glob(f"lxc.*.{name}*"):
            match = wanted.fullmatch(group.name)
            if match and (match[1] == name or match[1] not in taken):
                _remove(group)


def _remove(group: Path) -> None:
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            Path(directory).rmdir()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT, errno.ENOTEMPTY):
                raise


def _container(path: str) -> str:
    """The container's own group in *path*: an init such as systemd moves itself further down."""
    parts = path.strip("/").split("/")
    for index, part in enumerate(parts):
        if part.startswith("lxc.payload."):
            return "/".join(parts[: index + 1])
    return "/".join(parts)


def _fields(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in text.splitlines() if line.count(" ") == 1)}
