# SPDX-License-Identifier: Apache-2.0
"""Frames to segments of TCP, and segments to the octets of one direction of a connection, in their order.

What is read here anybody may have sent: each length is checked, and what waits for its turn is bounded. Nothing but
plain Ethernet, IPv4 without fragments, and IPv6 without extension headers is taken. See RFC 791, 8200 and 9293.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

End = tuple[bytes, int]  # an address in network order, and a port
_IPV4, _IPV6, _TCP = 0x0800, 0x86DD, 6
_SYN = 2
_HALF, _ALL = 1 << 31, 1 << 32  # of the sequence numbers, which wrap
WAITING, ROOM = 64, 1 << 20  # segments, and their octets, that wait for one before them; that is given up then
KEPT = 128 << 10  # octets that are kept to be compared with what comes again
FAR = 64 << 20  # octets; no window is that wide here: what is further away is of another connection


@dataclass(frozen=True)
class Segment:
    """One segment; *data* is what it carries, *sequence* the number of its first octet."""

    source: End
    target: End
    sequence: int
    begins: bool
    data: bytes


def segment(frame: bytes) -> Segment | None:
    """The segment that *frame*, as of Ethernet, carries; None where there is none, or not all of it."""
    if len(frame) < 54:
        return None
    kind = frame[12] << 8 | frame[13]
    if kind == _IPV4:
        start = 14 + (frame[14] & 15) * 4
        fragment = (frame[20] << 8 | frame[21]) & 0x3FFF  # more of them, or not the first one
        whole = 14 + (frame[16] << 8 | frame[17])
        if frame[14] >> 4 != 4 or frame[23] != _TCP or fragment or start < 34:
            return None
        source, target = frame[26:30], frame[30:34]
    elif kind == _IPV6:
        start, whole = 54, 54 + (frame[18] << 8 | frame[19])
        if frame[14] >> 4 != 6 or frame[20] != _TCP:
            return None
        source, target = frame[22:38], frame[38:54]
    else:
        return None
    if not start + 20 <= whole <= len(frame):  # after it there may be padding of Ethernet
        return None
    first, second, sequence = struct.unpack_from(">HHI", frame, start)
    data = start + (frame[start + 12] >> 4) * 4
    if not start + 20 <= data <= whole:
        return None
    return Segment((source, first), (target, second), sequence, bool(frame[start + 13] & _SYN), frame[data:whole])


@dataclass
class Stream:
    """One direction of a connection, which may have been seen from its middle on."""

    forged: bool = False  # for one place there were different octets
    _next: int | None = None
    _tail: bytearray = field(default_factory=bytearray)  # what was given last
    _broken: bool = True  # what comes next does not follow on what was given last
    _waiting: dict[int, bytes] = field(default_factory=dict)

    def take(self, found: Segment) -> Iterator[tuple[bytes, bool]]:
        """What is next because of *found*, piece by piece; True: octets before it were not seen."""
        sequence = (found.sequence + found.begins) % _ALL
        if found.begins or self._next is None or abs(self._ahead(sequence)) > FAR:
            self._next, self._broken = sequence, True
            self._waiting.clear()
            self._tail.clear()
        if found.data:
            self._wait(sequence, found.data)
        if len(self._waiting) > WAITING or sum(map(len, self._waiting.values())) > ROOM:
            nearest = min(self._waiting, key=self._ahead)
            if self._ahead(nearest) > 0:
                self._next, self._broken = nearest, True
                self._tail.clear()
        while self._waiting:
            nearest = min(self._waiting, key=self._ahead)
            ahead = self._ahead(nearest)
            if ahead > 0:
                return
            data = self._waiting.pop(nearest)
            self._compare(data, -ahead)
            new = data[-ahead:]  # without what was there already
            if new:
                yield new, self._broken
                self._next = ((self._next or 0) + len(new)) % _ALL
                self._broken = False
                self._tail += new
                if len(self._tail) > 2 * KEPT:
                    del self._tail[:-KEPT]

    def _wait(self, sequence: int, data: bytes) -> None:
        earlier = self._waiting.get(sequence, b"")
        both = min(len(earlier), len(data))
        self.forged = self.forged or earlier[:both] != data[:both]
        if len(data) > len(earlier):
            self._waiting[sequence] = data

    def _compare(self, data: bytes, back: int) -> None:
        """*data* begins *back* octets before what is next: what was there already must be the same."""
        known = self._tail[len(self._tail) - back :] if 1 < back <= len(self._tail) else b""  # 1: to keep a line alive
        both = min(len(known), len(data))
        self.forged = self.forged or known[:both] != data[:both]

    def _ahead(self, sequence: int) -> int:
        """How far it is to *sequence* from what is next, negative when that was there already."""
        ahead = (sequence - (self._next or 0)) % _ALL
        return ahead if ahead < _HALF else ahead - _ALL
