# SPDX-License-Identifier: Apache-2.0
"""Start the stages of the monitor, start them again when they die, tell how they are, and stop them in order.

    senders -> ingest -> (pipe) -> reorder -> (FIFO ordered) -> sec or correlate -> (FIFO script) -> dscript
                                                            and -> (FIFO actions) -> act         and watch

The supervisor holds every pipe open at both ends, so the death of one stage is neither an end of file nor a broken
pipe to its neighbours, and what stands in a pipe stays there. It never looks into the events that flow.
"""

import contextlib
import ctypes
import fcntl
import grp
import json
import os
import pwd
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dre import app, event, files
from dre.conf import Conf
from dre.errors import DreError
from dre.init import Init

from monitorlib import actions, health, retell, rulebook
from monitorlib.intake import open_fifo

CORRELATORS = {"sec": "sec", "dre": "correlate"}  # the stage that DRE_MONITOR_CORRELATOR chooses
STAGES = ("reorder", "ingest", "watch")  # started behind it in this order, stopped in the other
OPTIONAL = ("sec", "correlate", "watch", "act")
BACK_OFF = (0.2, 5.0)  # seconds until a stage that died is started again: first, and most
HEALTHY = 10.0  # seconds after which a stage counts as having come up, and back-off begins anew
PIPE_SIZE = 1024 * 1024
RECENT = 86400.0  # seconds back, at most, from which a correlator is told again
SOON = 0.05  # seconds between looks whether all is ready, while somebody waits for that
PATIENCE = 3.0  # seconds that a stage gets to end when asked to
_SIGNALS = {signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
_PR_SET_PDEATHSIG = 1


@dataclass
class Stage:
    """One program that is kept running."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    state: str = "waiting"  # running, waiting, left-out
    starts: int = 0
    restarts: int = 0  # that nobody asked for
    since: float = 0.0  # time.time() of the last change of state
    due: float = 0.0  # time.monotonic() of the next start
    delay: float = field(default=BACK_OFF[0])

    def row(self) -> dict[str, object]:
        """What `status` tells."""
        return {
            "stage": self.name,
            "state": self.state,
            "pid": self.process.pid if self.process else None,
            "restarts": self.restarts,
            "since": self.since,
        }


class Supervisor:
    """Holds the pipes and the processes."""

    def __init__(self, conf: Conf, config: str | None, without: list[str], say: Callable[[str], None]) -> None:
        self.conf = conf
        self.say = say
        self._correlator = CORRELATORS[conf.monitor_correlator]
        without = [self._correlator if name in CORRELATORS.values() else name for name in without]
        names = ("act", self._correlator, *STAGES)
        self.stages = {name: Stage(name, state="left-out" if name in without else "waiting") for name in names}
        self._config = ["--config", config] if config else []
        self._rules: rulebook.Rules | None = None  # that sec runs with
        self._sec_user = _user("dre-sec")
        if self._sec_user is None and os.geteuid() == 0 and self._correlator not in without:
            say(f"there is no user dre-sec; {self._correlator} runs as root")
        if self._correlator not in without:  # what is missing or refused is told before anything is started
            self._argv(self._correlator)
        self._ordered = open_fifo(conf.core_run_dir / "ordered", 0o600, owner="dre-sec")
        pipes = [open_fifo(path, 0o620, owner="dscript", group="dre-sec") for path in conf.monitor_pipes]
        self._actions = open_fifo(conf.core_run_dir / actions.FIFO, 0o620, group="dre-sec")
        self._pipe = os.pipe2(os.O_CLOEXEC)
        for fd in (self._ordered, self._actions, self._pipe[1], *pipes):
            with contextlib.suppress(OSError):  # smaller pipes hold less while a reader is away, no more
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._resume = str(conf.core_state_dir / "spool" / "ingest" / "reorder.resume")
        Path(self._resume).parent.mkdir(mode=0o755, parents=True, exist_ok=True)

    # --- One stage ---

    def _argv(self, name: str) -> list[str]:
        if name == "sec":
            self._rules = rulebook.load(self.conf)
            rulebook.test(self.conf, self._rules.paths)
            return rulebook.argv(self.conf, self._rules.paths)
        if name == "correlate":
            return rulebook.correlate_argv(self.conf, self._config, rulebook.load(self.conf).paths)
        program = str(Path(__file__).resolve().parents[1] / f"dre-{name}")  # installed beside us
        if name == "act":
            return [str(Path(program).with_name("dre-monitor")), "act", *self._config]
        resume = ["--resume", self._resume] if name in ("ingest", "reorder") else []
        return [program, *self._config, *resume]

    def _start(self, stage: Stage) -> None:
        argv = self._argv(stage.name)
        stdin: int = subprocess.DEVNULL
        opened: list[int] = []
        stdout: int = subprocess.DEVNULL
        if stage.name == "act":
            stdin = os.open(self.conf.core_run_dir / actions.FIFO, os.O_RDONLY)
            opened.append(stdin)
        elif stage.name == "ingest":
            stdout = self._pipe[1]
        elif stage.name == "reorder":
            # A file description of its own: ours is in non-blocking mode.
            stdin, stdout = self._pipe[0], os.open(self.conf.core_run_dir / "ordered", os.O_WRONLY)
            opened.append(stdout)
        elif stage.name == self._correlator:
            if stage.name == "correlate":
                stdin = os.open(self.conf.core_run_dir / "ordered", os.O_RDONLY)
                opened.append(stdin)
            if stage.name == "sec":
                self._tell_again()
            elif not stage.starts and rulebook.has_state(self.conf):
                # When we were killed, what stood in the FIFO went with us; correlate knows what it has had already.
                self._tell_again(RECENT, PIPE_SIZE)
            stdout = os.open(self.conf.monitor_pipes[0], os.O_WRONLY)
            opened.append(stdout)
        try:
            stage.process = self._spawn(stage.name, argv, stdin, stdout)
        finally:
            for fd in opened:
                os.close(fd)
        stage.state, stage.since = "running", time.time()
        stage.starts += 1
        if stage.name == "reorder" and (process := self.stages["ingest"].process):
            process.send_signal(signal.SIGHUP)  # its reader was replaced: what that held comes once more

    def _spawn(self, name: str, argv: list[str], stdin: int, stdout: int) -> subprocess.Popen[bytes]:
        keep = ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LANG")
        environment = {key: os.environ[key] for key in keep if key in os.environ}
        user = group = others = None
        if name == "sec":
            # sec dumps its environment on request, and its clock should be that of the events.
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}
        if name == self._correlator:
            uid, gid = self._sec_user or (os.geteuid(), os.getegid())
            rulebook.prepare(self.conf, uid, gid)
            if self._sec_user and os.geteuid() == 0:
                user, group = uid, gid
                others = _groups("dre-event") if name == "correlate" else list[int]()  # it asks the intake for the time
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            env=environment,
            cwd="/",
            preexec_fn=_child,
            user=user,
            group=group,
            extra_groups=others,
        )

    def _tell_again(self, recent: float = retell.RECENT, most: int = retell.BLOCK) -> None:
        """Put into the FIFO, in front of what stands there, what the new correlator must know."""
        unread = b""
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self._ordered, PIPE_SIZE):
                unread += block
        remembered = self._rules.remembered if self._rules else {}
        window = min(self._rules.memory, RECENT) if self._rules else 0.0
        told = retell.again(self.conf, time.time(), unread, remembered, window, recent, most)
        live = list(retell.pieces(told.live))
        quiet = list(retell.pieces(told.quiet, retell.QUIET, retell.LIVE))
        room = fcntl.fcntl(self._ordered, fcntl.F_GETPIPE_SZ) // event.LIMIT * 15 // 16  # a page for each
        live = live[-room:]
        quiet = quiet[len(quiet) - min(len(quiet), room - len(live)) :]
        written = {part: sum(map(self._offer, parts)) for part, parts in (("quiet", quiet), ("live", live))}
        if lost := told.lost + len(told.quiet) - written["quiet"]:
            data = {"count": lost, "where": self._correlator, "seconds": window, "reason": "too many to be told again"}
            self._emit("monitor.lost", data, 4)
        if dropped := len(told.live) - written["live"]:
            self._emit("monitor.dropped", {"count": dropped, "where": self._correlator}, 4)

    def _offer(self, piece: bytes) -> int:
        """How many events of *piece* the FIFO has taken: all or, when it is full, none."""
        try:
            os.write(self._ordered, piece)
        except BlockingIOError:
            return 0
        return piece.count(b'\n{"time":"') + piece.startswith(b'{"time":"')

    def _died(self, stage: Stage, status: int) -> None:
        assert stage.process is not None
        lived = time.time() - stage.since
        stage.delay = BACK_OFF[0] if lived > HEALTHY else stage.delay
        self._wait(stage, f"ended with status {status}")
        self._emit("monitor.stage.died", {"stage": stage.name, "status": status, "restarts": stage.restarts}, 3)
        stage.restarts += 1

    def _wait(self, stage: Stage, why: str) -> None:
        self.say(f"{stage.name}: {why}; next start in {stage.delay:g} s")
        stage.process = None
        stage.state, stage.since = "waiting", time.time()
        stage.due = time.monotonic() + stage.delay
        stage.delay = min(stage.delay * 2, BACK_OFF[1])

    def _emit(self, type: str, data: dict[str, object], sev: int) -> None:
        event.emit(self.conf, type, event.host() + "/monitor", data, sev)

    # --- All of them ---

    def run(self) -> None:
        """Keep the stages running until SIGTERM or SIGINT, then stop them in order; SIGHUP: take the rules anew."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        init = Init()
        awaited = bool(init.place)
        try:
            while True:
                self._look()
                if awaited and self._is_ready():
                    init.say("READY=1")
                    awaited = False
                due = [stage.due for stage in self.stages.values() if stage.state == "waiting"]
                pause = min([SOON if awaited else 1.0, *(when - time.monotonic() for when in due)])
                got = signal.sigtimedwait(_SIGNALS, max(0.0, pause))
                if got and got.si_signo == signal.SIGHUP:
                    self._reload()
                elif got and got.si_signo != signal.SIGCHLD:
                    return
        finally:
            self._stop()

    def _is_ready(self) -> bool:
        """Whether the intake takes events, or has failed, as `status` tells. All FIFOs are there before it listens."""
        if self.stages["ingest"].process is None:
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as connection:
            return connection.connect_ex(str(self.conf.monitor_sink)) == 0

    def _reload(self) -> None:
        """Have the correlator start anew with the rules as they are now; when they are refused, it goes on as it is."""
        stage = self.stages[self._correlator]
        if not stage.process:
            return  # it takes them when it starts
        try:
            self._argv(stage.name)
        except (DreError, OSError) as error:
            self.say(f"{stage.name}: goes on with the rules as they were: {error}")
            self._emit("monitor.rules.refused", {"reason": str(error)}, 3)
            return
        self._end(stage.name, ask=True)
        stage.process, stage.state, stage.since, stage.due = None, "waiting", time.time(), time.monotonic()
        self._emit("monitor.rules.loaded", {"stage": stage.name}, 5)

    def _look(self) -> None:
        """Notice who died, start who is due, and write down how everybody is."""
        before = [stage.row() for stage in self.stages.values()]
        for stage in self.stages.values():
            if stage.process and (status := stage.process.poll()) is not None:
                self._died(stage, status)
        for stage in self.stages.values():
            if stage.state == "waiting" and stage.due <= time.monotonic():
                try:
                    self._start(stage)
                except (DreError, OSError) as error:
                    self._wait(stage, f"cannot start: {error}")
        if before != [stage.row() for stage in self.stages.values()]:
            self._write_status()

    def _write_status(self) -> None:
        rows = [stage.row() for stage in self.stages.values()]
        status = {"pid": os.getpid(), "started": app.started(os.getpid()), "stages": rows}
        files.write_atomic(status_file(self.conf), json.dumps(status) + "\n")

    def _stop(self) -> None:
        """Stop the senders first and let the rest run dry; what does not is told, or kept for the next start."""
        self._end("watch", ask=True)
        self._end("ingest", ask=True)
        os.close(self._pipe[1])  # the filter's end of input: it releases what it holds
        self._end("reorder", ask=False)
        deadline = time.monotonic() + PATIENCE
        while self.stages[self._correlator].process and _unread(self._ordered) and time.monotonic() < deadline:
            time.sleep(0.01)  # a FIFO has no way to tell that it has become empty
        self._end(self._correlator, ask=True)
        deadline = time.monotonic() + PATIENCE
        while self.stages["act"].process and _unread(self._actions) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._end("act", ask=True)
        if unread := _unread(self._ordered):
            self._emit("monitor.dropped", {"octets": unread, "where": "ordered"}, 4)
        status_file(self.conf).unlink(missing_ok=True)

    def _end(self, name: str, ask: bool) -> None:
        process = self.stages[name].process
        if process:
            if ask:
                process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.say(f"{name}: does not end; killed")
                process.kill()
                process.wait()


def _child() -> None:
    """In a child before exec: no blocked signals, and an end when the supervisor is killed."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None, use_errno=True)


def _user(name: str) -> tuple[int, int] | None:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


def _groups(name: str) -> list[int]:
    try:
        return [grp.getgrnam(name).gr_gid]
    except KeyError:
        return []


def _unread(fd: int) -> int:
    """Octets that stand in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


def status_file(conf: Conf) -> Path:
    """Where the supervisor tells how its stages are."""
    return conf.core_run_dir / "monitor.json"


def pid(conf: Conf) -> int:
    """Of the supervisor that has written its status last."""
    return int(json.loads(status_file(conf).read_text())["pid"])


def status(conf: Conf) -> list[dict[str, object]] | None:
    """How each stage is, checked against the process table; None when no supervisor runs."""
    try:
        told = json.loads(status_file(conf).read_text())
    except FileNotFoundError:
        return None
    if app.started(told["pid"]) != told["started"]:
        return None  # killed: the file tells of former times
    rows: list[dict[str, object]] = []
    for row in told["stages"]:
        alive = row["pid"] is not None and app.started(row["pid"]) is not None
        if row["state"] == "running" and not alive:
            row["state"] = "waiting"
        uptime = round(max(0.0, time.time() - row.pop("since")), 1) if row["state"] == "running" else None
        told = health.numbers(conf, row["stage"], row["pid"]) if row["state"] == "running" else {}
        rows.append({**row, "uptime": uptime, **dict.fromkeys(health.FIELDS), **told})
    return rows


def prefer_us() -> None:
    """Run before ordinary work: when an overloaded host is slow to see its overload, nobody helps it."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -5)
