# SPDX-License-Identifier: Apache-2.0
"""What NFS servers said: objects and their attributes, directories and their names. It says nothing of the guest.

An object is a file or directory, known by its server, the file system there (fsid) and its number in that (fileid); a
handle only leads to one. Of what was said before the present check began, only which object a handle leads to, and for
a while the last attributes, are kept.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sysmonlib.tcp import End

Fsid = tuple[int, int]  # major and minor; of NFSv3 minor is 0
Object = tuple[End, Fsid, int]
Handle = tuple[End, bytes]
_Place = Object | Handle  # a directory, by its handle until it is known what that leads to
MOST = 300_000  # names and attributes of one check; what has more cannot be checked
HANDLES = 100_000  # the longest unused are forgotten
VALUES = 64  # different attributes of one object in one check; of more, the first ones and the last
EXPIRY = 70.0  # seconds; Linux keeps attributes for at most 60 (acregmax in nfs(5))


@dataclass(frozen=True, slots=True)
class Attributes:
    """Those that a reply has; None where it has not. *mode* is with the type, as st_mode; *size* is in octets."""

    fsid: Fsid | None = None
    fileid: int | None = None
    mode: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory, and what it leads to, as far as that was said; *cookie* is where the next one is."""

    name: bytes
    cookie: int
    fileid: int | None
    attributes: Attributes = Attributes()
    handle: bytes | None = None


@dataclass(frozen=True)
class Listing:
    """The names of a directory: of a whole listing, with the fileid where there is one, and of any reply."""

    whole: Mapping[bytes, int | None]
    all: set[bytes]
    changed: set[bytes]  # names that were made or removed meanwhile


@dataclass(frozen=True, slots=True)
class _Page:
    entries: Mapping[bytes, int | None]
    last: int
    eof: bool


class Served:
    """What is known of all servers of one guest."""

    def __init__(self) -> None:
        self._handles: OrderedDict[Handle, Object] = OrderedDict()
        self._last: dict[Object, tuple[float, Attributes]] = {}
        self._clear()

    def _clear(self) -> None:
        self._said: dict[Object, tuple[Attributes, ...]] = {}
        self._pages: dict[_Place, dict[int, _Page]] = {}
        self._names: dict[_Place, set[bytes]] = {}
        self._changed: dict[_Place, set[bytes]] = {}
        self._denied: dict[Handle, bool] = {}
        self._leading: dict[Object, list[Handle]] | None = None
        self._count = 0

    @property
    def full(self) -> bool:
        """Whether there was more in this check than is kept."""
        return self._count > MOST

    @property
    def empty(self) -> bool:
        """Whether nothing was said in this check."""
        return self._count == 0

    def begin(self) -> None:
        """A check begins: what was listed before counts no more."""
        now = time.monotonic()
        self._last = {key: found for key, found in self._last.items() if now - found[0] < EXPIRY}
        self._clear()

    def _counted(self) -> bool:
        """Whether there is room for one thing more."""
        self._count += 1
        return not self.full

    def attributes(self, server: End, found: Attributes, handle: bytes | None = None) -> None:
        """*found* was said of what *handle* leads to."""
        key: Object | None = None
        if found.fsid is not None and found.fileid is not None:
            key = (server, found.fsid, found.fileid)
            if handle is not None:
                self._lead(server, handle, key)
        elif handle is not None:
            key = self._handles.get((server, handle))
        if key is None or (found.size is None and found.mode is None):
            return
        said = self._said.get(key, ())
        if found not in said and self._counted():
            self._said[key] = (*said[: VALUES - 1], found)
        if key in self._last or len(self._last) < MOST:
            self._last[key] = (time.monotonic(), found)

    def _lead(self, server: End, handle: bytes, key: Object) -> None:
        if self._handles.get((server, handle)) != key:
            self._handles[server, handle] = key
            self._leading = None
        self._handles.move_to_end((server, handle))
        if len(self._handles) > HANDLES:
            self._handles.popitem(last=False)

    def page(
        self, server: End, handle: bytes, cookie: int, entries: Iterable[Entry], eof: bool, of: Attributes | None = None
    ) -> None:
        """The directory of *handle* has *entries* behind *cookie* (0: from its begin), to its end: *eof*.

        *of* are the directory's attributes in the same reply: where it has them, the call could not lead astray.
        """
        place: _Place = (server, handle)
        if of is not None and of.fsid is not None and of.fileid is not None:
            place = (server, of.fsid, of.fileid)
        found: dict[bytes, int | None] = {}
        last = cookie
        for entry in entries:
            last = entry.cookie
            self.attributes(server, entry.attributes, entry.handle)
            if entry.name not in (b".", b".."):
                found[entry.name] = entry.fileid
        self._count += len(found)
        if self._counted():
            self._pages.setdefault(place, {})[cookie] = _Page(found, last, eof)
            self._names.setdefault(place, set()).update(found)

    def changed(self, server: End, handle: bytes, name: bytes) -> None:
        """*name* was made in, or removed from, the directory that *handle* leads to."""
        if self._counted():
            self._changed.setdefault((server, handle), set()).add(name)

    def access(self, server: End, handle: bytes, denied: bool) -> None:
        """Whether the server refuses to read or search the directory that *handle* leads to."""
        if self._counted():
            self._denied[server, handle] = denied

    def of(self, wanted: Object) -> tuple[Attributes, ...]:
        """What was said of *wanted* in this check or, where nothing was, not long ago."""
        said = self._said.get(wanted, ())
        return said or ((self._last[wanted][1],) if wanted in self._last else ())

    def denied(self, wanted: Object) -> bool:
        """Whether the server let the guest not read or search the directory *wanted*."""
        return any(self._denied.get(handle, False) for handle in self._handles_of(wanted))

    def listing(self, wanted: Object) -> Listing | None:
        """The names of the directory *wanted*; None unless a listing was seen from its begin to its end."""
        places: list[_Place] = [wanted, *self._handles_of(wanted)]
        chains = [chain for chain in map(self._chain, places) if chain is not None]
        if not chains:
            return None
        whole = {name: number for name, number in chains[0].items() if all(name in chain for chain in chains[1:])}
        every, changed = set[bytes](), set[bytes]()
        for place in places:
            every |= self._names.get(place, set())
            changed |= self._changed.get(place, set())
        return Listing(whole, every, changed)

    def _handles_of(self, wanted: Object) -> list[Handle]:
        if self._leading is None:
            self._leading = {}
            for handle, key in self._handles.items():
                self._leading.setdefault(key, []).append(handle)
        return self._leading.get(wanted, [])

    def _chain(self, place: _Place) -> dict[bytes, int | None] | None:
        """The names of all pages from the first to the last; None where one is missing."""
        pages = self._pages.get(place, {})
        names: dict[bytes, int | None] = {}
        cookie, used = 0, set[int]()
        while cookie in pages and cookie not in used:
            used.add(cookie)
            page = pages[cookie]
            names.update(page.entries)
            if page.eof:
                return names
            cookie = page.last
        return None
