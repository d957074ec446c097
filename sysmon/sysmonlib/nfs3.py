# SPDX-License-Identifier: Apache-2.0
"""NFS version 3: what a call and its reply say of objects and names. See RFC 1813."""

from collections.abc import Iterator
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK

from sysmonlib.rpc import Call, Malformed, Reader
from sysmonlib.served import Attributes, Entry, Served
from sysmonlib.tcp import End

GETATTR, SETATTR, LOOKUP, ACCESS, READLINK, READ, WRITE, CREATE, MKDIR, SYMLINK, MKNOD = range(1, 12)
REMOVE, RMDIR, RENAME, LINK, READDIR, READDIRPLUS, FSSTAT, FSINFO, PATHCONF, COMMIT = range(12, 22)
# ftype3 is the same as nfs_ftype4 up to 7.
KINDS = {1: S_IFREG, 2: S_IFDIR, 3: S_IFBLK, 4: S_IFCHR, 5: S_IFLNK, 6: S_IFSOCK, 7: S_IFIFO}
_HANDLE = 64  # octets at most (NFS3_FHSIZE)
_NAME = 4096  # a server's own limit holds, 255 mostly
MAY_READ, MAY_LOOK_UP = 1, 2  # of ACCESS; the same in version 4
REFUSED = (1, 13)  # NFS3ERR_PERM, NFS3ERR_ACCES; the same in version 4


def take(served: Served, server: End, call: Call, results: bytes) -> None:
    """Tell *served* what *server* says by *results*, the reply to *call*. Raises Malformed; what came before counts."""
    if GETATTR <= call.procedure <= COMMIT:
        _Reply(served, server, call, results).take(call.procedure)


class _Reply:
    def __init__(self, served: Served, server: End, call: Call, results: bytes) -> None:
        self._served, self._server, self._root = served, server, call.root
        self._asked, self._said = Reader(call.arguments), Reader(results)

    def take(self, procedure: int) -> None:
        handle = self._asked.opaque(_HANDLE)
        status = self._said.u32()
        if procedure in (READDIR, READDIRPLUS):
            self._readdir(handle, status, plus=procedure == READDIRPLUS)
        elif procedure == GETATTR:
            if status == 0:
                self._note(self._attributes(), handle)
        elif procedure == LOOKUP:
            child = self._said.opaque(_HANDLE) if status == 0 else None
            if child is not None:
                self._maybe(child)
            self._maybe(handle)
        elif procedure == ACCESS:
            self._maybe(handle)
            if status == 0:
                wanted = self._asked.u32() & (MAY_READ | MAY_LOOK_UP)
                self._refuse(handle, wanted & ~self._said.u32() != 0)
        elif procedure in (CREATE, MKDIR, SYMLINK, MKNOD):
            if status == 0:
                self._served.changed(self._server, handle, self._asked.opaque(_NAME))
                child = self._said.opaque(_HANDLE) if self._said.true() else None
                self._maybe(child)
            self._change(handle)
        elif procedure in (REMOVE, RMDIR):
            self._rename(status, handle)
            self._change(handle)
        elif procedure == RENAME:
            self._rename(status, handle)
            target = self._asked.opaque(_HANDLE)
            self._rename(status, target)
            self._change(handle)
            self._change(target)
        elif procedure == LINK:
            target = self._asked.opaque(_HANDLE)
            self._rename(status, target)
            self._maybe(handle)
            self._change(target)
        elif procedure in (SETATTR, WRITE, COMMIT):
            self._change(handle)
        else:  # READLINK, READ, FSSTAT, FSINFO, PATHCONF
            self._maybe(handle)

    def _rename(self, status: int, handle: bytes) -> None:
        """The name that is asked for comes to, or leaves, the directory of *handle*, unless that failed."""
        name = self._asked.opaque(_NAME)
        if status == 0:
            self._served.changed(self._server, handle, name)

    def _readdir(self, handle: bytes, status: int, plus: bool) -> None:
        cookie = self._asked.u64()
        of = self._maybe(handle)
        if status != 0:
            if status in REFUSED:
                self._refuse(handle, True)
            return
        self._said.skip(8)  # cookieverf3
        entries = list(self._entries(plus))
        self._served.page(self._server, handle, cookie, entries, self._said.true(), of)

    def _entries(self, plus: bool) -> Iterator[Entry]:
        said = self._said
        while said.true():
            fileid, name, cookie = said.u64(), said.opaque(_NAME), said.u64()
            if not plus:
                yield Entry(name, cookie, fileid)
                continue
            attributes = self._attributes() if said.true() else Attributes()
            handle = said.opaque(_HANDLE) if said.true() else None
            yield Entry(name, cookie, fileid, attributes, handle)

    def _refuse(self, handle: bytes, refused: bool) -> None:
        if self._root:
            self._served.access(self._server, handle, refused)

    def _note(self, found: Attributes, handle: bytes | None) -> None:
        self._served.attributes(self._server, found, handle)

    def _maybe(self, handle: bytes | None) -> Attributes | None:
        """post_op_attr of what *handle* leads to."""
        if not self._said.true():
            return None
        found = self._attributes()
        self._note(found, handle)
        return found

    def _change(self, handle: bytes) -> None:
        """wcc_data of it: what was before is not whole, and it is what comes after that counts."""
        if self._said.true():
            self._said.skip(24)  # size3, two nfstime3
        self._maybe(handle)

    def _attributes(self) -> Attributes:
        """fattr3."""
        said = self._said
        kind, mode = said.u32(), said.u32()
        if kind not in KINDS:
            raise Malformed
        said.skip(12)  # nlink, uid, gid
        size = said.u64()
        said.skip(16)  # used, rdev
        fsid, fileid = said.u64(), said.u64()
        said.skip(24)  # atime, mtime, ctime
        return Attributes((fsid, 0), fileid, KINDS[kind] | mode & 0o7777, size)
