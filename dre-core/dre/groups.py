# SPDX-License-Identifier: Apache-2.0
"""Groups of processes without a container: control groups of our own, below `dre` in each hierarchy.

The kernel is the only place where a group and its limits are kept, so a reboot ends them all. They lie at the top, as
LXC's do, and not inside a unit of systemd's, which would end them with it; systemd leaves alone what it did not make,
and cannot take controllers away that are in use below. Apps are not dre.groups' business.
"""

import contextlib
import errno
import json
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import cgroup, event, files, limits, relimit, units
from dre.cgroup import ROOT, Group, HeldGroup, Limits, Usage
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, NotPermittedError
from dre.stat import Sample

PARENT = "dre"
# The last is made last and removed first: with it a group is there, without it it is not.
HIERARCHIES = ("cpu", "cpuacct", "memory", "freezer", "blkio", "cpuset", "pids")
CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
SYSTEMD = Path("/run/systemd/system")
KILL_WAIT = 10.0  # seconds from SIGKILL to the end; only the kernel can need them
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of include/linux/sched.h


@dataclass(frozen=True)
class ProcessGroup:
    """The group *name*, which may or may not exist; the lock is the caller's business."""

    conf: Conf
    name: str

    def exists(self) -> bool:
        """Whether it was made, wholly."""
        return (_tops()[-1] / PARENT / self.name).is_dir()

    def need(self) -> "ProcessGroup":
        """Itself. Raises NotFoundError when there is no such group."""
        if not self.exists():
            raise NotFoundError(f"{self.name}: no such group")
        return self

    def group(self) -> Group:
        """Its control groups."""
        return Group(_membership(self.name))

    def device(self, wanted: Limits) -> str | None:
        """The disk that its i/o is limited on: the one that holds the apps."""
        return limits.device_for(wanted, self.conf.app_lxc_path)

    def limits(self) -> Limits:
        """What the kernel has."""
        return limits.read(self.group(), self.device(Limits()))

    def processes(self) -> list[int]:
        """The processes in it, those of groups inside included."""
        return sorted(self.group().pids())

    @property
    def intent_file(self) -> Path:
        """What a verb has begun and not ended; in /run, because a reboot ends the group."""
        return self.conf.core_run_dir / "group" / f"{self.name}.json"

    def begin(self, **intent: Any) -> None:
        """Note what is about to be done."""
        self.intent_file.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(self.intent_file, json.dumps(intent) + "\n", 0o600)

    def emit(self, what: str, **data: Any) -> None:
        """Tell the monitor that the group has changed."""
        event.emit(self.conf, f"app.group.{what}", f"{event.host()}/group:{self.name}", {"name": self.name, **data})


def names() -> list[str]:
    """All groups, in order."""
    try:
        entries = os.scandir(_tops()[-1] / PARENT)
    except FileNotFoundError:
        return []
    return sorted(entry.name for entry in entries if entry.is_dir() and units.is_name(entry.name))


def _membership(name: str) -> str:
    """What /proc/PID/cgroup says of a process in group *name*."""
    return "".join(f"0:{key}:/{PARENT}/{name}\n" for key in _keys())


def _keys() -> list[str]:
    """The controllers whose hierarchies groups use; the empty one is version 2."""
    return [""] if cgroup.unified() else [*_version_2(), *_hierarchies()]


@contextlib.contextmanager
def held(conf: Conf, name: str) -> Iterator[ProcessGroup]:
    """The group *name*, locked against all that changes groups, with nothing unfinished."""
    with files.lock(conf.core_run_dir / "lock" / "groups"):
        found = ProcessGroup(conf, name)
        _settle(found)
        yield found


def _settle(group: ProcessGroup) -> None:
    """End what a killed verb left: a move or a removal is done, limits are put back, a half-made group goes."""
    files.remove_halves(group.intent_file)
    try:
        intent = json.loads(group.intent_file.read_text())
    except (FileNotFoundError, ValueError):
        return
    verb = intent["verb"]
    if verb == "create":
        _remove(group)
    elif group.exists() and verb == "add":
        for pid, began in intent["pids"]:
            if apps.started(pid) == began:
                with contextlib.suppress(DreError):  # ended just now
                    _move(pid, group.group())
    elif verb == "delete":
        _end(group)
    elif group.exists():
        old = Limits(**intent["old"])
        with contextlib.suppress(DreError):  # more is in use by now than was allowed then
            limits.apply(group.group(), Limits(**intent["new"]), old, group.device(old))
    group.intent_file.unlink(missing_ok=True)


def create(group: ProcessGroup, wanted: Limits) -> None:
    """Make the group, empty."""
    if group.exists():
        raise DreError(f"{group.name}: there is such a group already")
    check(group, wanted)
    _remove(group)  # what a killed delete left
    group.begin(verb="create")
    try:
        for top in _tops():
            _open(top)
            (top / PARENT / group.name).mkdir()
            _inherit(top / PARENT, top / PARENT / group.name)
        limits.apply(group.group(), Limits(), wanted, group.device(wanted))
    except BaseException:
        _remove(group)
        raise
    finally:
        group.intent_file.unlink(missing_ok=True)
    group.emit("created", **asdict(wanted))


def check(group: ProcessGroup, wanted: Limits) -> None:
    """Raise UsageError or MissingError where this host cannot do *wanted*."""
    try:
        limits.check(wanted, group.device(wanted))
    except DreError as error:
        raise type(error)(f"{group.name}: {error}") from None


def limit(group: ProcessGroup, changes: dict[str, Any]) -> Limits:
    """Set limits; returns them all, as the kernel has them. Raises DreError with nothing changed."""
    old = group.need().limits()
    new = relimit.merged(old, changes)
    check(group, new)
    group.begin(verb="limit", old=asdict(old), new=asdict(new))
    try:
        new = limits.apply(group.group(), old, new, group.device(new))
    except DreError as error:
        raise type(error)(f"{group.name}: {error}") from None
    finally:
        group.intent_file.unlink(missing_ok=True)
    group.emit("limited", **asdict(new))
    return new


def add(group: ProcessGroup, pids: Sequence[int]) -> None:
    """Move processes, with all their threads, into the group: all of them, or none."""
    target = group.need().group()
    came = [(pid, _movable(pid)) for pid in dict.fromkeys(pids)]
    moved: list[tuple[int, Group]] = []
    group.begin(verb="add", pids=[(pid, apps.started(pid)) for pid, _ in came])
    try:
        for pid, origin in came:
            moved.append((pid, origin))
            _move(pid, target)
    except DreError:
        for pid, origin in moved:
            with contextlib.suppress(DreError):  # it has ended, or its old group has
                _move(pid, origin)
        raise
    finally:
        group.intent_file.unlink(missing_ok=True)
    group.emit("joined", pids=[pid for pid, _ in came])


def _movable(pid: int) -> Group:
    """Where process *pid* is now. Raises DreError when it must not be moved."""
    try:
        membership = Path(f"/proc/{pid}/cgroup").read_text()
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"no process {pid}") from None
    if pid == 1:
        raise NotPermittedError("process 1 is the host's init and stays where it is")
    if flags & _KERNEL_THREAD:
        raise NotPermittedError(f"process {pid} is a thread of the kernel")
    for line in membership.splitlines():
        of = line.partition("/lxc.payload.")[2] or line.partition("/lxc.monitor.")[2]
        if of:
            raise NotPermittedError(f"process {pid} belongs to {of.partition('/')[0]}, a container; limit that")
    return Group(membership)


def _move(pid: int, target: Group) -> None:
    """Move process *pid* in the hierarchies that groups use; systemd's own is none of them."""
    for path in [target.paths[key] for key in _keys() if key in target.paths]:
        try:
            fd = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(pid).encode())
            finally:
                os.close(fd)
        except ProcessLookupError:
            raise NotFoundError(f"no process {pid}") from None
        except OSError as error:
            raise DreError(f"process {pid} cannot be moved to {path}: {error.strerror}") from None


def delete(group: ProcessGroup, force: bool) -> None:
    """Remove the empty group; with *force* kill first what is in it."""
    inside = group.need().processes()
    if inside and not force:
        shown = ", ".join(map(str, inside[:5])) + (", ..." if len(inside) > 5 else "")
        raise DreError(f"{group.name}: holds {len(inside)} processes ({shown}); --force kills them")
    if os.getpid() in inside:
        raise DreError(f"{group.name}: this command is in it itself; call it from outside")
    group.begin(verb="delete")
    try:
        _end(group)
    finally:
        group.intent_file.unlink(missing_ok=True)


def _end(group: ProcessGroup) -> None:
    deadline = time.monotonic() + KILL_WAIT
    while group.exists() and group.processes():  # it ceased to exist where a kill left only other hierarchies
        _kill(group, deadline)
        if time.monotonic() > deadline:
            raise DreError(f"{group.name}: processes do not end {KILL_WAIT:g} s after they were killed")
    _remove(group)
    if group.exists():
        raise DreError(f"{group.name}: somebody has put a process into it just now")
    group.emit("deleted")


def _kill(group: ProcessGroup, deadline: float) -> None:
    """Kill every process of the group, held first so that none is born meanwhile, and wait for their ends."""
    own = group.group()
    controller, freezer, hold, thaw = ("", "cgroup.freeze", "1", "0") if own.v2 else _FREEZER_V1
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, DreError):
            own.write(controller, freezer, hold)
        watched = []
        for pid in group.processes():
            with contextlib.suppress(ProcessLookupError):
                watched.append(os.pidfd_open(pid))
                stack.callback(os.close, watched[-1])
                signal.pidfd_send_signal(watched[-1], signal.SIGKILL)
        with contextlib.suppress(OSError, DreError):
            own.write(controller, freezer, thaw)
        for fd in watched:
            select.select([fd], [], [], max(deadline - time.monotonic(), 0))


_FREEZER_V1 = ("freezer", "freezer.state", "FROZEN", "THAWED")


def _remove(group: ProcessGroup) -> None:
    """Remove its directories, and `dre` with the last group; those with a process in them stay."""
    for top in reversed(_tops()):
        cgroup.remove(top / PARENT / group.name)
        if group.exists():
            return
    for top in _tops():
        with contextlib.suppress(OSError):
            (top / PARENT).rmdir()


def _tops() -> list[Path]:
    """The hierarchies that groups use, the one that decides last. Raises DreError where there is none."""
    if cgroup.unified():
        return [ROOT]
    found = [ROOT / name for name in [*_version_2("unified"), *_hierarchies()]]
    # Two names may be one hierarchy: cpu and cpuacct are links to cpu,cpuacct on many hosts.
    return list(dict.fromkeys(Path(os.path.realpath(path)) for path in found))


def _hierarchies() -> list[str]:
    found = [name for name in HIERARCHIES if (ROOT / name).is_dir()]
    if not found:
        raise DreError(f"no control groups are mounted at {ROOT}")
    return found


def _version_2(name: str = "") -> list[str]:
    """Version 2 of a hybrid host, for its pressure; where systemd is, that hierarchy is how it finds its services."""
    return [name] if (ROOT / "unified/cgroup.procs").exists() and not SYSTEMD.exists() else []


def _open(top: Path) -> None:
    """Make `dre` in hierarchy *top* and let groups have controllers there."""
    parent = top / PARENT
    if not parent.exists():
        parent.mkdir()
        _inherit(top, parent)
    if not cgroup.unified():
        return
    for directory in (top, parent):
        offered = (directory / "cgroup.controllers").read_text().split()
        taken = (directory / "cgroup.subtree_control").read_text().split()
        for controller in CONTROLLERS:
            if controller in offered and controller not in taken:
                (directory / "cgroup.subtree_control").write_text(f"+{controller}")


def _inherit(parent: Path, child: Path) -> None:
    """A cpuset of version 1 begins without processors and memory, and takes no process before it has both."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not cgroup.unified() and (child / name).exists():
            (child / name).write_text((parent / name).read_text())


class Watch:
    """The groups *wanted*, or whatever groups there are, looked at again and again."""

    def __init__(self, wanted: Sequence[str] = ()) -> None:
        self.wanted = wanted
        self._held: dict[str, tuple[HeldGroup, Sample | None]] = {}

    def look(self) -> list[dict[str, Any]]:
        """A row for each group, in the order of their names."""
        rows = []
        for name in self.wanted or names():
            try:
                rows.append(self._row(name))
            except OSError as error:
                if error.errno not in (errno.ENODEV, errno.ENOENT):
                    raise
                held = self._held.pop(name, None)  # deleted meanwhile
                if held:
                    held[0].close()
        return rows

    def _row(self, name: str) -> dict[str, Any]:
        group, before = self._held.get(name) or (HeldGroup(_membership(name)), None)
        sample = Sample(time.monotonic(), group.usage(), group.strain(), None)
        self._held[name] = group, sample
        rates = sample.rates(before)
        del rates["net_rx"], rates["net_tx"]
        return {
            "name": name,
            "cpu": rates.pop("cpu"),
            **shown(sample.used),
            **rates,
            "oom_kills": sample.strain.oom_kills,
            "pressure": group.pressure(),
        }


def shown(used: Usage) -> dict[str, Any]:
    """The fields of use that every row of a group has."""
    return {key: getattr(used, key) for key in ("memory", "memory_limit", "cpu_limit", "pids", "pids_limit")}


def rows() -> list[dict[str, Any]]:
    """What `cgroup list` gives."""
    found = []
    for name in names():
        with contextlib.suppress(OSError):  # deleted meanwhile
            group = Group(_membership(name))
            found.append({"name": name, **shown(group.usage()), "processes": sorted(group.pids())})
    return found
