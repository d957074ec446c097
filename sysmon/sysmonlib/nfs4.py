# SPDX-License-Identifier: Apache-2.0
"""NFS version 4, minor versions 0, 1 and 2: what a COMPOUND and its reply say of objects and names.

See RFC 7530 and RFC 7531 (4.0), RFC 8881 and RFC 5662 (4.1), RFC 7863 (4.2). Operations are read in their order, the
arguments beside the results; at one that is not known here, or that needs none of what comes after it, reading ends.
"""

from collections.abc import Callable, Iterator

from sysmonlib.nfs3 import KINDS, MAY_LOOK_UP, MAY_READ, REFUSED
from sysmonlib.rpc import Call, Malformed, Reader
from sysmonlib.served import Attributes, Entry, Served
from sysmonlib.tcp import End

COMPOUND = 1
_OPERATIONS = 128  # in one COMPOUND
_HANDLE, _NAME, _OPAQUE = 128, 4096, 1024  # octets at most: NFS4_FHSIZE, component4, owners (NFS4_OPAQUE_LIMIT)
_LINK, _BLOCK, _CHARACTER = 5, 3, 4  # nfs_ftype4 of CREATE
_WORDS = 8  # of a bitmap
_ENTRIES = 1 << 16  # of an access control list
_NUMBERS = {2: 4, 5: 4, 6: 4, 7: 4, 9: 4, 10: 4, 11: 4, 13: 4, 14: 4, 15: 4, 16: 4, 17: 4, 18: 4, 21: 8, 22: 8}
_NUMBERS |= {3: 8, 23: 8, 25: 4, 26: 4, 27: 8, 28: 4, 29: 4, 30: 8, 31: 8, 34: 4, 35: 4, 38: 8, 39: 8, 40: 8, 41: 8}
_NUMBERS |= {42: 8, 43: 8, 44: 8, 45: 8, 46: 4, 47: 12, 49: 12, 50: 12, 51: 12, 52: 12, 53: 12}  # octets of the value


def take(served: Served, server: End, call: Call, results: bytes) -> None:
    """Tell *served* what *server* says by *results*, the reply to *call*. Raises Malformed; what came before counts."""
    if call.procedure == COMPOUND:
        _Compound(served, server, call, results).take()


def bitmap(reader: Reader) -> int:
    """bitmap4 as one number."""
    count = reader.u32()
    if count > _WORDS:
        raise Malformed
    return sum(reader.u32() << 32 * word for word in range(count))


def attributes(reader: Reader) -> tuple[Attributes, bytes | None]:
    """fattr4, as far as it is of interest, and the handle where that is one of them."""
    have = bitmap(reader)
    values = Reader(reader.opaque(1 << 20))
    kind = size = fsid = fileid = mounted = mode = handle = None
    for number in range(56):
        if not have >> number & 1:
            continue
        if number == 1:
            kind = KINDS.get(values.u32())
        elif number == 4:
            size = values.u64()
        elif number == 8:
            fsid = (values.u64(), values.u64())
        elif number == 19:
            handle = values.opaque(_HANDLE)
        elif number == 20:
            fileid = values.u64()
        elif number == 33:
            mode = values.u32() & 0o7777
        elif number == 55:
            mounted = values.u64()
        else:
            _leave_out(values, number)
    whole = kind | mode if kind is not None and mode is not None else None
    return Attributes(fsid, mounted if fileid is None else fileid, whole, size), handle


def _leave_out(values: Reader, number: int) -> None:
    """The value of the attribute *number*. Raises Malformed where its form is not known."""
    if number == 0:  # supported_attrs
        bitmap(values)
    elif number == 12:  # acl
        count = values.u32()
        if count > _ENTRIES:
            raise Malformed
        for _ in range(count):
            values.skip(12)
            values.opaque(_OPAQUE)
    elif number in (32, 36, 37):  # mimetype, owner, owner_group
        values.opaque(_OPAQUE)
    elif number in _NUMBERS:
        values.skip(_NUMBERS[number])
    else:  # fs_locations, and what can only be set
        raise Malformed


class _Compound:
    def __init__(self, served: Served, server: End, call: Call, results: bytes) -> None:
        self._served, self._server, self._root = served, server, call.root
        self._asked, self._said = Reader(call.arguments), Reader(results)
        self._current: bytes | None = None  # the handle, where it is known
        self._saved: bytes | None = None

    def take(self) -> None:
        self._asked.opaque(_OPAQUE)  # tag
        if self._asked.u32() > 2:  # minorversion
            return
        asked = self._asked.u32()
        self._said.u32()
        self._said.opaque(_OPAQUE)
        for _ in range(min(asked, self._said.u32(), _OPERATIONS)):
            number = self._asked.u32()
            if self._said.u32() != number or number not in _KNOWN:
                return
            status = self._said.u32()
            if status != 0:  # the last one
                if number in (_READDIR, _ACCESS) and status in REFUSED:
                    self._refuse(True)
                return
            _KNOWN[number](self)

    def _refuse(self, refused: bool) -> None:
        if self._current is not None and self._root:
            self._served.access(self._server, self._current, refused)

    def _note(self, found: Attributes) -> None:
        self._served.attributes(self._server, found, self._current)

    def _access(self) -> None:
        wanted = self._asked.u32() & (MAY_READ | MAY_LOOK_UP)
        supported, access = self._said.u32(), self._said.u32()
        self._refuse(wanted & supported & ~access != 0)

    def _close(self) -> None:
        self._asked.skip(20)  # seqid, stateid4
        self._said.skip(16)

    def _commit(self) -> None:
        self._asked.skip(12)
        self._said.skip(8)

    def _create(self) -> None:
        kind = self._asked.u32()
        if kind == _LINK:
            self._asked.opaque(_NAME)
        elif kind in (_BLOCK, _CHARACTER):
            self._asked.skip(8)
        self._changed(self._current, self._asked.opaque(_NAME))
        _set_attributes(self._asked)
        bitmap(self._said)
        self._current = None

    def _getattr(self) -> None:
        bitmap(self._asked)
        self._note(attributes(self._said)[0])

    def _getfh(self) -> None:
        self._current = self._said.opaque(_HANDLE)

    def _link(self) -> None:
        self._changed(self._current, self._asked.opaque(_NAME))

    def _lookup(self) -> None:
        self._asked.opaque(_NAME)
        self._current = None

    def _lost(self) -> None:
        """LOOKUPP, PUTPUBFH, PUTROOTFH: another handle, which is not told."""
        self._current = None

    def _open(self) -> None:
        asked = self._asked
        asked.skip(20)  # seqid, share_access, share_deny, clientid4
        asked.opaque(_OPAQUE)
        if asked.u32() == 1:  # OPEN4_CREATE
            how = asked.u32()
            if how in (2, 3):  # EXCLUSIVE4, EXCLUSIVE4_1
                asked.skip(8)
            if how != 2:
                _set_attributes(asked)
        claim = asked.u32()
        if claim == 2:  # CLAIM_DELEGATE_CUR
            asked.skip(16)
        self._said.skip(16)  # stateid4
        if claim in (0, 2, 3):  # and CLAIM_NULL, CLAIM_DELEGATE_PREV: of a name
            self._changed(self._current, asked.opaque(_NAME))
            self._current = None
        else:
            asked.skip({1: 4, 5: 16}.get(claim, 0))  # CLAIM_PREVIOUS, CLAIM_DELEG_CUR_FH
            self._said.skip(20)  # change_info4
        self._said.u32()  # rflags
        bitmap(self._said)
        _delegation(self._said)

    def _open_confirm(self) -> None:
        self._asked.skip(20)
        self._said.skip(16)

    def _open_downgrade(self) -> None:
        self._asked.skip(28)
        self._said.skip(16)

    def _putfh(self) -> None:
        self._current = self._asked.opaque(_HANDLE)

    def _read(self) -> None:
        self._asked.skip(28)
        self._said.u32()
        self._said.opaque(1 << 30)

    def _readdir(self) -> None:
        cookie = self._asked.u64()
        self._asked.skip(16)
        bitmap(self._asked)
        self._said.skip(8)  # verifier4
        entries = list(self._entries())
        eof = self._said.true()
        if self._current is not None:
            self._served.page(self._server, self._current, cookie, entries, eof)

    def _entries(self) -> Iterator[Entry]:
        while self._said.true():
            cookie, name = self._said.u64(), self._said.opaque(_NAME)
            found, handle = attributes(self._said)
            yield Entry(name, cookie, found.fileid, found, handle)

    def _readlink(self) -> None:
        self._said.opaque(1 << 20)

    def _remove(self) -> None:
        self._changed(self._current, self._asked.opaque(_NAME))

    def _rename(self) -> None:
        self._changed(self._saved, self._asked.opaque(_NAME))
        self._changed(self._current, self._asked.opaque(_NAME))

    def _renew(self) -> None:
        self._asked.skip(8)

    def _restorefh(self) -> None:
        self._current = self._saved

    def _savefh(self) -> None:
        self._saved = self._current

    def _sequence(self) -> None:
        self._asked.skip(32)  # sessionid4, sequenceid, slotid, highest_slotid, cachethis
        self._said.skip(36)  # sessionid4, five numbers

    def _setattr(self) -> None:
        self._asked.skip(16)
        _set_attributes(self._asked)
        bitmap(self._said)

    def _stateid(self) -> None:
        """DELEGRETURN."""
        self._asked.skip(16)

    def _write(self) -> None:
        self._asked.skip(28)  # stateid4, offset, stable
        self._said.skip(16)  # count, committed, verifier4
        # What was written may be cut off, so the call is not read on; what comes next mostly is a GETATTR.
        if self._said.u32() == _GETATTR and self._said.u32() == 0:
            self._note(attributes(self._said)[0])
        raise Malformed

    def _changed(self, handle: bytes | None, name: bytes) -> None:
        """change_info4: *name* came to, or left, the directory of *handle*, unless that is as it was."""
        self._said.u32()  # atomic
        if self._said.u64() != self._said.u64() and handle is not None:
            self._served.changed(self._server, handle, name)


def _set_attributes(reader: Reader) -> None:
    """fattr4 of a call, which does not count."""
    bitmap(reader)
    reader.opaque(1 << 20)


def _delegation(said: Reader) -> None:
    """open_delegation4."""
    kind = said.u32()
    if kind in (1, 2):  # OPEN_DELEGATE_READ, OPEN_DELEGATE_WRITE
        said.skip(20 + (12 if kind == 2 else 0))  # stateid4, recall, nfs_space_limit4
        said.skip(12)  # nfsace4
        said.opaque(_OPAQUE)
    elif kind == 3 and said.u32() in (1, 2):  # OPEN_DELEGATE_NONE_EXT, WND4_CONTENTION or WND4_RESOURCE
        said.u32()
    elif kind > 3:
        raise Malformed


_ACCESS, _GETATTR, _READDIR = 3, 9, 26
_KNOWN: dict[int, Callable[[_Compound], None]] = {
    _ACCESS: _Compound._access,
    4: _Compound._close,
    5: _Compound._commit,
    6: _Compound._create,
    8: _Compound._stateid,
    _GETATTR: _Compound._getattr,
    10: _Compound._getfh,
    11: _Compound._link,
    15: _Compound._lookup,
    16: _Compound._lost,
    18: _Compound._open,
    20: _Compound._open_confirm,
    21: _Compound._open_downgrade,
    22: _Compound._putfh,
    23: _Compound._lost,
    24: _Compound._lost,
    25: _Compound._read,
    _READDIR: _Compound._readdir,
    27: _Compound._readlink,
    28: _Compound._remove,
    29: _Compound._rename,
    30: _Compound._renew,
    31: _Compound._restorefh,
    32: _Compound._savefh,
    34: _Compound._setattr,
    38: _Compound._write,
    53: _Compound._sequence,
}
