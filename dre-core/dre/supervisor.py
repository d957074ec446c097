# SPDX-License-Identifier: Apache-2.0
"""A process of its own that runs lxc-attach for one that serves, and ends what that leaves, as a guard of dre.attached
does for a single call: it is forked once and not for each program, and from there a program is quickly begun.
"""

import contextlib
import fcntl
import functools
import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from dre import attached, run
from dre.errors import DreError
from dre.run import Captured


class Supervisor:
    """A process that runs lxc-attach for us, one at a time. It begins with the first and ends with us.

    It outlives whoever kills us, and what an lxc-attach leaves is given to it: no other process has to be looked at.
    """

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._pid = 0

    def run(self, argv: Sequence[str], stdin: bytes, limit: int) -> Captured:
        """Run *argv*, a path and its arguments, as run.captured does.

        Raises OSError where that cannot begin, and DreError where the supervisor is killed.
        """

        def begin(streams: Sequence[int]) -> int:
            socket.send_fds(channel, [b"."], streams)
            channel.sendall(pickle.dumps(argv))
            return channel.fileno()

        def end() -> int:
            with channel.makefile("rb") as answers:
                answer = pickle.load(answers)  # noqa: S301 - from the process that we have forked
            if isinstance(answer, OSError):
                raise answer
            return int(answer)

        if self._channel is None:
            self._channel, self._pid = self._forked()
        channel = self._channel
        try:
            return run.captured(begin, end, stdin, limit)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            channel.close()
            self._channel = None
            os.waitpid(self._pid, 0)
            raise DreError(f"{argv[0]}: the process that ran it has been killed") from None

    def _forked(self) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        owner = os.pidfd_open(os.getpid())
        pid = os.fork()
        if pid == 0:
            try:
                _supervise(theirs, owner)
            finally:
                os._exit(0)
        theirs.close()
        os.close(owner)
        return ours, pid


def _supervise(channel: socket.socket, owner: int) -> None:
    """The supervisor's work, until the process behind *owner* has ended, and all that was run for it."""
    attached.stand_apart([channel.fileno(), owner])
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    run.adopt()
    child: int | None = None
    news, pause = channel.fileno(), None  # news are another request, or the end of the child
    while True:
        ready = select.select([owner, news], [], [], pause)[0]
        if owner in ready:
            break
        if news in ready and child is None:
            try:
                child = _begun(channel)
                news = os.pidfd_open(child)
            except (EOFError, pickle.UnpicklingError):  # nobody asks any more
                break
            except OSError as error:
                _tell(channel, error)
        elif news in ready and child is not None:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.close(news)
            child, news = None, channel.fileno()
            _tell(channel, status)
        pause = _next(pause) if _end_children(child) else None
    while _end_children(None):
        pause = _next(pause)
        time.sleep(pause)


def _tell(channel: socket.socket, answer: int | OSError) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # as the next look at the owner will show
        channel.sendall(pickle.dumps(answer))


def _begun(channel: socket.socket) -> int:
    """Start what is asked for by *channel*. Raises OSError, and EOFError or UnpicklingError where the request ends."""
    octet, streams, _, _ = socket.recv_fds(channel, 1, 3)
    if not octet:
        raise EOFError
    try:
        for fd in streams:
            os.set_inheritable(fd, False)
        with channel.makefile("rb") as requests:
            argv = pickle.load(requests)  # noqa: S301 - from the process that forked this one
        actions = [(os.POSIX_SPAWN_DUP2, stream, fd) for fd, stream in enumerate(streams)]
        # As Python has them, they would stay ignored.
        signals = (signal.SIGPIPE, signal.SIGXFSZ)
        return os.posix_spawn(_sealed(argv[0]), argv, os.environ, file_actions=actions, setsigdef=signals)
    finally:
        for fd in streams:
            os.close(fd)


def _sealed(program: str) -> str:
    """Where to execute LXC's *program*: a copy in memory that nobody can change, so that no app can by way of its
    /proc/PID/exe. Without it LXC makes one each time and begins anew from there."""
    now = Path(program).stat()
    try:
        return f"/proc/self/fd/{_copy(program, now.st_dev, now.st_ino, now.st_mtime_ns)}"
    except OSError:
        return program  # the host forbids such files


@functools.lru_cache
def _copy(program: str, *identity: int) -> int:
    """The copy of *program*, which is another with another *identity*."""
    with open(program, "rb") as stream:
        octets = stream.read()
    fd = os.memfd_create(Path(program).name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as stream:
            stream.write(octets)
        os.fchmod(fd, 0o700)
        # Exactly those that LXC looks for.
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def _end_children(spared: int | None) -> bool:
    """SIGKILL to the processes that we have started, or been given, but to *spared*; whether there were any.

    They may have started others just before, and those of a frozen app are there until it is thawed.
    """
    others = [pid for pid in run.children(os.getpid()) if pid != spared]
    for pid in others:
        run.kill_family(pid)
        os.waitpid(pid, os.WNOHANG)
    return bool(others)


def _next(pause: float | None) -> float:
    """The seconds to wait when that was the last pause: there is no event for an end of one of several processes."""
    return 0.005 if pause is None else min(pause * 2, 1.0)
