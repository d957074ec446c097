# SPDX-License-Identifier: Apache-2.0
"""The intake: one loop over the socket, the FIFO and the emitters' spool, each line admitted, spooled, acknowledged.

It decides nothing about what events mean. Whatever it refuses or cannot keep is counted and reported as an event.
"""

import contextlib
import grp
import os
import pwd
import re
import selectors
import signal
import socket
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from dre import event, files
from dre.conf import Conf
from dre.errors import DreError, TimedOutError

from monitorlib import forward, health, remotes, spool, trust
from monitorlib.tally import Tally

CLIENTS = 256
REMEMBERED = 65536  # ids; an emitter that missed the acknowledgement spools the same event once more
HALF_LINE_AGE = 2.0  # seconds until the rest of a line on the FIFO is given up
PERIOD = 1.0  # seconds between looks at the emitters' spool, and between reports
CLAIMED = b',"claimed":true}\n'
FULL = "spool: "  # how the reason begins when it is ours
_KEPT_ID = re.compile(rb'"id":"([A-Za-z0-9._:-]{1,64})","seen":"')


class Counts:
    """Refusals and losses since the last report, by (event type, where)."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, type: str, where: str, reason: str, count: int = 1) -> None:
        """Count one more; the last reason is kept, without anything a terminal or a rule could trip over."""
        safe = reason.encode("ascii", "backslashreplace").decode()[:200]
        self._counts[type, where] = (self._counts.get((type, where), (0, ""))[0] + count, safe)

    def take(self) -> list[tuple[str, dict[str, object]]]:
        """What to report now."""
        taken = [
            (type, {"count": count, "where": where, "reason": reason})
            for (type, where), (count, reason) in self._counts.items()
        ]
        self._counts.clear()
        return taken


class Intake:
    """Everything that dre-ingest holds open."""

    def __init__(self, conf: Conf, out: int, resume: Path | None, say: Callable[[str], None]) -> None:
        self._say = say
        self._users = trust.service_users()
        self._web = remotes.web_users()
        self._remotes = conf.core_etc_dir / "remotes"
        self._counts = Counts()
        self._recent: OrderedDict[tuple[str, bool], None] = OrderedDict()
        self._emitted = conf.core_state_dir / "spool" / "event"
        self._selector = selectors.DefaultSelector()
        directory = conf.core_state_dir / "spool" / "ingest"
        self._spool = spool.Spool(directory)
        self._remember(_kept(spool.tail(directory, spool.SEGMENT)))
        self._forward = forward.Forwarder(directory, out, resume, self._spool.end, self._lost)
        self._clients: list[socket.socket] = []
        self._tally = Tally(health.tally_file(conf, "ingest"))
        self._told = {"in": 0, "refused": 0, "dropped": 0}  # since our start
        self._half = b""
        self._half_since = 0.0
        self._stop = False
        self._fifo = open_fifo(conf.core_run_dir / "events", 0o620, group="dre-event")
        self._selector.register(self._fifo, selectors.EVENT_READ, self._read_fifo)
        self._listener = listen(conf.monitor_sink)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        prepare_emitted(self._emitted)

    def run(self) -> None:
        """Take events in until SIGTERM or SIGINT, or until nobody can read the output any more (DreError)."""
        waker, wakes = socket.socketpair()
        for end in (waker, wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_stop", True))
        signal.signal(signal.SIGHUP, lambda *_: self._forward.rewind())
        self._selector.register(waker, selectors.EVENT_READ, lambda: waker.recv(64))
        self._forward.start()
        due = 0.0
        while not self._stop and not self._forward.failed:
            if time.monotonic() >= due:
                self._now_and_then()
                due = time.monotonic() + PERIOD
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data()
            self._forward.wake()
        self._now_and_then()
        self._forward.finish(1.0)
        self._spool.close()
        if self._forward.failed and not isinstance(self._forward.failed, BrokenPipeError):
            raise DreError(f"output: {self._forward.failed.strerror}")

    def _now_and_then(self) -> None:
        if self._half and time.monotonic() - self._half_since > HALF_LINE_AGE:
            self._counts.add("monitor.refused", "fifo", "a line without an end")
            self._half = b""
        self._pick_up()
        for type, data in self._counts.take():
            self._say(f"{type}: {data['where']}: {data['count']}: {data['reason']}")
            made = event.Event(event.stamp(), event.host() + "/monitor", type, 4, data, {"id": event.new_id()})
            self._keep([event.format(made)], 0, "monitor")
        self._note()

    def _lost(self, octets: int) -> None:
        self._counts.add("monitor.dropped", "reader", "octets that went from the spool before they were read", octets)

    def _note(self) -> None:
        """Tell `dre-monitor status` how we do."""
        forward = self._forward
        numbers = {**self._told, "out": forward.lines, "waiting": self._spool.end - forward.offset}
        self._tally.write({**numbers, "lag": round(forward.lag, 1)})

    # --- Taking in ---

    def _keep(self, lines: list[bytes], uid: int | None, where: str, remote: str | None = None) -> list[str | None]:
        """Admit and spool *lines*; for each why it was not kept, or None."""
        seen = event.stamp()
        admitted: dict[tuple[str, bool], bytes] = {}
        reasons = []
        for line in lines:
            reason, made = self._admit(line, uid, seen, where, remote)
            reasons.append(reason)
            # A claimed event must not be able to hide a proven one that comes later with the same id.
            key = (made[0], made[1].endswith(CLAIMED))
            if made[1] and key not in self._recent:
                admitted.setdefault(key, made[1])
        try:
            self._spool.append(b"".join(admitted.values()))
        except OSError as error:
            full = f"{FULL}{error.strerror}"
            self._counts.add("monitor.dropped", where, full, len(admitted))
            self._told["dropped"] += len(admitted)
            self._told["in"] += len(admitted)
            return [reason or full for reason in reasons]
        self._remember(admitted)
        self._told["in"] += len(admitted)
        return reasons

    def _admit(
        self, line: bytes, uid: int | None, seen: str, where: str, remote: str | None
    ) -> tuple[str | None, tuple[str, bytes]]:
        """Why *line* is refused, or None; and the id and the line to keep, empty when there is nothing to keep."""
        try:
            return None, trust.admit(line, uid, seen, self._users, remote)
        except event.EventError as error:
            self._counts.add("monitor.refused", where, str(error))
            self._told["refused"] += 1
            self._told["in"] += 1
            with contextlib.suppress(event.EventError):
                return str(error), trust.admit(trust.salvage(line), uid, seen, self._users, remote)
            return str(error), ("", b"")

    def _remember(self, keys: Iterable[tuple[str, bool]]) -> None:
        self._recent.update(dict.fromkeys(keys))
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _read_fifo(self) -> None:
        octets = self._half + os.read(self._fifo, spool.CHUNK)
        lines = octets.split(b"\n")
        self._half = lines.pop()
        self._half_since = time.monotonic()
        if len(self._half) > event.LIMIT:
            # Its rest will be refused as a line of its own, or be salvaged.
            lines.append(self._half)
            self._half = b""
        self._keep([line for line in lines if line], None, "fifo")

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, uid, _ = struct.unpack("3i", credentials)
            here = trust.is_here(pid)
            if here is None:
                self._refuse_the_gone(connection, uid)
                return
            if not here:
                uid = -1  # root of a container is nobody here
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._answer(connection, uid))
            self._clients.append(connection)
            if len(self._clients) > CLIENTS:
                self._drop(self._clients[0])
            # Emitters send at once; asking now spares one round of the loop.
            self._answer(connection, uid)

    def _refuse_the_gone(self, connection: socket.socket, uid: int) -> None:
        """A sender has ended, and nobody can tell whose process it was. Ours spool what had no answer."""
        with connection, contextlib.suppress(OSError):
            if connection.recv(1):
                self._counts.add("monitor.refused", f"uid {uid}", "the sender ended before it had an answer")
                self._told["refused"] += 1
                self._told["in"] += 1

    def _answer(self, connection: socket.socket, uid: int) -> None:
        try:
            packet = connection.recv(remotes.PACKET)
            if not packet:
                return self._drop(connection)
            if packet.startswith(remotes.FROM):
                connection.send(self._handed_over(packet, uid))
            else:
                (refused,) = self._keep([packet], uid, f"uid {uid}" if uid >= 0 else "container")
                connection.send(b"ok" if refused is None else _no(refused))
        except BlockingIOError:
            pass  # nothing sent yet, or the peer does not read its answers: it will take it for unacknowledged
        except OSError:
            self._drop(connection)
        return None

    def _handed_over(self, packet: bytes, uid: int) -> bytes:
        """Keep what the web server took from another host; the answer."""
        name, lines = remotes.unpack(packet)
        if uid not in self._web:
            return _no(f"uid {uid} may not speak for other hosts")
        if name not in remotes.allowed(self._remotes):
            return _no(f"{name} is not in {self._remotes}")
        reasons = self._keep(lines, None, f"host {name}", name)
        return remotes.answer(reasons, next((one for one in reasons if one and one.startswith(FULL)), None))

    def _drop(self, connection: socket.socket) -> None:
        if connection in self._clients:
            self._clients.remove(connection)
            self._selector.unregister(connection)
            connection.close()

    # --- What emitters spooled while nobody answered them ---

    def _pick_up(self) -> None:
        for path in sorted(self._emitted.glob("taken-*.jsonl")) + sorted(self._emitted.glob("emitted*.jsonl")):
            with contextlib.suppress(FileNotFoundError, TimedOutError):
                if not path.is_dir():
                    self._pick_up_file(path)
        for path in sorted(self._emitted.glob("dropped*")):
            with contextlib.suppress(OSError, ValueError, DreError), self._lock(path):
                count = int(path.read_text()) if _owner(path) is not None else 0
                path.unlink()
                self._counts.add("monitor.dropped", "emitters", f"{path.parent}: full", count)

    def _lock(self, path: Path) -> contextlib.AbstractContextManager[None]:
        lock = self._emitted / f"lock{re.sub('^[a-z]+', '', path.stem)}"
        # Whoever spools makes it first; made by us it would keep him out.
        return files.lock(lock, timeout=0.05) if os.path.lexists(lock) else contextlib.nullcontext()

    def _pick_up_file(self, path: Path) -> None:
        if path.name.startswith("emitted"):
            taken = self._emitted / f"taken-{time.time_ns()}.jsonl"
            try:
                with self._lock(path):
                    path.rename(taken)
            except FileNotFoundError:
                return
            except OSError as error:  # its lock may be anything that somebody of the group has made
                self._counts.add("monitor.refused", "emitters", f"{path.name}: {error.strerror}")
                return
            path = taken
        uid = _owner(path)
        lines = path.read_bytes().split(b"\n") if uid is not None else []
        if uid is None:
            self._counts.add("monitor.refused", "emitters", f"{path.name}: not a plain file of one owner")
        for first in range(0, len(lines), 500):
            self._keep([line for line in lines[first : first + 500] if line], uid, "emitters")
            self._forward.wake()
        path.unlink()


def _kept(lines: bytes) -> Iterable[tuple[str, bool]]:
    """The ids in *lines* of the spool, each with whether it is claimed."""
    for line in lines.splitlines(keepends=True):
        if ids := _KEPT_ID.findall(line):
            yield ids[-1].decode(), line.endswith(CLAIMED)


def _no(reason: str) -> bytes:
    return b"no: " + reason.encode("ascii", "backslashreplace")[:500]


def _owner(path: Path) -> int | None:
    """The only user who can have written *path*; None when that cannot be told."""
    status = path.lstat()
    plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and not status.st_mode & 0o022
    return status.st_uid if plain else None


def open_fifo(path: Path, mode: int, owner: str | None = None, group: str | None = None) -> int:
    """Make the FIFO *path* when it is not there, give it its rights, and open it for both directions without blocking.

    Open for both, it never tells its reader of an end, and keeps what was written while that is away. *owner* and
    *group* are used when they exist on this host.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise DreError(f"{path}: not a FIFO")
    give(fd, mode, owner, group)
    return fd


def give(fd: int, mode: int, owner: str | None, group: str | None) -> None:
    """Hand an open file to *owner* and *group* as far as they exist and we may; then set *mode*."""
    uid = gid = -1
    with contextlib.suppress(KeyError):
        uid = pwd.getpwnam(owner).pw_uid if owner else -1
    with contextlib.suppress(KeyError):
        gid = grp.getgrnam(group).gr_gid if group else -1
    if os.geteuid() == 0:
        os.fchown(fd, uid, gid)
    os.fchmod(fd, mode if gid >= 0 or not group else mode & 0o700)


def listen(path: Path) -> socket.socket:
    """The intake's socket, for root and the group dre-event. A socket left by a killed intake is replaced."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam("dre-event").gr_gid)
        path.chmod(0o660)
    listener.listen(1024)
    return listener


def prepare_emitted(directory: Path) -> None:
    """Make the emitters' spool; the group dre-event may make files there, nobody may touch another's."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(directory, -1, grp.getgrnam("dre-event").gr_gid)
        directory.chmod(0o3770)
