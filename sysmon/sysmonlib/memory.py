# SPDX-License-Identifier: Apache-2.0
"""The RAM of a running guest, read by guest-physical address while the guest goes on. Nothing here writes to it.

What is read is the guest's word: any octet may be anything, and change between two reads. An address outside the RAM
raises BadAddress, never wraps.
"""

import contextlib
import functools
import mmap
import os
import re
import select
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dre.errors import DreError, MissingError

if TYPE_CHECKING:
    import ctypes

PAGE = 4096
_FOUR_GIB = 1 << 32
_CHUNK = 1 << 22  # octets that a search takes at once
# Of the last octets of entries: bit 63 (in memory) or 62 (swapped) is set; see admin-guide/mm/pagemap of Linux.
_USED = re.compile(rb"[\x40-\xff]+")
_U64, _U32 = struct.Struct("<Q"), struct.Struct("<I")
_AT_ONCE = 1024  # IOV_MAX
_PIECE_MOST, _PIECES_MOST = 2048, 1 << 16  # octets of a piece that is read ahead, and pieces of one look
_AHEAD_MOST = 1 << 24  # octets of all of them
_NEAR = 512  # octets between two pieces that are read as one


class BadAddress(DreError):
    """An address of the guest where it has no memory, or none that is mapped."""


@dataclass(frozen=True)
class Layout:
    """Where RAM is in the guest-physical address space: *low* octets from 0, the rest from 4 GiB; as QEMU places it."""

    size: int
    low: int

    @classmethod
    def of(cls, size: int, machine: str) -> "Layout":
        """That of a PC of *size* octets; see pc_q35_init and pc_init1 of QEMU's hw/i386."""
        most, low = (0xB0000000, 0x80000000) if "q35" in machine else (0xE0000000, 0xC0000000)
        return cls(size, size if size < most else low)

    def offset(self, address: int, count: int) -> int:
        """The place of *count* octets in the back-end. Raises BadAddress where they are not all RAM."""
        if 0 <= address <= self.low - count:
            return address
        high = address - _FOUR_GIB
        if 0 <= high <= self.size - self.low - count:
            return self.low + high
        raise BadAddress(f"{address:#x}: not in the guest's memory")

    def address(self, offset: int) -> int:
        """The reverse of offset()."""
        return offset if offset < self.low else offset - self.low + _FOUR_GIB


@dataclass(frozen=True)
class _Plan:
    """Pieces of memory that are read at once, as so many *runs*, begin and length of each, of *count* octets."""

    places: dict[tuple[int, int], int]  # of each piece, an offset and a length, in what is read
    runs: "array[int]"
    count: int

    @classmethod
    def of(cls, pieces: Iterable[tuple[int, int]], start: int) -> "_Plan":
        """That of *pieces* at offsets from *start*."""
        places, runs, known, end = dict[tuple[int, int], int](), array("Q"), 0, -_NEAR - 1
        for offset, count in sorted(pieces):
            if offset > end + _NEAR:
                runs.extend((start + offset, 0))
                end = offset
            more = max(0, offset + count - end)
            end, known, runs[-1] = end + more, known + more, runs[-1] + more
            places[offset, count] = known - (end - offset)
        return cls(places, runs, known)


_NOTHING = _Plan({}, array("Q"), 0)


@functools.cache
def _libc() -> "ctypes.CDLL":
    import ctypes

    return ctypes.CDLL(None)


class Memory:
    """The RAM behind *fd*, at *start* of it: mapped where that shows the guest's pages, else read piece by piece."""

    def __init__(
        self,
        fd: int,
        layout: Layout,
        start: int = 0,
        mapped: bool = True,
        owner: int = -1,
        pages: int = -1,
        pid: int = 0,
    ) -> None:
        """Takes *fd* over, *owner*, the process whose it is (pidfd), and *pages*, which tells of its pages (pagemap).

        *pid* is that process where *fd* is its memory. Raises OSError where it cannot be mapped.
        """
        self.fd, self.layout, self._start, self._owner, self._pages = fd, layout, start, owner, pages
        self._pid = pid
        self._plain = layout.low - 8  # up to where an address is an offset
        self._plans: dict[str, _Plan] = {}
        self._places, self._octets = _NOTHING.places, b""
        self._used: set[tuple[int, int]] | None = None
        try:
            self._map = mmap.mmap(fd, layout.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=start) if mapped else None
            self._view = memoryview(self._map) if self._map is not None else None
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *error: object) -> None:
        if self._view is not None and self._map is not None:
            self._view.release()
            self._map.close()
        os.close(self.fd)
        for fd in (self._owner, self._pages):
            if fd >= 0:
                os.close(fd)

    def ended(self) -> bool:
        """Whether the process whose memory it is has ended: then nothing changes in it any more."""
        return self._owner >= 0 and bool(select.select([self._owner], [], [], 0)[0])

    def read(self, address: int, count: int) -> bytes:
        """*count* octets at *address*. Raises BadAddress."""
        return self._get(self.layout.offset(address, count), count)

    def u64(self, address: int) -> int:
        """The 64 bit number at *address*. Raises BadAddress."""
        offset = address if 0 <= address <= self._plain else self.layout.offset(address, 8)
        number: int
        (number,) = _U64.unpack_from(self._map, offset) if self._map is not None else _U64.unpack(self._get(offset, 8))
        return number

    def u32(self, address: int) -> int:
        """The 32 bit number at *address*. Raises BadAddress."""
        offset = self.layout.offset(address, 4)
        number: int
        (number,) = _U32.unpack_from(self._map, offset) if self._map is not None else _U32.unpack(self._get(offset, 4))
        return number

    @contextlib.contextmanager
    def ahead(self, look: str) -> Iterator[None]:
        """Meanwhile give what was read in the last *look* of this name as it is now, when all of it is read at once.

        For memory that is not mapped: a call of the kernel for each word is dear. Nothing of it is known any more
        afterwards, nor in the next look after one that failed.
        """
        if self._map is not None:
            yield
            return
        plan = self._plans.pop(look, _NOTHING)
        self._octets = self._gathered(plan)
        self._places, self._used = (plan if self._octets else _NOTHING).places, set()
        try:
            yield
            used = self._used
            if not used <= plan.places.keys() or len(plan.places) > 2 * len(used):
                plan = _Plan.of(used, self._start)
            if len(used) <= _PIECES_MOST and plan.count <= _AHEAD_MOST:
                self._plans[look] = plan
        finally:
            self._places, self._octets, self._used = _NOTHING.places, b"", None

    def _get(self, offset: int, count: int) -> bytes:
        """What was read ahead, or is now."""
        used = self._used
        if used is not None and count <= _PIECE_MOST:
            piece = offset, count
            place = self._places.get(piece)
            if place is not None:
                used.add(piece)
                return self._octets[place : place + count]
            if len(used) <= _PIECES_MOST:
                used.add(piece)
        return self._at(offset, count)

    def _gathered(self, plan: "_Plan") -> bytes:
        """The octets of *plan*; none where not all of them can be read."""
        if not plan.places:
            return b""
        octets = self._scattered(plan.runs, plan.count)
        if octets is not None:
            return octets
        begins, counts = plan.runs[0::2], plan.runs[1::2]
        try:
            return b"".join(self._at(begin - self._start, count) for begin, count in zip(begins, counts, strict=True))
        except BadAddress:
            return b""

    def _at(self, offset: int, count: int) -> bytes:
        if self._map is not None:
            return self._map[offset : offset + count]
        try:
            octets = os.pread(self.fd, count, self._start + offset)
        except OSError as error:
            raise BadAddress(f"{offset:#x}: {error.strerror}") from None
        if len(octets) != count:
            raise BadAddress(f"{offset:#x}: the guest's memory ends there")
        return octets

    def pages_with(self, text: bytes) -> Iterator[int]:
        """The addresses of the pages that begin with *text*.

        Only what the guest has touched is looked at: to read a hole of shared memory would make a page there.
        """
        for begin, end in self._touched():
            for first in range(begin, end, _CHUNK):
                for offset in self._each(first, min(first + _CHUNK, end), PAGE, text):
                    yield self.layout.address(offset)
                if self._map is not None:  # else all of the guest counts as memory of ours
                    self._map.madvise(mmap.MADV_DONTNEED, first, min(_CHUNK, end - first))

    def each(self, address: int, count: int, step: int, text: bytes) -> Iterator[int]:
        """The addresses with *text* among *address*, *address* + *step*, … below *address* + *count*.

        Raises BadAddress.
        """
        first = self.layout.offset(address, count)
        return (offset - first + address for offset in self._each(first, first + count, step, text))

    def _each(self, first: int, last: int, step: int, text: bytes) -> Iterator[int]:
        # The second octet of each, which is all that is read of nearly all of them.
        if self._view is not None:
            column = bytes(self._view[first + 1 : last : step])
        else:
            column = (step == PAGE and self._seconds(first, last)) or self._at(first, last - first)[1::step]
        place = column.find(text[1:2])
        while place >= 0:
            offset = first + place * step
            if offset + len(text) <= last and self._at(offset, len(text)) == text:
                yield offset
            place = column.find(text[1:2], place + 1)

    def _seconds(self, first: int, last: int) -> bytes | None:
        """The second octet of each page, which need not all be copied for it; None where we may not any more."""
        places = array("Q", [1]) * (2 * -(-(last - first) // PAGE))
        places[0::2] = array("Q", range(self._start + first + 1, self._start + last, PAGE))
        return self._scattered(places, len(places) // 2)

    def _scattered(self, places: "array[int]", count: int) -> bytes | None:
        """The *count* octets at *places* of the process, begin and length of each; None where we may not have them.

        See process_vm_readv(2). Who has become another user may not call it; and of a process that has ended meanwhile
        the number may be another's.
        """
        import ctypes

        if not self._pid:
            return None
        found, (begin, _), done = ctypes.create_string_buffer(count), places.buffer_info(), 0
        for first in range(0, len(places) // 2, _AT_ONCE):
            into = (ctypes.c_uint64 * 2)(ctypes.addressof(found) + done, count - done)
            some = ctypes.c_ulong(min(_AT_ONCE, len(places) // 2 - first))
            of = ctypes.c_void_p(begin + 16 * first)
            read = _libc().process_vm_readv(self._pid, into, ctypes.c_ulong(1), of, some, ctypes.c_ulong(0))
            if read < 0:
                return None
            done += read
        return found.raw if done == count and not self.ended() else None

    def _touched(self) -> Iterator[tuple[int, int]]:
        """The pieces of the back-end that hold data, as offsets."""
        end, last = 0, self.layout.size
        if self._pages >= 0:
            size = last // PAGE * 8
            entries = os.pread(self._pages, size, self._start // PAGE * 8).ljust(size, b"\xff")
            for run in _USED.finditer(entries[7::8]):
                yield run.start() * PAGE, run.end() * PAGE
            return
        if self._map is None:
            yield 0, last
            return
        while end < last:
            try:
                begin = os.lseek(self.fd, self._start + end, os.SEEK_DATA) - self._start
            except OSError:  # nothing but a hole, or a file system that does not tell
                if end == 0:
                    yield 0, last
                return
            end = min(last, os.lseek(self.fd, self._start + begin, os.SEEK_HOLE) - self._start)
            if begin < last:
                yield begin, end


def attach(pid: int, layout: Layout) -> Memory:
    """The RAM of the QEMU process *pid*: its shared back-end, else its private pages.

    Raises MissingError where it has no such memory, OSError where we may not read it.
    """
    place = Path(f"/proc/{pid}")
    owner = os.pidfd_open(pid)
    try:
        return _attached(place, layout, owner)
    except BaseException:
        os.close(owner)
        raise


def _attached(place: Path, layout: Layout, owner: int) -> Memory:
    private: tuple[int, bool] | None = None  # where, and whether nothing is in a page that was not touched
    for line in (place / "maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-([sp]) ([0-9a-f]+) (\S+) (\d+)", line)
        if found is None or int(found[2], 16) - int(found[1], 16) != layout.size:
            continue
        if found[3] == "p":
            private = private or (int(found[1], 16), found[6] == "0")
            continue
        for name in (place / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = name.stat()
                device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
                if (device, status.st_ino) == (found[5], int(found[6])):
                    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                    return Memory(fd, layout, int(found[4], 16), owner=owner)
    if private is None:
        raise MissingError(f"{place} has no memory of {layout.size} octets")
    begin, anonymous = private
    memory, pages = os.open(place / "mem", os.O_RDONLY | os.O_CLOEXEC), -1
    if anonymous:
        with contextlib.suppress(FileNotFoundError):  # a kernel without
            pages = os.open(place / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
    return Memory(memory, layout, begin, mapped=False, owner=owner, pages=pages, pid=int(place.name))
