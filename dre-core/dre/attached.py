# SPDX-License-Identifier: Apache-2.0
"""What lxc-attach runs in an app ends with it, also when it is killed: LXC leaves it running, with the app's limits
used up by what nobody waits for, and no checkpoint possible.

Who is about to become lxc-attach forks a guard first; who serves has a dre.supervisor. Neither is a jailer: what the
program put into a session of its own, or into the background of the app before it ended, goes on as the app's.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dre import run

MARK = "DRE_ATTACHED"  # in the environment of lxc-attach and of what it forks, but not of the program


def guard(init: int | None, owner: int | None = None, mend: Callable[[], None] | None = None) -> None:
    """In the process that becomes lxc-attach, into the app of the first process *init*: have its program end with it.

    With *owner*, which has forked this process, it ends with that; where that was killed *mend* is called, on the
    same stdin, stdout and stderr.
    """
    if init is None:  # the app has ended, as lxc-attach will say
        return
    us = os.getpid()
    os.environ[MARK] = str(us)
    fds = [os.pidfd_open(us)]
    if owner is not None:
        with contextlib.suppress(ProcessLookupError):
            fds.append(os.pidfd_open(owner))
        if os.getppid() != owner:  # it ended before that
            os._exit(1)
    with contextlib.suppress(OSError):  # so has the app
        inside = _namespace(init)
        stands, ready = os.pipe()
        if os.fork() == 0:
            try:
                _stand(fds, f"{MARK}={us}", inside, os.getsid(0), mend)
            finally:
                os._exit(0)
        os.close(ready)
        os.read(stands, 1)  # until it has a session of its own, a signal to our group would end it with us
        os.close(stands)
    for fd in fds:
        os.close(fd)


def _stand(fds: Sequence[int], mark: str, inside: str, session: int, mend: Callable[[], None] | None) -> None:
    """The guard's work: wait for the end of the processes behind *fds*, the first of which becomes lxc-attach."""
    stand_apart(fds)
    os.chdir("/")
    ended = select.select(fds, [], [])[0]
    if fds[0] not in ended:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fds[0], signal.SIGKILL)
        select.select(fds[:1], [], [])
    pause, before = 0.005, set[int]()
    while True:
        left, gone = _left(mark, inside, session)
        if not left and gone <= before:
            break
        before |= gone  # one of them may have made another meanwhile, that is not in the list yet
        for pid in left:
            run.kill_family(pid)
        time.sleep(pause)  # there is no event for the end of what is not ours; and a frozen app ends when it is thawed
        pause = min(pause * 2, 1.0)
    if mend and fds[-1] in ended:
        mend()


def stand_apart(fds: Iterable[int]) -> None:
    """In a process that was forked: let go of what it has of its parent's, but its standard streams and *fds*."""
    os.setsid()  # what is sent to the session, or to a group in it, is not for us
    Path("/proc/self/comm").write_text("dre-app guard")  # for people
    low = 3
    for fd in (*sorted(fds), os.sysconf("SC_OPEN_MAX")):
        os.closerange(low, fd)
        low = fd + 1


def _left(mark: str, inside: str, session: int) -> tuple[list[int], set[int]]:
    """What lxc-attach left: processes of itself, which may be about to make its program, and that program. And of
    which it cannot be told, for they have just ended."""
    found, gone = [], set()
    # They have been given to somebody else by now: to whom we have been, too.
    for pid in run.children(os.getppid()):
        try:
            environment = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
            if mark.encode() in environment or (_namespace(pid) == inside and os.getsid(pid) == session):
                found.append(pid)
            elif environment == [b""]:  # as that of one that has ended is, if not yet waited for
                gone.add(pid)
        except OSError:
            gone.add(pid)
    return found, gone


def _namespace(pid: int) -> str:
    return str(Path("/proc", str(pid), "ns/pid").readlink())
