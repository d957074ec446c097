# SPDX-License-Identifier: Apache-2.0
"""The intake's spool: what was taken in, in order of arrival, in segment files, addressed by octet offset.

A segment `<offset of its first octet, 20 digits>.jsonl` holds whole lines. "Spooled" means written to the kernel: it
survives the death of any program, not of the machine. Looking an event up by id is dre.event.find.
"""

import contextlib
import os
from pathlib import Path

from dre import files

SEGMENT = 4 * 1024 * 1024
LIMIT = 64 * 1024 * 1024  # of all segments together; the oldest go first
CHUNK = 65536


class Spool:
    """The one writer. Raises OSError when the disk does not take a line."""

    def __init__(self, directory: Path, segment: int = SEGMENT, limit: int = LIMIT) -> None:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.directory = directory
        self.segment = segment
        self.limit = limit
        found = segments(directory)
        self.start, path = found[-1] if found else (0, directory / _name(0))
        self._open(path)
        self.size = _cut_torn_line(self._fd)

    def _open(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)

    @property
    def end(self) -> int:
        """The offset behind the last line."""
        return self.start + self.size

    def append(self, lines: bytes) -> None:
        """Append whole *lines*; all of them are in the file when this returns."""
        if self.size >= self.segment:
            self._roll()
        view = memoryview(lines)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)  # no half line; at worst the next start cuts it off
            raise
        self.size += len(lines)

    def _roll(self) -> None:
        end = self.end
        os.close(self._fd)
        self._open(self.directory / _name(end))
        self.start, self.size = end, 0
        files.fsync_dir(self.directory)
        found = segments(self.directory)
        while len(found) > 1 and end - found[0][0] > self.limit:
            found.pop(0)[1].unlink(missing_ok=True)

    def close(self) -> None:
        """Close the segment in use."""
        os.close(self._fd)


class Reader:
    """Reads the spool from an offset on; the writer may be at work in another thread or process."""

    def __init__(self, directory: Path, offset: int) -> None:
        self.directory = directory
        self.offset = offset
        self.lost = 0  # octets that were removed before they were read
        self._segment = -1
        self._fd = -1

    def read(self, most: int = CHUNK) -> bytes:
        """The next whole lines, at most *most* octets of them (one line at least); empty at the end."""
        octets = self._some(most)
        whole = octets.rfind(b"\n") + 1
        self.offset += whole
        return octets[:whole]

    def _some(self, most: int) -> bytes:
        for _ in range(2):
            if self._fd >= 0:
                octets = os.pread(self._fd, most, self.offset - self._segment)
                if octets:
                    return octets
            if not self._seek():
                return b""
        return b""

    def _seek(self) -> bool:
        """Open the segment that holds the offset; False when that is the one at whose end we are."""
        found = segments(self.directory)
        if not found:
            return False
        if self.offset < found[0][0]:
            self.lost += found[0][0] - self.offset
            self.offset = found[0][0]
        start, path = max((item for item in found if item[0] <= self.offset), default=found[0])
        if start == self._segment:
            return False
        self.close()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False  # just removed; the next call finds the one after it
        self._segment = start
        # An offset from before a crash may lie behind the end of a spool that was emptied by hand.
        self.offset = min(self.offset, start + os.fstat(self._fd).st_size)
        return True

    def close(self) -> None:
        """Close the segment that is open."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._segment = -1


def segments(directory: Path) -> list[tuple[int, Path]]:
    """(offset, path) of each segment, the oldest first."""
    found = [(int(path.stem), path) for path in directory.glob("*.jsonl") if path.stem.isdecimal()]
    return sorted(found)


def tail(directory: Path, octets: int) -> bytes:
    """About the last *octets* of the spool, whole lines."""
    found = segments(directory)
    if not found:
        return b""
    end = found[-1][0] + found[-1][1].stat().st_size
    reader = Reader(directory, max(found[0][0], end - octets))
    skip = reader.offset > found[0][0]
    parts = []
    while chunk := reader.read():
        parts.append(chunk)
    reader.close()
    joined = b"".join(parts)
    return joined[joined.find(b"\n") + 1 :] if skip else joined


def _name(offset: int) -> str:
    return f"{offset:020d}.jsonl"


def _cut_torn_line(fd: int) -> int:
    """Cut what stands behind the last newline (a write that a crash cut short); the size that is left."""
    size = os.fstat(fd).st_size
    back = min(size, CHUNK)
    whole = os.pread(fd, back, size - back).rfind(b"\n") + 1
    if whole < back:
        size = size - back + whole
        os.ftruncate(fd, size)
    return size
