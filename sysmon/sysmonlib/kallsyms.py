# SPDX-License-Identifier: Apache-2.0
"""The symbols of a guest's kernel, from the table it keeps for itself: see scripts/kallsyms.c of Linux."""

import functools
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import unpack
from typing import TYPE_CHECKING

from dre.errors import MissingError

if TYPE_CHECKING:
    from sysmonlib.kernel import Space

_MOST = 1 << 20  # symbols; kernels of distributions have 100,000 to 300,000
_NAMES_MOST = 1 << 24  # octets of all names as they are kept
_NAME_MOST = 512  # octets of one of them
_TOKEN_MOST = 64
_HEAD = 3  # octets of a name as it is kept that are looked at first
_FAMILY_MOST = 1 << 14  # symbols that begin as asked for
_SHOWN = 100  # characters of a name that is told


@dataclass(frozen=True)
class Table:
    """All symbols: *symbols* are those asked for by name, *families* those by how they begin, by address.

    The rest is looked up when it is asked for.
    """

    symbols: dict[str, int]
    families: dict[int, frozenset[str]]
    _addresses: "array[int]"  # by number of the symbol
    _names: bytes
    _tokens: list[bytes]

    @functools.cached_property
    def _ordered(self) -> list[int]:
        return sorted(set(self._addresses))

    def end(self, address: int) -> int | None:
        """Where the next symbol behind *address* is; None where none is."""
        number = bisect_right(self._ordered, address)
        return self._ordered[number] if number < len(self._ordered) else None

    def places(self, addresses: Iterable[int]) -> dict[int, str]:
        """`function+0x10` for each of *addresses* that lies in or behind a symbol; of several symbols the first."""
        begins = {}
        for address in addresses:
            number = bisect_right(self._ordered, address)
            if number:
                begins[address] = self._ordered[number - 1]
        wanted = {self._addresses.index(begin): begin for begin in set(begins.values())}
        last, found = max(wanted, default=-1), dict[int, str]()
        for number, packed in enumerate(_packed(self._names, last + 1)):
            if number in wanted:
                name = _unpacked(packed, self._tokens)[:_SHOWN]
                found[wanted[number]] = "".join(chr(octet) if 0x20 < octet < 0x7F else "?" for octet in name)
        return {
            address: found[begin] + (f"+{address - begin:#x}" if address > begin else "")
            for address, begin in begins.items()
        }


def read(space: "Space", wanted: frozenset[str], begins: tuple[str, ...] = ()) -> Table:
    """The symbols, among them those *wanted* that are there, of several with one name the first, and those of *begins*.

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
    numbers, alike = _numbers(names, count, tokens, {name.encode() for name in wanted}, begins)
    offsets = array("i", space.image(place["offsets"], place["offsets"] + 4 * count))
    if sys.byteorder == "big":
        offsets.byteswap()
    base = space.u64(place["relative_base"])
    # Not negative: of each processor, absolute.
    addresses = array("Q", [o if o >= 0 else base - 1 - o & (1 << 64) - 1 for o in offsets])
    families: dict[int, set[str]] = {}
    for number, name in alike.items():
        families.setdefault(addresses[number], set()).add(name.decode("ascii", errors="replace"))
    return Table(
        {name.decode(): addresses[number] for name, number in numbers.items()},
        {address: frozenset(each) for address, each in families.items()},
        addresses,
        names,
        tokens,
    )


_TABLES = ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")


def _end(place: dict[str, int], count: int) -> int:
    """Where the names end at the latest: where the next table begins."""
    after = [address for address in place.values() if address > place["names"]]
    return min([*after, place["names"] + min(count * _NAME_MOST, _NAMES_MOST)])


def _tokens(space: "Space", place: dict[str, int]) -> list[bytes]:
    indexes = unpack("<256H", space.image(place["token_index"], place["token_index"] + 512))
    table = space.image(place["token_table"], place["token_table"] + max(indexes) + _TOKEN_MOST)
    return [table[index : index + _TOKEN_MOST].split(b"\0", 1)[0] for index in indexes]


def _packed(names: bytes, count: int) -> Iterator[bytes]:
    """The names of the first *count* symbols, in order, as they are kept. Raises MissingError where not whole."""
    place = 0
    try:
        for _ in range(count):
            length = names[place]
            place += 1
            if length & 0x80:
                length = length & 0x7F | names[place] << 7
                place += 1
            if length > _NAME_MOST:
                raise MissingError("the symbols of its kernel are not whole")
            end = place + length
            yield names[place:end]
            place = end
    except IndexError:
        raise MissingError("the symbols of its kernel are not whole") from None


def _unpacked(name: bytes, tokens: list[bytes]) -> bytes:
    """What is kept as *name*, without its first character, which is its type."""
    return b"".join(map(tokens.__getitem__, name))[1:]


def _numbers(
    names: bytes, count: int, tokens: list[bytes], wanted: set[bytes], begins: tuple[str, ...]
) -> tuple[dict[bytes, int], dict[int, bytes]]:
    """Which symbol each of *wanted* is, and the names of those that begin as one of *begins*, by number."""
    found: dict[bytes, int] = {}
    alike: dict[int, bytes] = {}
    family = tuple(begin.encode() for begin in begins)
    # Whether it may be one, by how its name begins, for to unpack all of them is dear.
    likely: dict[bytes, bool] = {}
    prefixes = {word[:length] for word in (*wanted, *family) for length in range(len(word) + 1)}
    for number, packed in enumerate(_packed(names, count)):
        head = packed[:_HEAD]
        if head not in likely:
            begin = _unpacked(head, tokens)
            likely[head] = begin in prefixes or begin.startswith(family)
        if likely[head]:
            name = _unpacked(packed, tokens)
            if name in wanted:
                found.setdefault(name, number)
            if name.startswith(family) and len(alike) < _FAMILY_MOST:
                alike[number] = name
    return found, alike
