# SPDX-License-Identifier: Apache-2.0
"""Limits of a group of processes: which kernel files hold each, in both control group versions; all set, or none.

`keys` gives them as lines of an LXC configuration, `apply` writes them into a living group and reads each back. What is
an app's, and stored, stands in dre.relimit; the network rate is dre.network's.
"""

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dre.cgroup import ROOT, Group, Limits, unified
from dre.errors import DreError, MissingError, UsageError

PERIOD = 100_000  # microseconds; quota = percent * PERIOD / 100
EVERYBODY = 100  # the weight of a group that nobody weighed
SYS = Path("/sys")
MOUNTS = Path("/proc/self/mountinfo")
_LIMIT, _SWAP_V1 = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
_THROTTLE = ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")


@dataclass(frozen=True)
class Setting:
    """A value for one kernel file. An *optional* file is left out where the kernel has none."""

    controller: str
    file: str
    value: str
    optional: bool = False


def settings(limits: Limits, key: str, v2: bool, device: str | None, root: Path = ROOT) -> list[Setting]:
    """What to write for the limit *key*, lifted or not. *device* is the MAJOR:MINOR that io counts on."""
    return (_v2 if v2 else _v1)(limits, key, device, root)


def _v1(limits: Limits, key: str, device: str | None, root: Path) -> list[Setting]:
    if key == "cpu":
        amount = "-1" if limits.cpu is None else str(quota(limits.cpu))
        return [Setting("cpu", "cpu.cfs_period_us", str(PERIOD)), Setting("cpu", "cpu.cfs_quota_us", amount)]
    if key == "weight":
        return [Setting("cpu", "cpu.shares", str(shares(limits.weight or EVERYBODY)))]
    if key == "cpus":
        return [Setting("cpuset", "cpuset.cpus", limits.cpus or _everywhere(root))]
    if key == "memory":
        # The sum of both is what the kernel limits, so that no limit of one is no limit of the sum.
        both = "-1" if limits.memory is None or limits.swap is None else str(limits.memory + limits.swap)
        return [
            Setting("memory", _LIMIT, "-1" if limits.memory is None else str(limits.memory)),
            Setting("memory", _SWAP_V1, both, optional=not limits.swap),
        ]
    if key == "pids":
        return [Setting("pids", "pids.max", "max" if limits.pids is None else str(limits.pids))]
    if key == "io" and device:
        return [Setting("blkio", name, f"{device} {limits.io or 0}") for name in _THROTTLE]
    return []


def _v2(limits: Limits, key: str, device: str | None, root: Path) -> list[Setting]:
    if key == "cpu":
        return [Setting("cpu", "cpu.max", f"{'max' if limits.cpu is None else quota(limits.cpu)} {PERIOD}")]
    if key == "weight":
        return [Setting("cpu", "cpu.weight", str(limits.weight or EVERYBODY))]
    if key == "cpus":
        return [Setting("cpuset", "cpuset.cpus", limits.cpus or _everywhere(root))]
    if key == "memory":
        swap = "max" if limits.memory is None or limits.swap is None else str(limits.swap)
        return [
            Setting("memory", "memory.max", "max" if limits.memory is None else str(limits.memory)),
            Setting("memory", "memory.swap.max", swap, optional=not limits.swap),
        ]
    if key == "pids":
        return [Setting("pids", "pids.max", "max" if limits.pids is None else str(limits.pids))]
    if key == "io" and device:
        rate = "max" if limits.io is None else str(limits.io)
        return [Setting("io", "io.max", f"{device} rbps={rate} wbps={rate}")]
    return []


def _everywhere(root: Path) -> str:
    """All processors. Version 2 has no list for that, but cannot take one away from a group with processes in it."""
    return (root / ("cpuset.cpus.effective" if unified(root) else "cpuset/cpuset.cpus")).read_text().strip()


GROUP_KEYS = ("memory", "cpu", "weight", "cpus", "pids", "io")  # memory first: the one that is refused most often


def keys(limits: Limits, device: str | None = None, root: Path = ROOT) -> list[tuple[str, str]]:
    """The lines of an LXC configuration, for both versions; LXC ignores the family the host lacks.

    A key whose file is missing would stop the start, so what depends on the kernel's make is left out where it is not.
    """
    lines = []
    for v2 in (False, True):
        for key in GROUP_KEYS:
            # On version 1 a rate of 0, which is none, is always given: newer kernels begin to count i/o with it.
            if getattr(limits, key) is None and (v2 or key != "io"):
                continue
            for item in settings(limits, key, v2, device, root):
                here = v2 == unified(root)
                if (item.optional or key == "io") and not (here and _offered(item, root)):
                    continue
                lines.append((f"lxc.cgroup{'2' if v2 else ''}.{item.file}", item.value))
    return lines


def _offered(item: Setting, root: Path) -> bool:
    """Whether the kernel has the file. On version 2 no file of limits is in the root group."""
    if not unified(root):
        return (root / item.controller / item.file).exists()
    if any(root.glob(f"*/{item.file}")):
        return True
    # Nobody may have asked for i/o yet; LXC will.
    return item.controller == "io" and "io" in _controllers(root) and not any(root.glob("*/io.stat"))


def _controllers(root: Path) -> list[str]:
    return (root / "cgroup.controllers").read_text().split()


def check(limits: Limits, device: str | None, root: Path = ROOT) -> None:
    """Raise UsageError or MissingError where this host cannot do *limits*."""
    if limits.cpus is not None:
        online = cpu_set((SYS / "devices/system/cpu/online").read_text().strip())
        if not cpu_set(limits.cpus) <= online:
            raise UsageError(f"cpus {limits.cpus}: this host has {cpu_text(online)}")
    if limits.swap and limits.memory is None:
        raise UsageError("swap counts beyond a memory limit; give --memory as well")
    v2 = unified(root)
    for key, text in (("memory", "swap, which it does not account"), ("io", "block i/o, for it is built without that")):
        if getattr(limits, key) is None:
            continue
        for item in settings(limits, key, v2, device, root):
            if not item.optional and item.file not in (_LIMIT, "memory.max") and not _offered(item, root):
                raise MissingError(f"this kernel cannot limit {text}: {item.file} is missing")


def read(group: Group, device: str | None) -> Limits:
    """The limits that *group* has in the kernel; what the kernel has no file for is no limit."""
    if group.v2:
        amount, _, period = _told(group, "cpu", "cpu.max").partition(" ")
        weight = _count(_told(group, "cpu", "cpu.weight"))
        memory, swap = (_count(_told(group, "memory", name)) for name in ("memory.max", "memory.swap.max"))
        io = re.search(r" rbps=(\d+)", _of_device(_told(group, "io", "io.max"), device))
    else:
        amount, period = (_told(group, "cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        given = _count(_told(group, "cpu", "cpu.shares"))
        weight = None if given is None else -(-given * EVERYBODY // shares(EVERYBODY))
        memory, both = (_count(_told(group, "memory", name)) for name in (_LIMIT, _SWAP_V1))
        swap = both - memory if both is not None and memory is not None else None
        io = re.search(r" (\d+)", _of_device(_told(group, "blkio", _THROTTLE[0]), device))
    cpus = _told(group, "cpuset", "cpuset.cpus")
    quota = _count(amount)
    return Limits(
        cpu=None if quota is None else quota * 100 / int(period),
        weight=None if weight == EVERYBODY else weight,
        cpus=cpus if cpus and cpus != _everywhere(group.root) else None,
        memory=memory,
        swap=0 if memory is None else swap,
        pids=_count(_told(group, "pids", "pids.max")),
        io=int(io[1]) if io else None,
    )


def _told(group: Group, controller: str, name: str) -> str:
    try:
        return group.read(controller, name)
    except (FileNotFoundError, DreError):
        return ""


def _count(text: str) -> int | None:
    """A limit as a file has it; None when it is no limit."""
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def apply(group: Group, old: Limits, new: Limits, device: str | None) -> Limits:
    """Give *group* the limits that differ from *old*; returns *new* as the kernel has it, which may round memory.

    When one fails, those before it are put back, and DreError is raised.
    """
    changed = [key for key in GROUP_KEYS if _part(old, key) != _part(new, key)]
    if "memory" in changed and new.memory is not None and (used := group.memory()) > new.memory:
        # Version 2 would not refuse: it would kill processes until the rest fits.
        raise DreError(f"memory limit {new.memory} is below the {used} octets in use")
    done: list[Setting] = []
    try:
        for key in changed:
            wanted = settings(new, key, group.v2, device, group.root)
            for item in _ordered(group, wanted) if key == "memory" else wanted:
                before = _before(group, item, device)
                if before is None:
                    continue
                _write(group, item)
                done.append(before)
                new = _taken(group, item, new)
    except BaseException as error:
        stuck = [item for item in reversed(done) if not _put_back(group, item)]
        if stuck:
            left = ", ".join(item.file for item in stuck)
            raise DreError(f"{error}; and what was changed already could not be put back: {left}") from error
        raise
    return new


def _put_back(group: Group, item: Setting) -> bool:
    try:
        _write(group, item)
    except DreError:
        return False
    return True


def _part(limits: Limits, key: str) -> Any:
    return (limits.memory, limits.swap) if key == "memory" else getattr(limits, key)


def _ordered(group: Group, wanted: list[Setting]) -> Iterable[Setting]:
    """Version 1 wants limit <= sum at every moment: what grows is written from the sum down, what shrinks up to it."""
    if group.v2:
        return wanted
    now = int(group.read("memory", _LIMIT))
    aim = int(wanted[0].value)
    return reversed(wanted) if aim < 0 or aim > now else wanted


def _before(group: Group, item: Setting, device: str | None) -> Setting | None:
    """What puts back what *item* is about to change; None when the file is optional and not there."""
    try:
        text = group.read(item.controller, item.file)
    except FileNotFoundError:
        if item.optional:
            return None
        if not group.file(item.controller, "cgroup.procs").exists():
            raise DreError("its processes have ended meanwhile") from None
        raise MissingError(f"this kernel has no {item.file}") from None
    if item.controller in ("blkio", "io"):
        now = _of_device(text, device)
        nothing = f"{device} 0" if item.controller == "blkio" else f"{device} rbps=max wbps=max"
        text = now or nothing
    elif item.controller == "cpuset":
        text = text or _everywhere(group.root)
    return replace(item, value=text)


def _of_device(text: str, device: str | None) -> str:
    return next((line for line in text.splitlines() if line.split()[0] == device), "")


def _write(group: Group, item: Setting) -> None:
    try:
        group.write(item.controller, item.file, item.value)
    except OSError as error:
        if error.errno == errno.EBUSY and item.controller == "memory":
            raise DreError(f"{item.file}: more than {item.value} is in use") from None
        if error.errno == errno.ENODEV and not group.file(item.controller, "cgroup.procs").exists():
            raise DreError("its processes have ended meanwhile") from None
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            raise MissingError(f"the kernel cannot do {item.file} {item.value}: {error.strerror}") from None
        where = group.file(item.controller, item.file)
        raise DreError(f"{where}: cannot write {item.value}: {error.strerror}") from None


def _taken(group: Group, item: Setting, limits: Limits) -> Limits:
    """*limits* after a look at what the kernel made of *item*. Raises DreError when that is something else."""
    text = group.read(item.controller, item.file)
    if item.controller == "memory" and text.isdigit() and item.value.isdigit():
        rounded = int(item.value) - int(text)
        if 0 < rounded < os.sysconf("SC_PAGE_SIZE"):
            return replace(limits, memory=int(text)) if item.file in (_LIMIT, "memory.max") else limits
    if item.controller in ("blkio", "io"):
        number, *rates = item.value.split()
        had = _of_device(text, number).split()
        lost = [rate for rate in rates if rate not in had and (had or rate not in ("0", "rbps=max", "wbps=max"))]
    elif item.controller == "cpuset":
        lost = [item.value] if cpu_set(text) != cpu_set(item.value) else []
    else:
        lost = [] if text == item.value or _unlimited(text, item.value) else [item.value]
    if lost:
        raise DreError(f"{item.file}: the kernel made {text or 'nothing'} of {item.value}")
    return limits


def _unlimited(text: str, value: str) -> bool:
    """Version 1 tells of no limit by a number near 2^63."""
    return value == "-1" and text.isdigit() and int(text) >= 1 << 60


def quota(percent: float) -> int:
    """Microseconds of CPU time per PERIOD; the kernel takes no less than 1000."""
    return max(round(percent * PERIOD / 100), 1000)


def shares(weight: int) -> int:
    """A weight as version 1 has it, where everybody's is 1024."""
    return weight * 1024 // EVERYBODY


def cpu_set(text: str) -> set[int]:
    """The processors of a list such as `0-2,5`. Raises UsageError."""
    found: set[int] = set()
    for word in text.split(",") if text else ():
        first, dash, last = word.partition("-")
        if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in (first, last if dash else first)):
            raise UsageError(f"{text!r} is not a list of processors such as 0-1,3")
        span = range(int(first), int(last if dash else first) + 1)
        if not span:
            raise UsageError(f"{text!r}: {word} ends before it begins")
        found.update(span)
    return found


def cpu_text(cpus: Iterable[int]) -> str:
    """The list of *cpus* as the kernel writes it."""
    words: list[list[int]] = []
    for cpu in sorted(cpus):
        if words and words[-1][1] == cpu - 1:
            words[-1][1] = cpu
        else:
            words.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in words)


def device(place: Path) -> str:
    """MAJOR:MINOR of the disk, not the partition, that holds *place*. Raises MissingError when no block device does."""
    status = place.stat().st_dev
    number = f"{os.major(status)}:{os.minor(status)}"
    if not (SYS / "dev/block" / number).exists():
        # Btrfs has a number of its own for each subvolume; what it was mounted from is a block device all the same.
        number = _source(place)
    link = SYS / "dev/block" / number
    if not number or not link.exists():
        raise MissingError(f"{place}: its file system lies on no block device, so there is no rate to limit")
    if (link / "partition").exists():
        number = (Path(os.path.realpath(link)).parent / "dev").read_text().strip()
    return number


def device_for(limits: Limits, place: Path) -> str | None:
    """The device that *limits* count on; None where there is none and none is needed."""
    try:
        return device(place)
    except MissingError:
        if limits.io is not None:
            raise
        return None


def _source(place: Path) -> str:
    """The number of the block device that the file system of *place* was mounted from, or nothing."""
    here = os.path.realpath(place)
    nearest, source = "", ""
    for line in MOUNTS.read_text().splitlines():
        words = line.split()
        point = words[4]
        above = here == point or here.startswith(point.rstrip("/") + "/")
        if above and len(point) >= len(nearest):
            nearest, source = point, words[words.index("-") + 2]
    if not source.startswith("/dev/") or not Path(source).exists():
        return ""
    status = Path(source).stat().st_rdev
    return f"{os.major(status)}:{os.minor(status)}"
