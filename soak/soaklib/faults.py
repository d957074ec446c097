# SPDX-License-Identifier: Apache-2.0
"""The faults: which comes when is drawn from a seed; whom it hits, among those that live then, from the same one.

Each is done in a thread of its own and, where that is not its nature, taken back after some seconds. What was counted
has really happened: a kill that found nobody has not.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from demolib import programs, shop
from demolib.places import ADDRESSES, APP, BRIDGE, CONF, FEED, WEB
from demolib.programs import Failed, call

from soaklib import ground, processes
from soaklib.services import CLOCKED, Services
from soaklib.work import Work

GAPS = (2.0, 7.0)  # seconds between two of them: 800 an hour
# How often each kind comes, among all.
KINDS = {"process": 34, "app": 14, "clock": 16, "network": 12, "command": 10, "writer": 8, "disk": 6}
# Who lives on in the first two fifths, and who in the last: a leak shows only in what lives.
SPARED = (("dboxd", "dscript", "witness"), ("dre-monitor", "keep"))
LEFT = (0, 8 << 10, 256 << 10, 4 << 20, 12 << 20, 24 << 20)  # octets that stay free on the disk
COPY = "batch-soak"  # a copy of the spare app
WITHIN = 120.0  # seconds in which a command that was killed must come to its end when called again

Command = tuple[str, ...]
# A command to be killed at work, and what then leads back to where it was; exit status 3 is "there is none".
COMMANDS: Mapping[str, tuple[Command, Command]] = {
    "limit": (("dre-app", "limit", WEB, "--cpu", "95"), ("dre-app", "limit", WEB, "--cpu", "100")),
    "restart": (("dre-app", "restart", WEB), ("dre-app", "start", WEB)),
    "undo": (("dre-app", "undo", APP, shop.TAG), ("dre-app", "undo", APP, shop.TAG)),
    "freeze": (("dre-app", "freeze", WEB), ("dre-app", "thaw", WEB)),
    "isolate": (("dre-app", "isolate", APP), ("dre-app", "rejoin", APP)),
    "exec": (("dre-app", "exec", APP, "--", "/bin/sleep", "1"), ("dre-app", "exec", APP, "--", "/bin/true")),
    "clone": (("dre-app", "clone", FEED, COPY), ("dre-app", "destroy", "--force", COPY)),
    "save": (("dre-app", "snapshot", "save", FEED, "soak"), ("dre-app", "snapshot", "delete", FEED, "soak")),
    "deploy": (
        ("dscript", "deploy", str(ground.SoakStory.script)),
        ("dscript", "deploy", str(ground.SoakStory.script)),
    ),
    "rotate": (("dbox-rotate",), ("dbox-rotate",)),
    "ask": (("dbox-witness", "--ask"), ("dbox-witness", "--ask")),
}


@dataclass(frozen=True)
class Fault:
    """One to come: *at* seconds after the begin."""

    number: int
    at: float
    kind: str


def plan(seed: int, seconds: float) -> list[Fault]:
    """The faults of a soak of that length; the same for the same seed, and those of a shorter one begin alike."""
    chance = random.Random(seed)
    found, at = [], chance.uniform(*GAPS)
    while at < seconds:
        found.append(Fault(len(found), at, chance.choices(list(KINDS), list(KINDS.values()))[0]))
        at += chance.uniform(*GAPS)
    return found


def spared(share: float) -> tuple[str, ...]:
    """The services that are not to be killed when that *share* of the time has passed."""
    if share < 0.4:
        return SPARED[0]
    return SPARED[1] if share >= 0.6 else ()


class Faults:
    """Does them. `counts` are those that happened, by kind; `broken` what did not come to its end as it must."""

    def __init__(self, seed: int, seconds: float, services: Services, work: Work, say: Callable[[str], None]) -> None:
        self.seed, self.seconds = seed, seconds
        self.services, self.work, self.say = services, work, say
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.over = threading.Event()  # what is to be taken back is, at once
        self._abandoned = False
        self._one = threading.Lock()  # command at a time: two that want the same app would only wait for each other
        self._disk = threading.Lock()
        self._pool = ThreadPoolExecutor(16)

    def run(self) -> None:
        """Do all of them, each in its time, and return when the time is over."""
        begun = time.monotonic()
        waiting: set[Future[None]] = set()
        for fault in plan(self.seed, self.seconds):
            time.sleep(max(0.0, begun + fault.at - time.monotonic()))
            waiting.add(self._pool.submit(self._do, fault))
            for done in {one for one in waiting if one.done()}:
                waiting.discard(done)
                done.result()  # a mistake of ours ends the soak
        time.sleep(max(0.0, begun + self.seconds - time.monotonic()))

    def end(self, abandon: bool = False) -> None:
        """Take back what is to be, and wait for what is under way; *abandon*: as far as it has come."""
        self._abandoned = abandon
        self.over.set()
        self._pool.shutdown(cancel_futures=True)

    def _do(self, fault: Fault) -> None:
        chance = random.Random(f"{self.seed} {fault.number}")
        done = {
            "process": self._process,
            "app": self._app,
            "clock": self._clock,
            "network": self._network,
            "command": self._command,
            "writer": self._writer,
            "disk": self._disk_full,
        }[fault.kind](chance, fault.at / self.seconds)
        if done:
            self.counts[fault.kind] += 1
            self._log(fault, done)

    def _log(self, fault: Fault, done: str) -> None:
        with contextlib.suppress(OSError), (ground.HOME / "log" / "faults.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {fault.number} {fault.kind}: {done}\n")

    def _kill(self, victim: processes.Process) -> str:
        """Kill it, unless it has ended, or another one has its number by now."""
        if programs.began(victim.pid) != victim.began:
            return ""
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        return f"{victim.pid} {victim.words[:160]}"

    def _process(self, chance: random.Random, share: float) -> str:
        """kill -9 of a process of one of our services: any of them."""
        name = chance.choice([name for name in self.services.pids if name not in spared(share)])
        found = sorted(self.services.family(processes.table(), name), key=lambda one: one.pid)
        return self._kill(chance.choice(found)) if found else ""

    def _app(self, chance: random.Random, share: float) -> str:
        """kill -9 of an app: of its first process, of LXC's monitor, or of any process in it."""
        app, what = chance.choice(list(ADDRESSES)), chance.choice(("first", "first", "any", "any", "monitor"))
        all_ = processes.table()
        found = processes.inside(all_, app)
        above = processes.monitor(all_, app)
        if not found or above is None:
            return ""
        victim = above if what == "monitor" else found[0] if what == "first" else chance.choice(found)
        done = self._kill(victim)
        return done and f"{app}: {what}: {done}"

    def _writer(self, chance: random.Random, share: float) -> str:
        """kill -9 of a command that hands in a record or an event."""
        deadline = time.monotonic() + 3
        while not self.work.running:
            if time.monotonic() > deadline:
                return ""
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        for pid in list(self.work.running):
            process = processes.table().get(pid)
            if process and (done := self._kill(process)):
                return done
        return ""

    def _clock(self, chance: random.Random, share: float) -> str:
        """The clock of one service is set by up to a quarter of an hour, and right again after some seconds."""
        name, seconds = chance.choice(CLOCKED), chance.choice((-1, 1)) * chance.choice((1, 5, 30, 120, 900))
        ground.step(name, seconds)
        self.over.wait(chance.uniform(3, 15))
        ground.step(name, 0)
        return f"{name} {seconds:+d} s"

    def _network(self, chance: random.Random, share: float) -> str:
        """The link of an app, or of the writers, is cut for some seconds."""
        ports = sorted(path.name for path in Path(f"/sys/class/net/{BRIDGE}/brif").iterdir())
        if not ports:
            return ""
        port = chance.choice(ports)
        try:
            call("ip", "link", "set", port, "down")
            self.over.wait(chance.uniform(1, 6))
            call("ip", "link", "set", port, "up")
        except Failed as failure:
            if Path("/sys/class/net", port).exists():  # else its app has just ended
                raise
            return f"{port}, which ended: {failure}"
        return port

    def _disk_full(self, chance: random.Random, share: float) -> str:
        """The disk of all state has next to nothing left for some seconds."""
        with self._disk:
            left = chance.choice(LEFT)
            room = os.statvfs(ground.STATE)
            size = room.f_bavail * room.f_frsize - left
            if size <= 0:
                return ""
            try:
                with ground.BALLAST.open("wb") as ballast, contextlib.suppress(OSError):  # others write, too
                    os.posix_fallocate(ballast.fileno(), 0, size)
                self.over.wait(chance.uniform(1, 5))
            finally:
                ground.empty_disk()
            return f"{left} octets left"

    def _command(self, chance: random.Random, share: float) -> str:
        """kill -9 of one of our commands at work; called again, or taken back, it comes to its end."""
        name = chance.choice(list(COMMANDS))
        if name == "undo" and share > 0.9:
            name = "limit"  # nothing has to be put back when the end is near
        first, again = (_with_settings(command) for command in COMMANDS[name])
        with self._one:
            process = subprocess.Popen(
                first,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, 0.6))
            hit = process.poll() is None
            process.kill()
            process.wait()
            self._to_its_end(name, again)
        return f"{name}" if hit else ""

    def _to_its_end(self, name: str, argv: Command) -> None:
        """Call it until it is done: while the disk is full, or somebody else is at it, it may not be."""
        deadline = time.monotonic() + WITHIN
        said = "it was not called"
        while time.monotonic() < deadline and not self._abandoned:
            try:
                done = programs.status(*argv, timeout=WITHIN)
            except Failed as failure:
                said = str(failure)
                continue
            if done.returncode in (0, 3):
                return
            said = done.stderr.decode(errors="replace").strip()
            time.sleep(1.0)
        self.broken.append(f"{' '.join(argv)}: after a kill of {name} not done within {WITHIN:g} s: {said[-300:]}")


def _with_settings(command: Command) -> Command:
    return (command[0], "--config", str(CONF), *command[1:])
