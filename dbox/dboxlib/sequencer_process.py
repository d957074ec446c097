# SPDX-License-Identifier: Apache-2.0
"""The sequencer as a process: the only one that holds the sign key and may append, under a user of its own.

`run` is that process, from root to its end. `start` is for a server in front that is started where no sequencer
answers: it forks a keeper, which runs the sequencer, starts it anew when it dies, and ends it with the server.
"""

import contextlib
import ctypes
import functools
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dre import event, privilege, trust
from dre.conf import Conf
from dre.errors import DreError, MissingError, UsageError

from dboxlib import channel, keystore, message, places, remote, rotation, store
from dboxlib.places import Places
from dboxlib.sequencer import Sequencer
from dboxlib.signer import Signer, load_key
from dboxlib.streams import Streams

READY = 60.0  # seconds in which a log is read back; a large one takes longer when it is started by itself
GONE = 15.0  # seconds for the sequencer of a server that was killed to end
PAUSES = (0.1, 0.5, 2.0, 5.0)  # seconds before a sequencer that died is started again
FENCED = 4  # exit status: another sequencer has taken over


# --- The process itself ---


def run(conf: Conf, ready: Callable[[], None], until: int | None = None) -> int:
    """Be the sequencer until SIGTERM, or until descriptor *until* ends. Call as root, or as the user of it all."""
    where = places.of(conf)
    if not (where.certs / "root.pem").exists():
        raise UsageError(f"{where.certs}: no keys of a D-Box; dbox-init makes them")
    note, keys = _read_key(where.certs / "note.key"), keystore.of(conf)
    _share(where)
    listening = _listen(message.place(conf))
    allowed = _allowed()
    _drop()
    with contextlib.closing(listening):
        log = _open(conf, where, note, keys)
        server = channel.Server(log, listening, allowed, until is not None)
        # Handlers come last: before this point nothing is lost by ending at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: server.stop())
        _watch(server, log, until)
        try:
            ready()
            server.serve()
        finally:
            log.stop()
            server.close()
    return FENCED if log.appender.over.is_set() else 0


def once(conf: Conf, work: Callable[[Sequencer], None]) -> None:
    """Be the sequencer for one piece of work, where none is running. Call as root; this process goes on as `dbox`."""
    where = places.of(conf)
    note, keys = _read_key(where.certs / "note.key"), keystore.of(conf)
    _drop()
    log = _open(conf, where, note, keys)
    try:
        work(log)
    finally:
        log.stop()


def _open(conf: Conf, where: Places, note: Any, keys: keystore.KeyStore) -> Sequencer:
    """The log, read back and ready."""
    opened = store.writing(conf)
    signer = Signer(opened.origin, rotation.recover(where, opened, keys), note)
    source = event.host() + "/dbox"

    def told(kind: str, data: dict[str, object]) -> None:
        severity = {"dbox.tampered": 1, "dbox.refused": 4, "dbox.quota.warning": 4}.get(kind, 5)
        event.emit(conf, kind, source, {**data, "log": opened.origin}, severity)

    def eraser() -> store.Store:
        return store.administering(conf)

    bounds = Streams(conf.dbox_streams, conf.dbox_reserve, opened.engine.free, told)
    log = Sequencer(opened, signer, streams=bounds, eraser=eraser if conf.dbox_database_admin else None)
    log.duties.told = told
    log.compat_md5 = conf.dbox_compat_md5
    log.duties.rotation = rotation.Rotation(
        where,
        opened,
        keys,
        signer,
        conf.dbox_key_period,
        conf.dbox_key_heads,
        lambda key: told(rotation.HANDED_OVER, {"key": key}),
    )
    log.start(trust.fingerprint(trust.certificates(opened.certificate("owner").encode(), "owner")[0]))
    try:
        log.log_clients()
    except BaseException:
        log.stop()
        raise
    return log


def _watch(server: channel.Server, log: Sequencer, until: int | None) -> None:
    """End the server when another sequencer took over, or with who started this one."""

    def wait() -> None:
        if until is None:
            log.appender.over.wait()
        else:
            while not log.appender.over.is_set() and not select.select([until], [], [], 0.5)[0]:
                pass
        server.stop()

    threading.Thread(target=wait, name="end", daemon=True).start()


def _read_key(path: Path) -> Any:
    try:
        return load_key(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; dbox-init makes it") from None


def _share(where: Places) -> None:
    """Let the servers in front read the database, and nothing else of the sequencer's; as root."""
    user, web = places.owner(), places.user(places.WEB)
    if user is None or web is None or not where.database.exists():
        return
    os.chown(where.state, user[0], web[1])
    where.state.chmod(0o2750)  # what SQLite makes beside the database gets the same group
    for path in where.state.glob(f"{where.database.name}*"):
        with contextlib.suppress(FileNotFoundError):  # SQLite removes -wal and -shm when it likes
            os.chown(path, user[0], web[1], follow_symlinks=False)
            path.chmod(0o640)


def _listen(path: Path) -> socket.socket:
    """The socket, for the servers in front alone; the one of a sequencer that was killed is replaced."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    user, web = places.owner(), places.user(places.WEB)
    if channel_answers(path):
        raise DreError(f"{path}: another sequencer answers there")
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        listening.bind(str(fresh))
    except OSError as error:
        listening.close()
        raise DreError(f"{fresh}: cannot listen: {error.strerror or error}") from None
    finally:
        os.umask(before)
    if user is not None:
        os.chown(fresh, user[0], (web or user)[1])
    listening.listen(128)
    fresh.rename(path)
    return listening


def channel_answers(path: Path) -> dict[str, Any] | None:
    """What a sequencer says of itself on this socket; None when nobody is there."""
    asked = remote.Remote(path)
    try:
        return asked.hello()
    except DreError:
        return None
    finally:
        asked.close()


def _allowed() -> set[int]:
    """Who may connect: root, the servers in front, and we ourselves."""
    found = {0, os.geteuid()}
    for name in (places.USER, places.WEB):
        user = places.user(name)
        found |= {user[0]} if user else set()
    return found


def _drop() -> None:
    """Go on as the D-Box's own user: keys are read and the socket is there, so root is not needed any more."""
    if os.geteuid() != 0:
        return
    user = places.owner()
    if user is None:
        sys.stderr.write(f"dbox-sequencer: no user {places.USER} on this host: going on as root\n")
        return
    uid, gid = user
    privilege.become(uid, gid, os.getgrouplist(places.USER, gid))


# --- Started by a server in front ---


@contextlib.contextmanager
def start(conf: Conf) -> Iterator[int | None]:
    """Have a sequencer answer for as long as this is entered. As root, or as the user of it all; before any thread.

    Yields the process that starts it again when it ends, a child; None where that is not ours to do.

    One that is there already, as a service of its own, is left alone. Raises DreError with the reason of one that
    does not start.
    """
    if _served(message.place(conf)):
        yield None
        return
    life, ours = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(lambda: _keep(conf, life, tell), {life, tell})
    os.close(life)
    os.close(tell)
    try:
        _await(told)
        yield pid
    finally:
        os.close(ours)
        os.waitpid(pid, 0)


def _served(path: Path) -> bool:
    """Whether a sequencer answers that is a service of its own. One that ends with its dead server is waited for."""
    deadline = time.monotonic() + GONE
    while (found := channel_answers(path)) is not None:
        if not found["child"]:
            return True
        if time.monotonic() > deadline:
            raise DreError(f"{path}: the sequencer of another dboxd answers there (process {found['pid']})")
        time.sleep(0.05)
    return False


def _await(told: int) -> None:
    """Wait for what the keeper tells of the first start."""
    with os.fdopen(told, "rb") as stream:
        code, _, text = stream.read().decode(errors="replace").partition(" ")
    if code == "0":
        return
    error = DreError(text or "the sequencer ended at once")
    error.code = int(code) if code.isdecimal() else 1
    raise error


def _child(work: Callable[[], int], kept: set[int]) -> None:
    """In a forked child: run *work* and end with its status, without anything that is the parent's."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the parent tells when to end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in kept:
                with contextlib.suppress(OSError):
                    os.close(fd)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(15, b"dbox-sequencer", 0, 0, 0)  # PR_SET_NAME: what ps shows
        status = work()
    except BaseException as error:
        sys.stderr.write(f"dbox-sequencer: {error}\n")
    finally:
        os._exit(status)


def _keep(conf: Conf, life: int, tell: int) -> int:
    """Run sequencers one after another until descriptor *life* ends. The first one's start is told on *tell*."""
    failures, first = 0, True
    while True:
        begun = time.monotonic()
        end, ours = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(functools.partial(_sequencer, conf, end, tell if first else None), {end, tell})
        os.close(end)
        if first:
            os.close(tell)
        status = _watch_child(pid, life, ours)
        if status in (None, FENCED) or (first and status == DreError.code):
            return 0
        first = False
        failures = 0 if time.monotonic() - begun > 10 else failures + 1
        sys.stderr.write("dboxd: the sequencer ended; starting another one\n")
        if select.select([life], [], [], PAUSES[min(failures, len(PAUSES) - 1)])[0]:
            return 0


def _watch_child(pid: int, life: int, ours: int) -> int | None:
    """Wait for the end of the sequencer *pid* and return its status, or None when *life* ended and it with it."""
    gone = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([life, gone], [], [])
        os.close(ours)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(gone)
    return None if life in ready else os.waitstatus_to_exitcode(status)


def _sequencer(conf: Conf, end: int, tell: int | None) -> int:
    """The forked sequencer; how the first one's start went is told on *tell*."""

    def say(text: str) -> None:
        if tell is not None:
            os.write(tell, text.encode()[:4000])
            os.close(tell)

    try:
        return run(conf, lambda: say("0 "), end)
    except (DreError, OSError) as error:
        if tell is None:
            sys.stderr.write(f"dbox-sequencer: {error}\n")
        say(f"{error.code if isinstance(error, DreError) else MissingError.code} {error}")
        return DreError.code
