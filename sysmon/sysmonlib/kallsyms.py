# SPDX-License-Identifier: Apache-2.0
"""The symbols of a guest's kernel, from the table it keeps for itself: see scripts/kallsyms.c of Linux."""

import struct
from typing import TYPE_CHECKING

from dre.errors import MissingError

if TYPE_CHECKING:
    from sysmonlib.kernel import Space

_MOST = 1 << 20  # symbols; kernels of distributions have 100,000 to 300,000
_NAMES_MOST = 1 << 24  # octets of all names as they are kept
_NAME_MOST = 512  # octets of one of them
_TOKEN_MOST = 64


def read(space: "Space", wanted: frozenset[str]) -> dict[str, int]:
    """The addresses of those of *wanted* that are there; of several with one name, the first.

    Raises MissingError where the table is not whole, BadAddress where it leads out of memory.
    """
    try:
        place = {name: space.address(f"kallsyms_{name}") for name in _TABLES}
    except (KeyError, ValueError):
        raise MissingError("its kernel does not tell where its symbols are; Linux 6.0 and newer do") from None
    count = space.u32(place["num_syms"])
    if not 0 < count <= _MOST:
        raise MissingError(f"its kernel says that it has {count} symbols")
    tokens = _tokens(space, place)
    names = space.image(place["names"], max(place["names"], _end(place, count)))
    numbers = _numbers(names, count, tokens, {name.encode() for name in wanted})
    octets = space.image(place["offsets"], place["offsets"] + 4 * count)
    base = space.u64(place["relative_base"])
    found = {}
    for name, number in numbers.items():
        (offset,) = struct.unpack_from("<i", octets, 4 * number)
        found[name.decode()] = offset if offset >= 0 else base - 1 - offset  # not negative: of each processor, absolute
    return found


_TABLES = ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")


def _end(place: dict[str, int], count: int) -> int:
    """Where the names end at the latest: where the next table begins."""
    after = [address for address in place.values() if address > place["names"]]
    return min([*after, place["names"] + min(count * _NAME_MOST, _NAMES_MOST)])


def _tokens(space: "Space", place: dict[str, int]) -> list[bytes]:
    indexes = struct.unpack("<256H", space.image(place["token_index"], place["token_index"] + 512))
    table = space.image(place["token_table"], place["token_table"] + max(indexes) + _TOKEN_MOST)
    return [table[index : index + _TOKEN_MOST].split(b"\0", 1)[0] for index in indexes]


def _numbers(names: bytes, count: int, tokens: list[bytes], wanted: set[bytes]) -> dict[bytes, int]:
    """Which symbol each of *wanted* is. Raises MissingError where *names* ends too soon."""
    found: dict[bytes, int] = {}
    expand = tokens.__getitem__
    place = 0
    try:
        for number in range(count):
            length = names[place]
            place += 1
            if length & 0x80:
                length = length & 0x7F | names[place] << 7
                place += 1
            if length > _NAME_MOST:
                raise MissingError("the symbols of its kernel are not whole")
            end = place + length
            name = b"".join(map(expand, names[place:end]))[1:]  # the first character is its type
            place = end
            if name in wanted:
                found.setdefault(name, number)
    except IndexError:
        raise MissingError("the symbols of its kernel are not whole") from None
    return found
