# SPDX-License-Identifier: Apache-2.0
"""Keeping apps: what ended by itself is told, and started again where its `restart` says so; logs are held to size.

The record of a start (dre.app) says that an app is wanted; when its monitor is gone all the same it has ended by
itself, whatever it was that ended: program, init or the monitor. One keeper serves a host, `dre-app keep`; without one
`recover` does the same once.
"""

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import existence, files, lifecycle, output, recovery, spec, units
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, TimedOutError

WELL = 60.0  # seconds after which a run was good, and crashes are counted from the first again
LONGEST = 30.0  # seconds between a crash and the next start, at most; they begin with 1 and double
LOOK = 1.0  # seconds between two looks at logs and records, at most
LEAST = 0.05  # and at least
BUSY = 0.2  # seconds until the next try where a verb holds the app
UNNEEDED = 60.0  # seconds without an app to keep after which a keeper that was not asked to stay ends


def pause(crashes: int) -> float:
    """Seconds from crash number *crashes* to the next start."""
    return min(2.0 ** (crashes - 1), LONGEST)


def crash(app: App, say: Callable[[str], None]) -> float | None:
    """Tell that the app ended, once, when it did; seconds until it shall start again, None when it shall not.

    Wants the app's lock, as all here that takes an App.
    """
    record = app.record()
    if not record.get("wanted") or app.state() != "crashed":
        return None
    allowed = spec.restarts(app.spec().restart) if record.get("kept") else 0
    status = _status(app) if record.get("kept") else None
    if status == 0:
        existence.sweep(app)
        app.emit("stopped", status=0)
        say(f"{app.name}: its program has ended")
        return None
    if not record.get("told"):
        ran = _ran(record)
        record["crashes"] = 1 + (record.get("crashes", 0) if ran is None or ran < WELL else 0)
        app.emit("crashed", 3, status=status, crashes=record["crashes"])
        app.remember({**record, "told": True})
        say(f"{app.name}: crashed{'' if status is None else f', status {status}'}")
    crashes = int(record["crashes"])
    if crashes <= allowed:
        return pause(crashes)
    if allowed and not record.get("gave_up"):
        app.emit("gave-up", 2, crashes=crashes)
        app.remember({**record, "told": True, "gave_up": True})
        say(f"{app.name}: crashed {crashes} times, not started again; dre-app log {app.name}")
    return None


def again(app: App, say: Callable[[str], None]) -> float | None:
    """Start the app that crashed; seconds until the next try when that failed, None when there is none."""
    record = app.record()
    if not (record.get("wanted") and record.get("told")) or app.state() != "crashed":
        return None  # started, stopped or destroyed meanwhile
    crashes = int(record["crashes"])
    try:
        lifecycle.start(app, crashes=crashes)
    except DreError as error:
        return _failed(app, crashes, error, say)
    _restarted(app, crashes, say)
    return None


def _failed(app: App, crashes: int, error: DreError, say: Callable[[str], None]) -> float | None:
    """What a start that failed is: one more crash."""
    say(str(error))
    app.remember({"wanted": True, "kept": True, "told": True, "crashes": crashes + 1})
    return crash(app, say)


def _restarted(app: App, crashes: int, say: Callable[[str], None]) -> None:
    app.emit("restarted", 4, crashes=crashes)
    say(f"{app.name}: started again, after crash {crashes}")


def _clear(app: App, say: Callable[[str], None]) -> bool:
    """Whether nothing more is to be seen: not so while it starts, or while its init outlives its monitor a little.

    A start that was killed is ended here.
    """
    record = app.record()
    noted = record.get("monitor")
    if record.get("told") and noted:
        return True
    crashes = int(record.get("crashes", 0))
    try:
        ended = lifecycle.end_start(app)
    except DreError as error:
        if record.get("kept"):
            _failed(app, crashes, error, say)
        return False
    if ended and crashes:
        _restarted(app, crashes, say)
    if ended is None:
        return False
    return not record.get("wanted") or not noted or apps.started(noted[0]) == noted[1]


def _status(app: App) -> int | None:
    """The exit status that the app's shell wrote, None when it could not; the file is the app's to spoil."""
    with contextlib.suppress(OSError):
        with app.status.open("rb") as stream:
            text = stream.read(8).strip()
        if text.isdigit() and int(text) < 256:
            return int(text)
    return None


def _ran(record: dict[str, Any]) -> float | None:
    """Seconds since the init that is noted began."""
    if not record.get("init"):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(record["init"][1]) / os.sysconf("SC_CLK_TCK")


def recover(conf: Conf, say: Callable[[str], None]) -> None:
    """What a keeper would do about apps that have crashed, at once."""
    for name in apps.names(conf):
        with contextlib.suppress(DreError), recovery.held(conf, name) as app:
            if crash(app, say) is not None:
                again(app, say)
            else:
                _clear(app, say)


class Keeper:
    """One process that keeps all apps of a host, until it is killed."""

    def __init__(self, conf: Conf, say: Callable[[str], None]) -> None:
        self.conf = conf
        self.say = say
        self.poll = select.poll()
        self.records: dict[str, tuple[int, dict[str, Any]]] = {}  # name: time of the file, content
        self.monitors: dict[str, int] = {}  # name: descriptor of the process
        self.due: dict[str, float] = {}  # name: when to look at it
        self.planned: dict[str, float] = {}  # name: when to start it again
        self.sizes: dict[str, int] = {}  # name: of its log

    def run(self, stay: bool) -> None:
        """Keep; without *stay*, until no app has needed it for a while."""
        looked = needed = time.monotonic()
        self._read_records()
        wait = LOOK
        while stay or time.monotonic() - needed < UNNEEDED:
            self._wait(wait)
            for name in [name for name, when in self.due.items() if when <= time.monotonic()]:
                del self.due[name]
                self._attend(name)
            now = time.monotonic()
            if now - looked >= wait:
                self._read_records()
                wait = self._cut_logs(now - looked)
                looked = now
            if any(record.get("kept") for _, record in self.records.values()):
                needed = now

    def _wait(self, longest: float) -> None:
        """Until a monitor ends, something is due, or *longest* seconds have passed."""
        first = min(self.due.values(), default=float("inf")) - time.monotonic()
        # The kernel takes whole milliseconds: rounded up, or we would turn round and round before the time.
        for fd, _ in self.poll.poll(1 + int(1000 * max(0.0, min(longest, first)))):
            name = next(name for name, held in self.monitors.items() if held == fd)
            self._unwatch(name)
            self.due[name] = time.monotonic()

    def _read_records(self) -> None:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.conf.core_run_dir / "app") as entries:
            for entry in entries:
                name = entry.name.removesuffix(".json")
                if name != entry.name and units.is_name(name):
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = entry.stat().st_mtime_ns
        for name in [name for name, (when, _) in self.records.items() if found.get(name) != when]:
            del self.records[name]
            self.due.pop(name, None)
            self._unwatch(name)
        for name in found.keys() - self.records.keys():
            self.records[name] = found[name], App(self.conf, name).record()
            self._watch(name)
        for name in [name for name in self.planned if not self.records.get(name, (0, {}))[1].get("told")]:
            del self.planned[name]  # stopped, started or destroyed meanwhile

    def _watch(self, name: str) -> None:
        """Wait for the end of the monitor that is noted; when it has ended already, the app is due."""
        record = self.records[name][1]
        if not record.get("wanted") or record.get("gave_up"):
            return
        pid, began = record.get("monitor") or (0, None)
        if record.get("starting"):  # which may have been killed; while it is at work it has the lock
            pid = 0
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid) if pid else -1
            if fd >= 0 and apps.started(pid) == began:
                self.poll.register(fd, select.POLLIN)
                self.monitors[name] = fd
                return
            if fd >= 0:
                os.close(fd)
        self.due[name] = time.monotonic()

    def _unwatch(self, name: str) -> None:
        fd = self.monitors.pop(name, None)
        if fd is not None:
            self.poll.unregister(fd)
            os.close(fd)

    def _attend(self, name: str) -> None:
        """Tell the crash and plan the start, or start what was planned."""
        now = time.monotonic()
        try:
            with recovery.held(self.conf, name, timeout=0) as app:
                if name in self.planned and self.planned[name] <= now:
                    del self.planned[name]
                    delay = again(app, self.say)
                else:
                    delay = crash(app, self.say)
                clear = delay is not None or _clear(app, self.say)
        except TimedOutError:
            clear, delay = False, None  # a verb is at work; perhaps it is the stop
        except DreError as error:
            self.say(str(error))
            return
        if not clear:
            self.due[name] = now + BUSY
        elif delay is not None:
            self.due[name] = self.planned.setdefault(name, now + delay)

    def _cut_logs(self, passed: float) -> float:
        """Cut the logs that have grown too long; seconds until the next look, fewer while one grows fast."""
        limit = self.conf.app_log_max
        sizes, wait = {}, LOOK
        for name in self.records:
            app = App(self.conf, name)
            try:
                size = app.log.stat().st_size
                if size > limit:
                    output.cut(app, limit)
            except OSError as error:  # a full disk, say: the next look will try again
                self.say(f"{error.filename or app.log}: {error.strerror}")
                continue
            sizes[name] = 0 if size > limit else size
            grown = (size - self.sizes.get(name, 0)) / max(passed, 0.001)
            if grown > 0:
                wait = min(wait, max(LEAST, limit / grown / 2))
        self.sizes = sizes
        return wait


def serve(conf: Conf, say: Callable[[str], None], stay: bool) -> None:
    """Be the host's keeper. Where another one is, wait for its end, or without *stay* leave it the work."""
    path = _lock(conf)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if stay else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")  # for people
        lock.flush()
        Keeper(conf, say).run(stay)


def ensure(conf: Conf, config: str | None) -> None:
    """Have a keeper, where no service is: it ends by itself when no app needs it any more."""
    try:
        with files.lock(_lock(conf), timeout=0):
            pass
    except TimedOutError:
        return
    code = "import sys; from dre.cmd.dre_app import main; sys.exit(main())"
    options = ["--config", str(Path(config).absolute())] if config else []
    # -P: nothing shall be imported from where the caller stands.
    argv = [sys.executable, "-P", "-c", code, *options, "keep", "--while-needed"]
    conf.core_log_dir.mkdir(parents=True, exist_ok=True)
    with (conf.core_log_dir / "dre-keep.log").open("ab") as log:
        subprocess.Popen(argv, cwd="/", start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _lock(conf: Conf) -> Path:
    return conf.core_run_dir / "lock" / "keep"
