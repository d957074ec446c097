# SPDX-License-Identifier: Apache-2.0
"""Where a guest's kernel gave out memory for tasks (mm/slub.c of Linux), whatever it calls a task now."""

import struct
import time

from sysmonlib.kernel import Kernel
from sysmonlib.memory import PAGE, BadAddress

SYMBOLS = frozenset(("task_struct_cachep", "vmemmap_base"))
TYPES = frozenset(("slab", "kmem_cache"))
SWEEP = 10.0  # seconds between looks at all pages, which is what is dear; those found are read each time
_PIECE = 1 << 21  # of the array of pages: what one entry of the page table maps
_PAGE_STRUCT = 64
_OBJECTS_MOST, _OBJECTS = 512, 0x7FFF
_LEAST, _LARGEST = 1 << 10, 1 << 16  # octets of a task; its type is larger, with all that a processor might have


class Slabs:
    """Memory for tasks. Raises MissingError where *kernel* does not tell of it."""

    def __init__(self, kernel: Kernel) -> None:
        self._space, offset = kernel.space, kernel.types.offset
        self._cache, self._pages = kernel.symbol("task_struct_cachep"), kernel.symbol("vmemmap_base")
        self._owner, self._counters = offset("slab", "slab_cache"), offset("slab", "freelist") + 8
        self._size = offset("kmem_cache", "size")
        self._pad = offset("kmem_cache", "red_left_pad") if kernel.types.has("kmem_cache", "red_left_pad") else None
        flag = kernel.space.told.get("NUMBER(PG_slab)", "")  # since Linux 6.11 no flag but a type of page
        self._flag = 1 << int(flag) if flag.isdecimal() and int(flag) < 64 else 0
        self._known: list[int] = []
        self._swept = -SWEEP

    def objects(self) -> set[int]:
        """All places for a task, in use or free. Raises BadAddress."""
        space = self._space
        cache = space.u64(self._cache)
        size, pad = space.u32(cache + self._size), space.u32(cache + self._pad) if self._pad is not None else 0
        if not _LEAST <= size < _LARGEST:
            raise BadAddress(f"{cache:#x}: no cache of tasks, with objects of {size} octets")
        base = space.u64(self._pages)
        if time.monotonic() - self._swept >= SWEEP:
            self._known = self._sweep(base, struct.pack("<Q", cache))
            self._swept = time.monotonic()
        found: set[int] = set()
        for page in self._known:
            flags, count = space.u64(page), space.u64(page + self._counters) >> 16 & _OBJECTS
            if space.u64(page + self._owner) == cache and flags & self._flag == self._flag and count <= _OBJECTS_MOST:
                first = space.direct + (page - base) // _PAGE_STRUCT * PAGE + pad
                found.update(range(first, first + count * size, size))
                if len(found) * _LEAST > space.memory.layout.size:
                    raise BadAddress("more tasks than the guest's memory could hold")
        return found

    def _sweep(self, base: int, owner: bytes) -> list[int]:
        """The pages that belong to the cache *owner*."""
        layout, found = self._space.memory.layout, []
        for begin, end in ((0, layout.low), (1 << 32, (1 << 32) + layout.size - layout.low)):
            for first in range(begin // PAGE * _PAGE_STRUCT, end // PAGE * _PAGE_STRUCT, _PIECE):
                try:
                    place = self._space.walk(base + first)
                    count = min(_PIECE, end // PAGE * _PAGE_STRUCT - first) - self._owner
                    for hit in self._space.memory.each(place + self._owner, count, _PAGE_STRUCT, owner):
                        found.append(base + first + hit - self._owner - place)
                except BadAddress:
                    continue  # a piece of memory that this guest does not use
        return found
