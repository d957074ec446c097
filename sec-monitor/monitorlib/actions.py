# SPDX-License-Identifier: Apache-2.0
"""Run the programs that rules ask for: bounded in number, time and output, with no privilege, never by a shell.

A request is one line from a FIFO, its fields separated by tabs: how many words follow, the words, the event line. The
first word is the name of a program, the others its arguments, each behind a sign: `=` it stood so in the rule, `?` and
`+` something of an event is in it, at its begin or later. The rule alone says how many words there are; what an event
holds can neither add one nor make one that is more than letters, digits and a few signs. See rulecheck, which writes
requests into rules.
"""

import contextlib
import fcntl
import os
import pwd
import re
import resource
import selectors
import signal
import stat
import struct
import subprocess
import termios
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dre import event, run
from dre.conf import Conf
from dre.errors import DreError

from monitorlib.tally import Tally

FIFO = "actions"  # in the run directory; rules know it as the FIFO of that name
SECONDS = 10.0  # until a program is killed
OUTPUT = 64 * 1024  # octets that a program may say; then it is killed
TOLD = 200  # characters of them that an event tells
RUNNING = 8  # programs at once,
EACH = 4  # and of one name; so one that hangs leaves room for others
WAITING = 256  # requests of one name that may wait
LAST = 2.0  # seconds that what is running gets when we are to end
LOOP = "monitor.action."  # events of ours, which lead to no action
_ROOM = 2 * event.LIMIT
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PLAIN = re.compile(r"[ -~]{1,256}")
_WORDS = {
    "=": _PLAIN,
    "+": re.compile(r"[A-Za-z0-9_.:@/+=,-]{1,256}"),
    "?": re.compile(r"[\w.:@/+=,][\w.:@/+=,-]{0,255}", re.ASCII),
}
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class RefusedError(ValueError):
    """A request that is not carried out, and why."""


@dataclass(frozen=True)
class Request:
    """A program of actions.d, its arguments, and the event that it is told in its environment."""

    name: str
    arguments: tuple[str, ...]
    about: event.Event


def parse(line: bytes) -> Request:
    """The request of one *line*. Raises RefusedError."""
    count, *fields = line.split(b"\t")
    if not re.fullmatch(rb"[1-9][0-9]?", count) or len(fields) != int(count) + 1:
        raise RefusedError("not a request, or something of an event would be one more argument")
    try:
        about = event.parse(fields.pop())
    except event.EventError as error:
        raise RefusedError(f"without an event: {error}") from None
    words = [_word(octets.decode("ascii", "backslashreplace")) for octets in fields]
    if not _NAME.fullmatch(words[0]) or fields[0][:1] != b"=":
        raise RefusedError(f"{words[0]!r} is not the name of a program")
    if about.type.startswith(LOOP):
        raise RefusedError(f"{words[0]}: an event {about.type} leads to no action")
    return Request(words[0], tuple(words[1:]), about)


def _word(text: str) -> str:
    form = _WORDS.get(text[:1])
    if form is None or not form.fullmatch(text[1:]):
        raise RefusedError(f"argument {text[1:60]!r} is not a word")
    return text[1:]


def environment(about: event.Event) -> dict[str, str]:
    """What a program is told of the event: DRE_EVENT_TIME and so on, and DRE_EVENT_DATA_<KEY> for each of its data."""
    claimed = "yes" if about.optional.get("claimed") else "no"
    return {**_ENVIRONMENT, **event.environment(about), "DRE_EVENT_CLAIMED": claimed}


def program(directory: Path, name: str) -> Path:
    """The executable *name* in *directory*, which nobody but root may have written. Raises RefusedError."""
    try:
        place = directory.resolve(strict=True)
        path = (place / name).resolve(strict=True)
        found = [place.stat(), path.stat()]
    except (OSError, RuntimeError) as error:
        raise RefusedError(f"{directory / name}: {getattr(error, 'strerror', None) or error}") from None
    if path.parent != place:
        raise RefusedError(f"{directory / name}: leads out of {directory}")
    if not stat.S_ISREG(found[1].st_mode) or not found[1].st_mode & 0o111:
        raise RefusedError(f"{directory / name}: not an executable file")
    if any(one.st_uid not in (0, os.geteuid()) or one.st_mode & 0o022 for one in found):
        raise RefusedError(f"{directory / name}: somebody else than root may write it")
    return path


@dataclass
class _Running:
    request: Request
    process: subprocess.Popen[bytes]
    pidfd: int
    deadline: float
    said: bytes = b""
    why: str = ""  # it was killed


@dataclass
class Counts:
    """What became of requests; each ends as one of the last five, or waits."""

    taken: int = 0
    done: int = 0
    failed: int = 0
    refused: int = 0
    dropped: int = 0
    lost: int = 0  # were waiting or running when a runner before us was killed

    @property
    def left(self) -> int:
        """Requests that wait or run."""
        return self.taken - self.done - self.failed - self.refused - self.dropped - self.lost


@dataclass
class Runner:
    """Reads requests from the descriptor *source*, which never ends, and carries them out until it is told to stop."""

    conf: Conf
    source: int
    tally: Tally
    say: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)
    _half: bytes = b""
    _waiting: deque[Request] = field(default_factory=deque)
    _running: dict[int, _Running] = field(default_factory=dict)
    _troubles: Counter[tuple[str, str]] = field(default_factory=Counter)
    _stop: bool = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        before = self.tally.read()
        self.counts = Counts(**{key: int(before.get(key, 0)) for key in vars(Counts())})
        if lost := self.counts.left:
            self.counts.lost += lost
            self._emit("monitor.dropped", 4, {"count": lost, "where": FIFO, "reason": "the runner was killed"})
        self._note()
        os.set_blocking(self.source, False)
        with selectors.DefaultSelector() as self._selector:
            waker, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            signal.set_wakeup_fd(wakes)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: setattr(self, "_stop", True))
            self._selector.register(waker, selectors.EVENT_READ, lambda: os.read(waker, 64))
            self._selector.register(self.source, selectors.EVENT_READ, self._read)
            due = 0.0
            while not self._stop:
                self._step(min(due, *self._deadlines()))
                if time.monotonic() >= due:
                    self._tell()
                    due = time.monotonic() + 1.0
            last = time.monotonic() + LAST
            while (self._running or self._waiting) and time.monotonic() < last:
                self._step(min(last, *self._deadlines()))
            self._give_up()
        self._tell()
        self._note()

    def _step(self, until: float) -> None:
        for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
            key.data()
        now = time.monotonic()
        for one in self._running.values():
            if now >= one.deadline and not one.why:
                self._kill(one, f"took longer than {SECONDS:g} s")
        self._begin()
        self._note()

    def _deadlines(self) -> list[float]:
        return [one.deadline for one in self._running.values() if not one.why] or [float("inf")]

    # --- Requests ---

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            if _unread(self.source) > fcntl.fcntl(self.source, fcntl.F_GETPIPE_SZ) - _ROOM:
                self._trouble(FIFO, "the FIFO was full: sec may have lost requests")
        try:
            octets = self._half + os.read(self.source, 65536)
        except BlockingIOError:
            return
        *lines, self._half = octets.split(b"\n")
        if len(self._half) > _ROOM:  # no request is so long
            lines.append(self._half[:100])
            self._half = b""
        for line in lines:
            self.counts.taken += 1
            try:
                request = parse(line)
                program(self.conf.core_etc_dir / "actions.d", request.name)
            except RefusedError as error:
                self.counts.refused += 1
                self._trouble("refused", str(error))
                continue
            if sum(one.name == request.name for one in self._waiting) >= WAITING:
                self.counts.dropped += 1
                self._trouble("dropped", f"{request.name}: more than {WAITING} wait")
                continue
            self._waiting.append(request)

    def _begin(self) -> None:
        """Start what may be started, in order but for those of whose name enough run."""
        named = Counter(one.request.name for one in self._running.values())
        kept: deque[Request] = deque()
        while self._waiting and len(self._running) < RUNNING:
            request = self._waiting.popleft()
            if named[request.name] >= EACH:
                kept.append(request)
                continue
            named[request.name] += 1
            self._start(request)
        self._waiting.extendleft(reversed(kept))

    def _start(self, request: Request) -> None:
        user = group = others = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user, group, others = nobody.pw_uid, nobody.pw_gid, list[int]()
        parent = os.getpid()

        def confine() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # the monitor runs before ordinary work; this is some
            run.die_with(parent)

        try:
            path = program(self.conf.core_etc_dir / "actions.d", request.name)
            process = subprocess.Popen(
                [path, *request.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment(request.about),
                cwd="/",
                start_new_session=True,
                preexec_fn=confine,
                user=user,
                group=group,
                extra_groups=others,
            )
        except (RefusedError, OSError, subprocess.SubprocessError) as error:
            self._ended(request, 126, str(error), b"")
            return
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        one = _Running(request, process, os.pidfd_open(process.pid), time.monotonic() + SECONDS)
        self._running[process.pid] = one
        self._selector.register(process.stdout, selectors.EVENT_READ, lambda: self._listen(one))
        self._selector.register(one.pidfd, selectors.EVENT_READ, lambda: self._gone(one))

    # --- Programs ---

    def _listen(self, one: _Running) -> None:
        assert one.process.stdout is not None
        try:
            block = os.read(one.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        one.said += block
        if not block or len(one.said) > OUTPUT:
            self._selector.unregister(one.process.stdout)
        if len(one.said) > OUTPUT:
            self._kill(one, f"said more than {OUTPUT} octets")

    def _kill(self, one: _Running, why: str) -> None:
        """Kill a program and what it has started in its process group."""
        one.why = one.why or why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)

    def _gone(self, one: _Running) -> None:
        """A program has ended: what it left in its process group ends, too."""
        assert one.process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)  # before it is waited for: its number is still its own
        status = one.process.wait()
        self._selector.unregister(one.pidfd)
        os.close(one.pidfd)
        if one.process.stdout in self._selector.get_map():
            self._listen(one)
        if one.process.stdout in self._selector.get_map():
            self._selector.unregister(one.process.stdout)
        one.process.stdout.close()
        del self._running[one.process.pid]
        self._ended(one.request, status, one.why, one.said)

    def _ended(self, request: Request, status: int, why: str, said: bytes) -> None:
        failed = bool(status or why)
        self.counts.failed += failed
        self.counts.done += not failed
        line = said.strip().partition(b"\n")[0].decode("ascii", "backslashreplace")[:TOLD]
        data = {
            "action": request.name,
            "event": request.about.optional.get("id", ""),
            "status": status,
            **({"reason": why} if why else {}),
            **({"output": line} if line else {}),
        }
        self._emit(LOOP + ("failed" if failed else "done"), 3 if failed else 6, data)

    def _give_up(self) -> None:
        """Kill what runs, and count what waits as dropped."""
        for one in list(self._running.values()):
            self._kill(one, "the monitor was stopped")
            self._gone(one)
        if self._waiting:
            self.counts.dropped += len(self._waiting)
            self._troubles["dropped", "the monitor was stopped"] += len(self._waiting)
            self._waiting.clear()

    # --- What is told ---

    def _trouble(self, what: str, reason: str) -> None:
        self._troubles[what, reason.encode("ascii", "backslashreplace").decode()[:TOLD]] += 1
        if len(self._troubles) >= WAITING:  # forged requests could have as many reasons
            self._tell()

    def _tell(self) -> None:
        """Report refusals and drops, each reason once, with how often."""
        for (what, reason), count in self._troubles.items():
            self.say(f"{what}: {count}: {reason}")
            type = "monitor.dropped" if what in ("dropped", FIFO) else LOOP + what
            self._emit(type, 4, {"count": count, "where": FIFO, "reason": reason})
        self._troubles.clear()

    def _note(self) -> None:
        self.tally.write({**vars(self.counts), "waiting": len(self._waiting), "running": len(self._running)})

    def _emit(self, type: str, sev: int, data: dict[str, object]) -> None:
        with contextlib.suppress(DreError):  # an event of ours is never too long
            event.emit(self.conf, type, event.host() + "/monitor", data, sev)


def _unread(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
