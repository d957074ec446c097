# SPDX-License-Identifier: Apache-2.0
"""The local socket: who is at the other end, as the kernel tells it, and the process that asks the kernel.

Reading /proc/PID/exe of other users' processes needs root, which the web process has given up. So a small process, the
doorkeeper, accepts: it finds user and executable, hands connection and finding over, and never reads an octet of what
the peer sends. When the web process ends, so does it.

What is proven is the user; the executable is what that user's process runs at this moment. Processes of one user are
not protected from each other (ptrace, LD_PRELOAD), and a script's executable is its interpreter.
"""

import contextlib
import json
import os
import pwd
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dre.errors import DreError

SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
BACKLOG = 128
HANDOVER = 4_096  # octets of what is told with a connection; a longer path is no executable of ours
WAIT = 5.0  # seconds for the web process to take a connection; the peer tries again


@dataclass(frozen=True)
class Peer:
    """Who is at the other end: *executable* is empty where it is not known for certain."""

    user: str
    executable: str


def listen(path: Path) -> socket.socket:
    """A listening socket at *path* that every local user may connect to. The caller holds the lock of the server."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise DreError(f"{path}: cannot listen: {error.strerror or error}") from None
    return listener


def peer(connection: socket.socket) -> Peer | None:
    """Who connected; None for a user without a name."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
    try:
        return Peer(user, _executable(connection, pid, uid))
    except OSError:  # it ended, or we are not root
        return Peer(user, "")


def _executable(connection: socket.socket, pid: int, uid: int) -> str:
    """The path of what process *pid* runs, if that is the process that connected.

    The number may be another's by now. A pidfd names the process itself: while that one lives its number is not given
    again, so a directory of /proc opened before it was seen alive is its own, and stays so. Before Linux 6.5 the pidfd
    is made from the number, and what was born between connect and accept can only be another process of the same user.
    """
    pidfd = _pidfd(connection, pid)
    try:
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _ended(pidfd) or _effective_uid(process) != uid:
                return ""
            path = os.readlink("exe", dir_fd=process)
            # In a mount namespace of its own anything can have this path; and a replaced file is "… (deleted)".
            theirs, ours = os.stat("exe", dir_fd=process), Path(path).stat()
            return path if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) else ""
        finally:
            os.close(process)
    finally:
        os.close(pidfd)


def _pidfd(connection: socket.socket, pid: int) -> int:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(pid)


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _effective_uid(process: int) -> int:
    with open(os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)) as status:  # noqa: PTH123
        for line in status:
            if line.startswith("Uid:"):
                return int(line.split()[2])
    raise OSError("no Uid in status")


# --- The doorkeeper ---


def start(listener: socket.socket) -> socket.socket:
    """Fork the doorkeeper of *listener* and return what it hands over on. Call it before threads are started."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stderr.flush()
    if os.fork():
        theirs.close()
        listener.close()
        return ours
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the end of the web process is what counts
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        kept = {listener.fileno(), theirs.fileno()}
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in kept:
                with contextlib.suppress(OSError):
                    os.close(int(name))  # the lock of the server above all: it must end with the server
        keep(listener, theirs)
    finally:
        os._exit(0)


def keep(listener: socket.socket, channel: socket.socket) -> None:
    """Hand over every connection until the other end of *channel* is closed."""
    channel.settimeout(WAIT)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(channel, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if channel.fileno() in ready:
            return
        with contextlib.suppress(OSError):  # a peer that is gone, or a web process that is too busy to take it
            connection, _ = listener.accept()
            with connection:
                found = peer(connection)
                told = json.dumps({"user": found.user, "exe": found.executable} if found else {}).encode()
                if len(told) <= HANDOVER:
                    socket.send_fds(channel, [told], [connection.fileno()])


def receive(channel: socket.socket, take: Callable[[socket.socket, Peer | None], None]) -> None:
    """Give every connection that is handed over to *take*, until the doorkeeper ends or *channel* is shut down."""
    while True:
        told, fds, flags, _ = socket.recv_fds(channel, HANDOVER, 1)
        if not told:
            return
        fields = json.loads(told)
        for fd in fds:
            take(socket.socket(fileno=fd), Peer(fields["user"], fields["exe"]) if fields else None)
