# SPDX-License-Identifier: Apache-2.0
"""The layouts of a kernel's types, from its BTF: Documentation/bpf/btf.rst of Linux."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dre.errors import MissingError

_HEADER = struct.Struct("<HBBIIIII")
_TYPE, _MEMBER = struct.Struct("<III"), struct.Struct("<III")
_INFO = struct.Struct("<IHxB")  # of a type: its name, how many follow, its kind
_MAGIC = 0xEB9F
# What follows the three words of a type, by its kind: (octets, octets for each of its `vlen`).
_TAIL = {
    1: (4, 0), 2: (0, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 7: (0, 0), 8: (0, 0), 9: (0, 0), 10: (0, 0),
    11: (0, 0), 12: (0, 0), 13: (0, 8), 14: (4, 0), 15: (0, 12), 16: (0, 0), 17: (4, 0), 18: (0, 0), 19: (0, 12),
}  # fmt: skip
_STEPS = {kind: (12 + fixed, each) for kind, (fixed, each) in _TAIL.items()}
_STRUCTS = (4, 5)
_ANONYMOUS_DEPTH = 8
_MEMBERS_MOST = 1 << 14  # of one structure, those of anonymous ones within included


@dataclass(frozen=True)
class Types:
    """Offsets of members and sizes of the structures that were asked for, in octets."""

    offsets: dict[str, dict[str, int]]
    sizes: dict[str, int]

    def offset(self, name: str, *members: str) -> int:
        """That of the first of *members* that structure *name* has. Raises MissingError where it has none."""
        known = self.offsets.get(name, {})
        for member in members:
            if member in known:
                return known[member]
        raise MissingError(f"its kernel has no {' or '.join(members)} in its struct {name}")

    def has(self, name: str, member: str) -> bool:
        """Whether structure *name* has *member*."""
        return member in self.offsets.get(name, {})


def read(octets: bytes, wanted: frozenset[str]) -> Types:
    """The layouts of those structures *wanted* that are in *octets*. Raises MissingError where they are damaged."""
    try:
        return _read(octets, wanted)
    except (struct.error, IndexError, KeyError, ValueError):
        raise MissingError("the types of its kernel (BTF) are damaged") from None


def _read(octets: bytes, wanted: frozenset[str]) -> Types:
    magic, version, _, length, type_off, type_len, str_off, str_len = _HEADER.unpack_from(octets)
    if (magic, version) != (_MAGIC, 1):
        raise MissingError("its kernel has no types (BTF) where it says they are")
    strings = octets[length + str_off : length + str_off + str_len]
    names = {strings.find(b"\0" + name.encode() + b"\0") + 1: name for name in wanted}
    names.pop(0, None)
    places, structs = _index(octets, length + type_off, length + type_off + type_len, names)
    offsets, sizes = {}, {}
    for name, place in structs.items():
        members = islice(_members(octets, places, place, 0, _ANONYMOUS_DEPTH), _MEMBERS_MOST)
        offsets[name] = {strings[begin : strings.index(b"\0", begin)].decode("ascii"): at for begin, at in members}
        sizes[name] = _TYPE.unpack_from(octets, place)[2]
    return Types(offsets, sizes)


def _index(octets: bytes, place: int, end: int, names: dict[int, str]) -> tuple[list[int], dict[str, int]]:
    """Where each type is, by its number, and where the structures of *names* are."""
    places, structs = [0], dict[str, int]()
    add, unpack, steps = places.append, _INFO.unpack_from, _STEPS
    while place < end:
        name, info, kind = unpack(octets, place)
        add(place)
        fixed, each = steps[kind & 31]
        if name in names and kind & 31 in _STRUCTS:
            structs.setdefault(names[name], place)
        place += fixed + each * info
    return places, structs


def _members(octets: bytes, places: list[int], place: int, base: int, depth: int) -> Iterator[tuple[int, int]]:
    """Name, as its place among the strings, and offset of each member, those of anonymous structures within, too."""
    _, info, _ = _TYPE.unpack_from(octets, place)
    for number in range(info & 0xFFFF):
        name, kind, bits = _MEMBER.unpack_from(octets, place + 12 + 12 * number)
        offset = base + (bits & 0xFFFFFF if info >> 31 else bits) // 8
        if name:
            yield name, offset
        elif depth > 0:
            inner = places[kind]
            if _TYPE.unpack_from(octets, inner)[1] >> 24 & 31 in _STRUCTS:
                yield from _members(octets, places, inner, offset, depth - 1)
