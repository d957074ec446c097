# SPDX-License-Identifier: Apache-2.0
"""One look at what a monitor names. Each monitor has a sampler of its own, which may remember the look before.

A look blocks: it is made in a thread. It returns a Sample, or None where it takes two looks to know; NoDataError says
why nothing can be known. Web servers are another matter: see probe.py.
"""

import collections
import contextlib
import importlib
import os
import pwd
import re
import selectors
import signal
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dre import app, timekeeping
from dre.cgroup import Usage
from dre.conf import Conf
from dre.errors import DreError

from monitorlib.crossing import Monitor, Sample

Look = Callable[[], "Sample | None"]
PATIENCE = 10.0  # seconds for an answer of a database, a status page or a program
_OUTPUT = 4096  # octets of a program's output that are read
_MINUTE = 60.0
_NUMBER = re.compile(rb"\s*([-+]?[0-9]{1,15}(?:\.[0-9]{1,9})?)(?=[\s%]|$)")
_ACCESSES = re.compile(rb"^Total Accesses: ([0-9]+)\r?$", re.MULTILINE)
_MEMORY = re.compile(r"^(MemTotal|MemAvailable): +([0-9]+) kB$", re.MULTILINE)


class NoDataError(Exception):
    """Nothing can be known just now; the message says why."""


def make(conf: Conf, monitor: Monitor) -> Look:
    """The sampler of *monitor*."""
    if monitor.system and monitor.watch == "liveness":
        return SystemLives(conf, monitor)
    return _KINDS[monitor.watch](conf, monitor)


def slow(monitor: Monitor) -> bool:
    """Whether a look may take long, so that it must not hold up those that do not."""
    return monitor.system is not None or monitor.watch in ("apache", "mysql", "command")


class OfApp:
    """Processor, memory and liveness of an app."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        self._conf, self._monitor = conf, monitor
        self._before: tuple[float, Usage] | None = None
        self.doubt = ""  # why nothing is known of it, which counts as not running

    def __call__(self) -> Sample | None:
        try:
            used: Usage | None = app.usage(self._conf, self._monitor.of or "")
            self.doubt = ""
        except (DreError, OSError, ValueError) as error:
            used, self.doubt = None, str(error)  # no such app, or one half made: it does not run
        now = time.monotonic()
        sample = measure(self._monitor, self._before, now, used)
        self._before = (now, used) if used else None
        return sample


def measure(
    monitor: Monitor,
    before: tuple[float, Usage] | None,
    now: float,
    used: Usage | None,
    cores: int = os.cpu_count() or 1,
) -> Sample | None:
    """The sample of an app monitor, or None when this look says nothing (the first for cpu)."""
    running = used is not None and used.running
    if monitor.watch == "liveness":
        return Sample(0.0) if running else Sample(1.0, "not running")
    if used is None or not running:
        return Sample(0.0)  # what does not run uses nothing
    if monitor.watch == "memory":
        return Sample(100.0 * used.memory / (used.memory_limit or host_memory()))
    if before is None or not before[1].running or used.cpu_ns < before[1].cpu_ns or now <= before[0]:
        return None
    percent = (used.cpu_ns - before[1].cpu_ns) / (now - before[0]) / 1e7
    return Sample(100.0 * percent / (used.cpu_limit or 100.0 * cores))


def host_memory() -> int:
    """Octets of memory of this host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class SystemLives:
    """Whether a system runs and does something: its guest's agent answers, or, without one, its processors advance."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        self._conf, self._name = conf, monitor.system or ""
        self._answered = False
        self._worked: int | None = None

    def __call__(self) -> Sample | None:
        from dre.system.agent import Agent  # only where systems are watched
        from dre.system.model import System

        try:
            system = System(self._conf, self._name)
            domain = system.find()
            if domain is None or system.state() != "running":
                self._answered, self._worked = False, None
                return Sample(1.0, "not running")
            if Agent(self._name, domain).answers():
                self._answered = True
                return Sample(0.0)
            if self._answered:
                return Sample(1.0, "its agent does not answer any more")
            return self._progress(domain)
        except DreError as error:
            raise NoDataError(str(error)) from None

    def _progress(self, domain: Any) -> Sample | None:
        """Of a guest without an agent: even an idle kernel's processors run from time to time."""
        import libvirt

        try:
            told = domain.connect().domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_VCPU)[0][1]
        except libvirt.libvirtError as error:
            raise NoDataError(str(error)) from None
        worked = sum(value for key, value in told.items() if re.fullmatch(r"vcpu\.[0-9]+\.time", key))
        before, self._worked = self._worked, worked
        if before is None:
            return None
        return Sample(0.0) if worked != before else Sample(1.0, "its processors stand still")


class HostCpu:
    """Percent of all processors of this host: proc_stat(5)."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        self._before: tuple[int, int] | None = None

    def __call__(self) -> Sample | None:
        with open("/proc/stat", encoding="ascii") as stream:
            numbers = [int(word) for word in stream.readline().split()[1:9]]  # guest time is in user time already
        total, idle = sum(numbers), numbers[3] + numbers[4]
        before, self._before = self._before, (total, idle)
        if before is None or total <= before[0]:
            return None
        return Sample(100.0 * (1 - max(0, idle - before[1]) / (total - before[0])))


class HostMemory:
    """Percent of this host's memory that a program could not have: proc_meminfo(5), MemAvailable."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        pass

    def __call__(self) -> Sample:
        found = {key: int(value) for key, value in _MEMORY.findall(Path("/proc/meminfo").read_text())}
        return Sample(100.0 * (1 - found["MemAvailable"] / found["MemTotal"]))


class Disk:
    """Percent of a file system that is used, as df(1) tells it for others than root; of its inodes, if that is more."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        self._path = monitor.path or "/"

    def __call__(self) -> Sample:
        try:
            found = os.statvfs(self._path)
        except OSError as error:
            raise NoDataError(f"{self._path}: {error.strerror}") from None
        blocks, inodes = found.f_blocks - found.f_bfree, found.f_files - found.f_ffree
        return Sample(max(_percent(blocks, blocks + found.f_bavail), _percent(inodes, inodes + found.f_favail)))


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


class Clock:
    """Seconds that the clock may be off, as who sets it tells the kernel: adjtimex(2), the estimated error."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        pass

    def __call__(self) -> Sample:
        try:
            told = timekeeping.told()
        except OSError as error:
            raise NoDataError(str(error.strerror)) from None
        return Sample(told.estimate, "" if told.kept else "nobody sets it")


class Apache:
    """Accesses of the last minute, of the counter on an Apache's status page (mod_status, `?auto`)."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        self._url = monitor.url or ""
        self._counts: collections.deque[tuple[float, int]] = collections.deque()
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __call__(self) -> Sample | None:
        try:
            with self._open(self._url, timeout=PATIENCE) as answer:
                found = _ACCESSES.search(answer.read(65536))
        except (OSError, ValueError) as error:
            raise NoDataError(f"{self._url}: {getattr(error, 'reason', None) or error}") from None
        if not found:
            raise NoDataError(f"{self._url}: tells no Total Accesses; it wants mod_status, ExtendedStatus On and ?auto")
        return self.counted(time.monotonic(), int(found[1]))

    def counted(self, now: float, count: int) -> Sample | None:
        """The sample after *count* accesses at *now*."""
        if self._counts and count < self._counts[-1][1]:
            self._counts.clear()  # it was started anew
        self._counts.append((now, count))
        while len(self._counts) > 2 and now - self._counts[1][0] >= _MINUTE:
            self._counts.popleft()
        began, first = self._counts[0]
        return Sample((count - first) * _MINUTE / (now - began)) if now > began else None


class Mysql:
    """Seconds until a MySQL or MariaDB server has taken a connection and answered `SELECT 1`."""

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        self._file = monitor.file or ""

    def __call__(self) -> Sample:
        try:
            pymysql = importlib.import_module("pymysql")  # only where a server is watched
        except ImportError:
            raise NoDataError("python3-pymysql is not installed; apt-get install python3-pymysql") from None
        if not os.access(self._file, os.R_OK):
            raise NoDataError(f"{self._file}: cannot be read")  # else it would be as if there were nothing in it
        begun, bad = time.monotonic(), ""
        patience = int(PATIENCE)
        try:
            with (
                contextlib.closing(
                    pymysql.connect(
                        read_default_file=self._file,
                        connect_timeout=patience,
                        read_timeout=patience,
                        write_timeout=patience,
                    )
                ) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("SELECT 1")
                cursor.fetchall()
        except (pymysql.Error, OSError) as error:
            bad = str(error.args[-1] if error.args else error)[:80]
        return Sample(time.monotonic() - begun, bad)


class Command:
    """The number that a program's output begins with; a status other than 0 is over the limit, whatever the number.

    A program of this host is an executable in actions.d, run as nobody; one in a system is run there by its agent.
    """

    def __init__(self, conf: Conf, monitor: Monitor) -> None:
        self._conf, self._argv, self._system = conf, monitor.argv, monitor.system

    def __call__(self) -> Sample:
        status, said = self._in_guest() if self._system else _run(_program(self._conf, self._argv[0]), self._argv[1:])
        found = _NUMBER.match(said)
        line = said.strip().partition(b"\n")[0].decode("ascii", "backslashreplace")[:80]
        return Sample(float(found[1]) if found else 0.0, f"status {status}: {line}".rstrip(": ") if status else "")

    def _in_guest(self) -> tuple[int, bytes]:
        from dre.system.agent import Agent
        from dre.system.model import System

        try:
            system = System(self._conf, self._system or "")
            domain = system.find()
            if domain is None or system.state() != "running":
                raise NoDataError(f"{self._system}: not running")
            ended = Agent(system.name, domain).run(self._argv, timeout=PATIENCE)
        except DreError as error:
            raise NoDataError(str(error)) from None
        return ended.status, ended.stdout[:_OUTPUT]


def _program(conf: Conf, name: str) -> Path:
    """The executable *name* in actions.d, which nobody but root may have written."""
    path = conf.core_etc_dir / "actions.d" / name
    try:
        found = path.stat()
    except OSError as error:
        raise NoDataError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
        raise NoDataError(f"{path}: not an executable file")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise NoDataError(f"{path}: somebody else than root may write it")
    return path


def _run(program: Path, arguments: tuple[str, ...]) -> tuple[int, bytes]:
    """Status and first output of a program, which is killed with all it started when it takes too long."""
    user = group = others = None
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user, group, others = nobody.pw_uid, nobody.pw_gid, list[int]()
    try:
        child = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=others,
        )
    except OSError as error:
        raise NoDataError(f"{program}: {error.strerror}") from None
    assert child.stdout is not None
    said, deadline = b"", time.monotonic() + PATIENCE
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while left := deadline - time.monotonic():
                if left < 0 or not selector.select(left):
                    return 124, said  # as timeout(1) has it
                block = os.read(child.stdout.fileno(), 65536)
                if not block:
                    break
                said = (said + block)[:_OUTPUT]
        return child.wait(max(0.1, deadline - time.monotonic())), said
    except subprocess.TimeoutExpired:
        return 124, said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()


_KINDS: dict[str, Callable[[Conf, Monitor], Look]] = {
    "cpu": OfApp,
    "memory": OfApp,
    "liveness": OfApp,
    "host-cpu": HostCpu,
    "host-memory": HostMemory,
    "disk": Disk,
    "clock": Clock,
    "apache": Apache,
    "mysql": Mysql,
    "command": Command,
}
