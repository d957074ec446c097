# SPDX-License-Identifier: Apache-2.0
"""The kernel of a running guest: found in its memory by what it says there of itself, and read by its own addresses.

It leaves its vmcoreinfo for crash dumps (Documentation/admin-guide/kdump/vmcoreinfo.rst of Linux): where its page table
is, its symbols (sysmonlib.kallsyms) and, by those, its types (sysmonlib.btf). So nothing is configured for a kernel.
"""

import contextlib
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dre.errors import MissingError

from sysmonlib import btf, kallsyms
from sysmonlib.memory import PAGE, BadAddress, Memory

_TEXT_MOST = 2 * PAGE  # of a vmcoreinfo
_IMAGE = 0xFFFFFFFF80000000  # where the kernel's image is mapped, and phys_base counts from
_IMAGE_MOST = 1 << 30
_WORDS = 1 << 64
_PRESENT, _LARGE = 1, 1 << 7
_TABLE = 512 * PAGE  # what a page table of the last level maps
_FRAME = 0x000FFFFFFFFFF000
_TABLES_MOST = 1 << 14  # page tables of one program; they map 32 GiB
_USER = 1 << 2
_TELLING_MOST, _READ_MOST = 4096, 8  # pages that tell of a kernel; of them, those whose page table holds
_TYPES_MOST = 1 << 26  # octets of BTF
_ALIVE_WITHIN = 1.5  # seconds in which the clock of a kernel that runs moves on
_NEEDED = ("SYMBOL(swapper_pg_dir)", "NUMBER(phys_base)", "SYMBOL(kallsyms_names)", "SYMBOL(kallsyms_num_syms)")


class Space:
    """Kernel addresses of one kernel in *memory*, whose vmcoreinfo is *told*."""

    def __init__(self, memory: Memory, told: dict[str, str]) -> None:
        """Raises MissingError where *told* lacks what is needed."""
        self.memory, self.told = memory, told
        lacking = [key for key in _NEEDED if key not in told]
        if lacking:
            release = told.get("OSRELEASE", "?")
            raise MissingError(f"its kernel {release[:60]!r} does not tell {lacking[0]}; Linux 6.0 and newer do")
        try:
            self._slide = int(told["NUMBER(phys_base)"]) - _IMAGE
            self.table = self.address("swapper_pg_dir")
            self._levels = 5 if told.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
        except ValueError:
            raise MissingError("its vmcoreinfo is damaged") from None
        self._frames: dict[int, int] = {}
        self._end = memory.layout.address(memory.layout.size - 1) + 1
        self.direct = _WORDS  # where all physical memory is mapped: nowhere before there are symbols

    def address(self, name: str) -> int:
        """That of a symbol in the vmcoreinfo. Raises ValueError."""
        return int(self.told[f"SYMBOL({name})"], 16)

    def physical(self, address: int) -> int:
        """Where *address* is in physical memory. Raises BadAddress."""
        if _IMAGE <= address < _IMAGE + _IMAGE_MOST:
            return address + self._slide
        if 0 <= address - self.direct < self._end:  # what is behind may be anywhere (KASLR)
            return address - self.direct
        page = address & ~(PAGE - 1)
        frame = self._frames.get(page)
        if frame is None:
            frame = self._frames[page] = self.walk(page)
        return frame + address - page

    def forget(self) -> None:
        """Look up anew where addresses are that the page table has: what was mapped may have changed."""
        self._frames.clear()

    def walk(self, address: int) -> int:
        """Where the kernel's page table has *address*. Raises BadAddress."""
        entry, level = self._entry(address, 0)
        rest = (1 << 12 + 9 * level) - 1
        return (entry & _FRAME & ~rest) | (address & rest)

    def _entry(self, address: int, last: int) -> tuple[int, int]:
        """What the page table has of *address* at its level *last*, or at that of a large page; and which level."""
        if not 0 <= address < _WORDS:
            raise BadAddress(f"{address:#x}: no address")
        entry = self.table + self._slide
        for level in range(self._levels - 1, last - 1, -1):
            entry = self.memory.u64((entry & _FRAME) + (address >> 12 + 9 * level & 511) * 8)
            if not entry & _PRESENT:
                break
            if level == last or (level < 3 and entry & _LARGE):
                return entry, level
        raise BadAddress(f"{address:#x}: not mapped")

    def mapped(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The pages between two addresses that are mapped each by itself: their addresses, and those in memory.

        What cannot be read of the page table is left out.
        """
        for place in range(begin, end, _TABLE):
            with contextlib.suppress(BadAddress):
                entry, level = self._entry(place, 1)
                if level == 1 and not entry & _LARGE:
                    entries = struct.unpack("<512Q", self.memory.read(entry & _FRAME, PAGE))
                    for number, page in enumerate(entries):
                        if page & _PRESENT:
                            yield place + number * PAGE, page & _FRAME

    def user(self, table: int) -> Iterator[tuple[int, int, int, int]]:
        """What the page table *table* of a program maps for it: address, place in memory, octets, entry.

        What cannot be read of the table is left out. Raises BadAddress where the table itself cannot, or is no such.
        """
        left = _TABLES_MOST
        waiting = [(self.physical(table), self._levels - 1, 0)]
        while waiting:
            place, level, base = waiting.pop()
            left -= 1
            if left < 0:
                raise BadAddress(f"{table:#x}: more page tables than a program has")
            try:
                entries = struct.unpack("<512Q", self.memory.read(place, PAGE))
            except BadAddress:
                if base == 0 and level == self._levels - 1:
                    raise
                continue
            deeper = []
            for number, entry in enumerate(
                entries[: 256 if level == self._levels - 1 else 512]
            ):  # the rest: the kernel's
                if entry & (_PRESENT | _USER) == _PRESENT | _USER:
                    address, span = base + (number << 12 + 9 * level), 1 << 12 + 9 * level
                    if level and not (level < 3 and entry & _LARGE):
                        deeper.append((entry & _FRAME, level - 1, address))
                    else:
                        yield address, entry & _FRAME & ~(span - 1), span, entry
            waiting += reversed(deeper)

    def u64(self, address: int) -> int:
        """The 64 bit number at *address*. Raises BadAddress."""
        place = address - self.direct  # where most are, and more of a scan's time than this takes nothing
        return self.memory.u64(place if 0 <= place < self._end else self.physical(address))

    def u32(self, address: int) -> int:
        """The 32 bit number at *address*. Raises BadAddress."""
        return self.memory.u32(self.physical(address))

    def read(self, address: int, count: int) -> bytes:
        """*count* octets from *address*. Raises BadAddress."""
        if not 0 <= address - self.direct < self._end:
            pieces = []
            while count > 0:
                part = min(count, PAGE - address % PAGE)
                pieces.append(self.memory.read(self.physical(address), part))
                address, count = address + part, count - part
            return b"".join(pieces)
        return self.memory.read(self.physical(address), count)

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """*count* 64 bit numbers from *address*. Raises BadAddress."""
        return struct.unpack(f"<{count}Q", self.read(address, 8 * count))

    def image(self, begin: int, end: int) -> bytes:
        """What is between two addresses of the kernel's image. Raises BadAddress."""
        if not _IMAGE <= begin <= end <= _IMAGE + _IMAGE_MOST:
            raise BadAddress(f"{begin:#x}: not in the kernel's image")
        return self.memory.read(begin + self._slide, end - begin)

    def text(self, address: int, most: int) -> str:
        """The characters up to NUL, at most *most*, unprintable ones as `?`. Raises BadAddress."""
        octets = self.read(address, most).split(b"\0", 1)[0]
        return "".join(chr(octet) if 0x20 <= octet < 0x7F else "?" for octet in octets)


@dataclass(frozen=True)
class Kernel:
    """What is known of the kernel that runs in a guest."""

    release: str
    space: Space
    symbols: dict[str, int]
    types: btf.Types
    table: kallsyms.Table

    def symbol(self, name: str) -> int:
        """The address of *name*. Raises MissingError."""
        try:
            return self.symbols[name]
        except KeyError:
            raise MissingError(f"its kernel {self.release} has no symbol {name}") from None

    def same(self, other: "Kernel") -> bool:
        """Whether *other* is this one, of the same boot."""
        return (self.space.told, self.space.direct) == (other.space.told, other.space.direct)

    def clock(self) -> int:
        """A number that grows while this kernel runs, if not all the time; -1 where it cannot be read."""
        try:
            return self.space.u64(self.symbols["jiffies_64"])
        except (KeyError, BadAddress):
            return -1


def find(memory: Memory, symbols: frozenset[str], types: frozenset[str], begins: tuple[str, ...] = ()) -> Kernel:
    """The kernel that runs in *memory*, with those of *symbols* and *types* that it has, and symbols of *begins*.

    Raises MissingError, with the reason, where there is none that can be read.
    """
    found: list[Kernel] = []
    reason = "no Linux kernel tells of itself in its memory: it has not booted, or has no vmcoreinfo"
    for number, address in enumerate(memory.pages_with(b"OSRELEASE=")):
        if number >= _TELLING_MOST or len(found) >= _READ_MOST:
            raise MissingError("too many pages of its memory tell of a kernel")
        try:
            found.append(_opened(memory, address, symbols, types, begins))
        except MissingError as error:
            reason = str(error)
        except BadAddress as error:
            reason = f"what its kernel tells of itself leads nowhere: {error}"
    if len(found) > 1:  # one that was left by a reboot, or that a program made up
        found = _alive(found)
        reason = "several kernels are in its memory, and which one runs cannot be told"
    if len(found) != 1:
        raise MissingError(reason)
    return found[0]


def _opened(
    memory: Memory, address: int, symbols: frozenset[str], types: frozenset[str], begins: tuple[str, ...]
) -> Kernel:
    text = memory.read(address, _TEXT_MOST).split(b"\0", 1)[0].decode("ascii", errors="replace")
    space = Space(memory, dict(re.findall(r"^([^=\n]{1,100})=([^\n]{0,100})$", text, re.MULTILINE)))
    if space.walk(space.table) != space.physical(space.table):
        raise MissingError("the page table that its kernel tells of does not hold")
    wanted = symbols | {"__start_BTF", "__stop_BTF", "page_offset_base", "vmcoreinfo_data"}
    table = kallsyms.read(space, wanted, begins)
    known = table.symbols
    for name in ("__start_BTF", "__stop_BTF", "page_offset_base", "vmcoreinfo_data"):
        if name not in known:
            raise MissingError(f"its kernel has no symbol {name}: it is built without BTF or KALLSYMS_ALL")
    space.direct = space.u64(known["page_offset_base"])
    if space.physical(space.u64(known["vmcoreinfo_data"])) != address:
        raise MissingError("what is told of a kernel in its memory is not told by that kernel")
    release = re.sub(r"[^ -~]", "?", space.told["OSRELEASE"])[:64]
    begin, end = known["__start_BTF"], known["__stop_BTF"]
    if not 0 < end - begin <= _TYPES_MOST:
        raise MissingError("its kernel has no types (BTF)")
    layouts = btf.read(space.image(begin, end), types)
    return Kernel(release, space, known, layouts, table)


def _alive(kernels: list[Kernel]) -> list[Kernel]:
    """Those whose clock moves."""
    begun = [kernel.clock() for kernel in kernels]
    deadline = time.monotonic() + _ALIVE_WITHIN
    moved: list[Kernel] = []
    while not moved and time.monotonic() < deadline:
        time.sleep(0.05)
        moved = [kernel for kernel, before in zip(kernels, begun, strict=True) if kernel.clock() != before]
    return moved
