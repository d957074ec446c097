# SPDX-License-Identifier: Apache-2.0
"""What comes out of a pipe, kept on disk so that a kill -9 of the reader at any moment loses none of it.

Lines are first copied from the pipe (tee(2) leaves them in it), then appended to a spool, then taken out of the pipe;
a reader that died in between finds out by comparing the two. Whoever holds both ends of the pipe open must outlive us.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import time
from pathlib import Path

from monitorlib.spool import Reader, Spool

SPOOL = 128 * 1024 * 1024  # octets that the spool keeps
PIPE_SIZE = 1024 * 1024
LONG = 65536  # octets without a newline that are no line any more
_HALF = 0.01  # seconds until the pipe is looked at again for the rest of a line
_NONBLOCK = 2  # SPLICE_F_NONBLOCK
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Mark:
    """Two numbers in a file, overwritten in place by one short write: octets taken, lines written."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        found = os.pread(self._fd, 100, 0).split()
        self.is_new = len(found) != 2
        self.taken, self.written = (0, 0) if self.is_new else map(int, found)

    def update(self) -> None:
        """Note the numbers as they are now."""
        os.pwrite(self._fd, b"%020d %020d\n" % (self.taken, self.written), 0)


class Inbox:
    """The pipe *fd* behind its spool in *directory*; `mark.taken` tells up to where the spool's lines left the pipe."""

    def __init__(self, fd: int, directory: Path, mark: Mark) -> None:
        self._fd = fd
        self._mark = mark
        self._spool = Spool(directory, limit=SPOOL)
        self._copy = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # a smaller one copies less at once
            fcntl.fcntl(self._copy[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.dropped = 0  # octets that were no lines
        if mark.is_new:
            mark.taken = self._spool.end
        self._recover()

    @property
    def waits(self) -> bool:
        """Whether there is something in the pipe."""
        return bool(select.select([self._fd], [], [], 0)[0])

    @property
    def end(self) -> int:
        """The offset behind the last line in the spool."""
        return self._spool.end

    def spooled(self, begin: int, end: int) -> list[bytes]:
        """The lines in the spool between two offsets, the first of which may lie within a line that is left out."""
        reader = Reader(self._spool.directory, begin)
        octets = b"".join(iter(lambda: reader.read(1 << 20), b""))[: max(0, end - begin)]
        reader.close()
        return octets.split(b"\n")[:-1]

    @property
    def start(self) -> int:
        """The offset of the first line that the spool still keeps."""
        return int(min(self._spool.directory.glob("*.jsonl")).stem)

    def take(self) -> list[bytes] | None:
        """The next lines, none when there are none just now; None when no writer has the pipe open any more."""
        octets = self._peek(PIPE_SIZE)
        if octets is None:
            return None
        whole = octets.rfind(b"\n") + 1
        if not whole:
            if len(octets) >= LONG:
                self.dropped += self._remove(len(octets))
            elif octets:
                time.sleep(_HALF)
            return []
        lines = octets[:whole]
        self._spool.append(lines)
        self._remove(whole)
        self._mark.taken = self._spool.end
        self._mark.update()
        return lines.split(b"\n")[:-1]

    def close(self) -> bytes:
        """Take what is left without a newline: the input has ended within a line."""
        rest = self._peek(PIPE_SIZE) or b""
        self._remove(len(rest))
        return rest

    def _peek(self, most: int) -> bytes | None:
        """A copy of what stands in the pipe; None at its end."""
        got = _LIBC.tee(self._fd, self._copy[1], ctypes.c_size_t(most), _NONBLOCK)
        if got < 0:
            number = ctypes.get_errno()
            if number in (11, 4):  # EAGAIN, EINTR
                return b""
            raise OSError(number, f"tee: {os.strerror(number)}")
        if not got:
            return None
        parts = []
        while got > 0:
            parts.append(os.read(self._copy[0], got))
            got -= len(parts[-1])
        return b"".join(parts)

    def _remove(self, count: int) -> int:
        left = count
        while left:
            left -= len(os.read(self._fd, left))
        return count

    def _recover(self) -> None:
        """Take out of the pipe what a reader before us spooled but did not take out, or not all of it."""
        self._mark.taken = min(self._mark.taken, self._spool.end)
        if self._mark.taken < self._spool.end:
            reader = Reader(self._spool.directory, self._mark.taken)
            spooled = b"".join(iter(lambda: reader.read(1 << 20), b""))
            reader.close()
            self._remove(overlap(spooled, self._peek(PIPE_SIZE) or b""))
        self._mark.taken = self._spool.end
        self._mark.update()


def overlap(spooled: bytes, waiting: bytes) -> int:
    """The most octets that *spooled* ends with and *waiting* begins with."""
    at = max(0, len(spooled) - len(waiting))
    while at < len(spooled):
        if waiting.startswith(spooled[at:]):
            return len(spooled) - at
        at = spooled.find(waiting[:1], at + 1)
        if at < 0:
            break
    return 0


def wait(fd: int, wake: int, seconds: float) -> bool:
    """Wait until there is something in *fd*, or it has ended, or *wake* has something; whether it was *wake*."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(wake, select.POLLIN)
    return any(found == wake for found, _ in poll.poll(max(0.0, seconds) * 1000))


def end_with_parent(parent: int) -> None:
    """In a child: be killed when the *parent* dies, or now if it has died already."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
