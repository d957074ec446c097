# SPDX-License-Identifier: Apache-2.0
"""ONC RPC over TCP as it is seen from aside: XDR, records, and the calls that replies are to.

See RFC 4506 (XDR) and RFC 5531 (RPC, its record marking in section 11). All of it may be hostile: what is too long,
too much or not of the form is left out, and costs bounded time and memory.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

NFS = 100003
AUTH_SYS, GSS, TLS = 1, 6, 7  # flavours of credentials; see RFC 2203 and RFC 9289
CALL, REPLY = 0, 1
LARGEST = 2 << 20  # octets of a record: Linux reads and writes at most 1 MiB at a time
FRAGMENTS = 256  # of one record
PENDING = 512  # calls without a reply yet, of one connection
KEPT = 8 << 10  # octets of a call: what is written into files is of no interest
_LAST = 1 << 31


class Malformed(ValueError):
    """Octets that end too early, or are not what the protocol has there."""


class Reader:
    """Takes one value after the other out of octets in XDR; each method raises Malformed where it is not there."""

    __slots__ = ("_at", "_octets")

    def __init__(self, octets: bytes, at: int = 0) -> None:
        self._octets, self._at = octets, at

    def u32(self) -> int:
        """An unsigned int, or what stands for an enum."""
        at = self._at
        self._at = at + 4
        if self._at > len(self._octets):
            raise Malformed
        return int.from_bytes(self._octets[at : at + 4], "big")

    def u64(self) -> int:
        """An unsigned hyper."""
        at = self._at
        self._at = at + 8
        if self._at > len(self._octets):
            raise Malformed
        return int.from_bytes(self._octets[at : at + 8], "big")

    def true(self) -> bool:
        """A bool: FALSE is 0, TRUE is 1."""
        value = self.u32()
        if value > 1:
            raise Malformed
        return value == 1

    def skip(self, count: int) -> None:
        """Leave out *count* octets, a multiple of four."""
        self._at += count
        if self._at > len(self._octets):
            raise Malformed

    def opaque(self, most: int) -> bytes:
        """Octets of variable length, or a string; *most* is how many the protocol allows."""
        count = self.u32()
        if count > most:
            raise Malformed
        at = self._at
        self.skip(count + -count % 4)
        return self._octets[at : at + count]

    def rest(self) -> bytes:
        """All that has not been taken."""
        return self._octets[self._at :]


class Records:
    """The records of one direction of a connection; *kind* is what those of interest are, CALL or REPLY."""

    def __init__(self, kind: int) -> None:
        self._kind, self._octets, self._record = kind, bytearray(), bytearray()
        self._fragments, self._lost = 0, True

    def take(self, octets: bytes, broken: bool) -> Iterator[bytes]:
        """The records that end in *octets*; *broken*: they do not follow on those before."""
        if broken:
            self._lose()
        if self._lost and not self._begins(octets):
            return
        self._lost = False
        self._octets += octets
        at = 0
        while len(self._octets) - at >= 4:
            (mark,) = struct.unpack_from(">I", self._octets, at)
            count = mark & ~_LAST
            if len(self._record) + count > LARGEST or self._fragments > FRAGMENTS:
                self._lose()
                return
            if len(self._octets) - at - 4 < count:
                break
            self._record += self._octets[at + 4 : at + 4 + count]
            self._fragments += 1
            at += 4 + count
            if mark & _LAST:
                yield bytes(self._record)
                self._record.clear()
                self._fragments = 0
        del self._octets[:at]

    def _lose(self) -> None:
        """Begin again where the next record begins."""
        self._octets.clear()
        self._record.clear()
        self._fragments, self._lost = 0, True

    def _begins(self, octets: bytes) -> bool:
        """Whether *octets* may well be the first of a record: a program's first segment after others mostly is."""
        if len(octets) < 20:
            return False
        mark, _, kind, first, second = struct.unpack_from(">5I", octets)
        if kind != self._kind or not mark & _LAST or not 12 <= mark & ~_LAST <= LARGEST:
            return False
        return bool((first, second) == (2, NFS) if kind == CALL else first <= 1 and second <= TLS)


@dataclass(frozen=True)
class Call:
    """A call of NFS; *arguments* are its first octets, *root*: it is made in the name of root."""

    version: int
    procedure: int
    arguments: bytes
    root: bool = False


class Calls:
    """The calls of one connection that wait for a reply."""

    def __init__(self) -> None:
        self._pending: OrderedDict[int, Call | None] = OrderedDict()  # None: which one it was cannot be told
        self.secured = False  # by Kerberos or TLS, so that nobody aside can read it

    def call(self, record: bytes) -> None:
        """Note the call in *record*; what is none of NFS is left out. Raises Malformed."""
        reader = Reader(record)
        number, kind, version, program = reader.u32(), reader.u32(), reader.u32(), reader.u32()
        if kind != CALL or version != 2 or program != NFS:
            return
        version, procedure, flavour = reader.u32(), reader.u32(), reader.u32()
        credentials = reader.opaque(400)
        reader.u32()
        reader.opaque(400)
        if flavour in (GSS, TLS):
            self.secured = True
            self._pending.pop(number, None)
            return
        root = flavour == AUTH_SYS and _user(credentials) == 0
        call = Call(version, procedure, reader.rest()[:KEPT], root)
        again = number in self._pending and self._pending[number] != call
        self._pending[number] = None if again else call
        if len(self._pending) > PENDING:
            self._pending.popitem(last=False)

    def reply(self, record: bytes) -> tuple[Call, bytes] | None:
        """The call that *record* is the reply to, and the results; None where it is of another or was refused.

        Raises Malformed.
        """
        reader = Reader(record)
        number, kind = reader.u32(), reader.u32()
        if kind != REPLY:
            return None
        call = self._pending.get(number)
        if call is None:
            return None
        del self._pending[number]
        if reader.u32() != 0:  # MSG_ACCEPTED
            return None
        reader.u32()
        reader.opaque(400)
        return (call, reader.rest()) if reader.u32() == 0 else None  # SUCCESS


def _user(credentials: bytes) -> int:
    """The user of AUTH_SYS; RFC 5531, appendix A. Raises Malformed."""
    reader = Reader(credentials)
    reader.u32()
    reader.opaque(255)
    return reader.u32()
