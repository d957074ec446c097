# SPDX-License-Identifier: Apache-2.0
"""Files behind stdin, stdout and stderr of a program that changes them, lxc-attach: they stay as they are.

LXC gives whatever stands there, if it is not /dev/null, to the user inside and the mode 0700 (fix_stdio_permissions):
right for the terminal of a login, wrong for `< /etc/passwd`, `> /srv/www/page` or `< /dev/urandom`, which nobody else
could read or write any more. It knows nothing of containers, and does nothing for pipes and terminals.
"""

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

MADE = 0o700  # the mode that LXC gives
LOOK = 0.005  # seconds between two looks whether it has been given
WATCH = 10.0  # seconds in which the program has begun, on a busy host too


@dataclass(frozen=True)
class File:
    """What stands behind a descriptor, and to whom it belonged."""

    fd: int
    mode: int
    uid: int
    gid: int

    def put_right(self) -> bool:
        """Undo LXC's change where it has been made; whether it was."""
        now = os.fstat(self.fd)
        if stat.S_IMODE(now.st_mode) != MADE:
            return False
        os.fchown(self.fd, self.uid, self.gid)
        os.fchmod(self.fd, self.mode)
        return True


def endangered() -> list[File]:
    """What LXC would change and somebody else may want: files, devices and FIFOs that have a name."""
    found = []
    for fd in (0, 1, 2):
        try:
            now = os.fstat(fd)
            named = str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("/")
        except OSError:
            continue  # closed
        if named and not os.isatty(fd) and not os.path.samestat(now, Path(os.devnull).stat()):
            found.append(File(fd, stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid))
    return [item for item in found if item.mode != MADE]


def run(argv: Sequence[str], files: Sequence[File], first: Callable[[int, Callable[[], None]], None]) -> int:
    """Run *argv* on our stdin, stdout and stderr and put *files* right; its status, as a shell has it.

    Signals that end us reach it, but for SIGKILL. *first* is called in its process before that becomes it, with ours
    and with what then is left to be done.
    """

    def mend() -> None:
        for item in files:
            item.put_right()

    child = subprocess.Popen(argv, preexec_fn=partial(first, os.getpid(), mend))

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # of a terminal they reach the child by themselves
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    left, end = list(files), time.monotonic() + WATCH
    # There is no event for a change of mode that is not the file system's own, as of a device.
    while left and child.poll() is None and time.monotonic() < end:
        left = [item for item in left if not item.put_right()]
        time.sleep(LOOK)
    status = child.wait()
    for item in left:
        item.put_right()
    return status if status >= 0 else 128 - status
