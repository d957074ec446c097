# SPDX-License-Identifier: Apache-2.0
"""Run rules on recorded events in a process that can do nothing but read these and say what the rules would write.

The process opens nothing more: no file, no socket. It starts nothing, it owns nothing when root calls it, and its time
and memory are bounded. FIFOs of DRE_MONITOR_PIPES are never touched.
"""

import contextlib
import ctypes
import json
import os
import pwd
import resource
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager

from dre import privilege, run
from dre.errors import DreError, MissingError, TimedOutError

from monitorlib.correlate import Correlator

SECONDS = 300  # of processor time, for 10 million lines of which each makes a rule write
OCTETS = 1 << 29  # of address space, rules and interpreter included
BLOCK = 1 << 16
USERS = ("dre-sec", "nobody")
_NO_NEW_PRIVS = 38  # linux/prctl.h
_MEMORY = 3  # status of the process when it ran out of memory


def replay(
    correlator: Correlator,
    events: int,
    watched: Callable[[Correlator], AbstractContextManager[None]],
    seconds: int = SECONDS,
    octets: int = OCTETS,
) -> Generator[dict[str, object], None, None]:
    """What *correlator* writes for the lines of the descriptor *events*, each with its reason; see dre-correlate(8).

    The last row has no `pipe`: how many `lines` were read, how many of them `refused`, as they are no events, and for
    how many a pattern was too `slow`. *watched* keeps patterns from taking too long.
    Raises TimedOutError after *seconds* of processor time, DreError when *octets* do not suffice.
    """
    libc = ctypes.CDLL(None)
    parent, user = os.getpid(), _user()
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        status = 1
        try:
            run.die_with(parent)
            os.dup2(events, 0)
            os.dup2(theirs, 1)
            os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
                _confine(user, seconds, octets)
                with watched(correlator):
                    _replay(correlator)
                status = 0
        except MemoryError:
            status = _MEMORY
        except OSError as error:
            os.write(2, f"dre-rules: cannot replay: {error}\n".encode())
        finally:
            os._exit(status)
    os.close(theirs)
    try:
        with open(ours, "rb") as stream:
            yield from map(json.loads, stream)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if status == -signal.SIGXCPU:
        raise TimedOutError(f"the rules take more than {seconds} s of processor time for these events")
    if status == _MEMORY:
        raise DreError(f"the rules take more than {octets >> 20} MiB of memory for these events")
    if status:
        raise DreError(f"the replay ended with status {status}")


def _user() -> pwd.struct_passwd | None:
    """Whom root becomes; None for others, who stay who they are."""
    if os.geteuid():
        return None
    for name in USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise MissingError(f"there is neither a user {' nor '.join(USERS)}")


def _confine(user: pwd.struct_passwd | None, seconds: int, octets: int) -> None:
    """Give up what a replay does not need. Standard input, output and error stay open, and nothing else opens."""
    limits = {
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: octets,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU at the first tells it from other ends
    if user:
        privilege.become(user.pw_uid, user.pw_gid)


def _replay(correlator: Correlator) -> None:
    half = b""
    while block := os.read(0, BLOCK):
        *lines, half = (half + block).split(b"\n")
        _take(correlator, lines)
    if half:
        _take(correlator, [half])
    slow = sum(rule.slow for rules in correlator.rules.files for rule in rules)
    _say([{"lines": correlator.lines, "refused": correlator.refused, "slow": slow}])


def _take(correlator: Correlator, lines: list[bytes]) -> None:
    memory = correlator.memory
    correlator.feed(lines)
    _say({**(item.why or {}), "pipe": item.pipe, "output": item.text.decode(errors="replace")} for item in memory.out)
    memory.out.clear()
    memory.logged.clear()


def _say(rows: Iterable[dict[str, object]]) -> None:
    octets = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    while octets:
        octets = octets[os.write(1, octets) :]
