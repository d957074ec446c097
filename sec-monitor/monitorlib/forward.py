# SPDX-License-Identifier: Apache-2.0
"""Copies the intake's spool to a pipe, in a thread that may block for as long as the pipe's reader stalls.

Nothing is queued in memory: the spool is the queue. How far the reader is stands in a file, so that a new intake
(and a new reader) goes on where the old one was killed:

- by itself, the forwarder notes what it has written to the pipe;
- with a *resume* file, which dre-reorder writes, it starts from the oldest line that the reader has not passed on
  yet, and says so in the stream by a line `#resume <offset>`; the reader then knows which lines it has had already.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from monitorlib import spool


class Forwarder:
    """One thread; *wake* it when the spool has grown, *rewind* it when the reader was replaced."""

    def __init__(self, directory: Path, out: int, resume: Path | None, end: int, lost: Callable[[int], None]) -> None:
        """*end* is that of the spool now: without any note, what is older is history and not to be acted on again."""
        self._out = out
        self._end = end
        self._resume = resume
        self._lost = lost  # told how many octets were removed before they could be forwarded
        self._note = directory / "forwarded"
        self._reader = spool.Reader(directory, self._oldest())
        self._wake = threading.Event()
        self._rewind = resume is not None
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self.failed: OSError | None = None
        self.lines = 0  # that were written, those included that a new reader got once more
        self._since = 0.0  # time.monotonic() from which a write waits; 0: none does

    def start(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def wake(self) -> None:
        """The spool has grown."""
        self._wake.set()

    def rewind(self) -> None:
        """The reader was replaced: begin again with what it had not passed on, at the next *wake*.

        For a signal handler: it may interrupt a *wake*, whose lock it would wait for without end.
        """
        self._rewind = self._resume is not None

    def finish(self, wait: float) -> None:
        """Copy what is left, but for no longer than *wait* seconds; what remains is copied by the next intake."""
        self._stop = True
        self._wake.set()
        self._thread.join(wait)

    @property
    def offset(self) -> int:
        """Up to where in the spool lines were taken to be written."""
        return self._reader.offset

    @property
    def lag(self) -> float:
        """Seconds for which the reader has let us wait."""
        since = self._since
        return time.monotonic() - since if since else 0.0

    def _oldest(self) -> int:
        """Where the reader is, as noted by itself or by us; the end where nothing is noted."""
        for path in (self._resume, self._note):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if path:
                    return int(path.read_text().split()[0])
        return self._end

    def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                if self._rewind:
                    self._begin_again()
                while (lines := self._reader.read()) and not self._rewind:
                    self._write(lines)
                    self.lines += lines.count(b"\n")
                    self._remember()
                if self._reader.lost:
                    self._lost(self._reader.lost)
                    self._reader.lost = 0
                if self._stop and not self._rewind:
                    return
                self._wake.wait()
        except OSError as error:
            self.failed = error

    def _begin_again(self) -> None:
        self._rewind = False
        self._reader.close()
        self._reader.offset = self._oldest()
        first = self._reader.read()
        self._reader.offset -= len(first)  # read() has moved it to where the spool begins, if that is later
        # The newline ends whatever half line the old reader or writer left in the pipe.
        self._write(b"\n#resume %d\n" % self._reader.offset)

    def _write(self, octets: bytes) -> None:
        view = memoryview(octets)
        self._since = time.monotonic()
        while view:
            view = view[os.write(self._out, view) :]
        self._since = 0.0

    def _remember(self) -> None:
        if self._resume is None:
            # One short write(2) is all or nothing when only the program dies, so no temporary file is needed.
            fd = os.open(self._note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            os.pwrite(fd, b"%020d\n" % self._reader.offset, 0)
            os.close(fd)
