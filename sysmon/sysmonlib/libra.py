# SPDX-License-Identifier: Apache-2.0
"""An NFS mount in two views: what its server said on the wire, and what the guest says by its agent.

Files come and go while both are taken, so a difference counts only when it is there again in one look after the other,
with nothing on the wire that would explain it. What was not seen on the wire is never taken for clean.
"""

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dre import cli, event
from dre.errors import MissingError
from dre.system.agent import NonsenseError

from sysmonlib.cross import INCONSISTENT, Finding
from sysmonlib.inside import File, Mount, Nonsense, View
from sysmonlib.served import VALUES, Attributes, Fsid, Object, Served

FILE = "sysmon.hidden.file"
CONFIRM = 3  # looks in a row in which a difference must be there
PERSIST = 8  # the same, where the wire shows that something changes just there
LOOKS = 10  # of one scan; who changes things all the time is not clean by that
AGAIN = 0.1  # seconds between two looks
PATH = 1024  # characters of a path that are told, its last ones, of a name all; an event holds no more
_UNSEEN = "unseen"
_Key = tuple[Any, ...]


@dataclass(frozen=True)
class Sight:
    """Both views of one moment.

    *apart*: what below is looked at elsewhere, or not to be; *whole*: no frame was lost; *secured*: nobody can read
    them; *forged*: some were.
    """

    mount: Mount
    view: View
    served: Served
    apart: frozenset[bytes] = frozenset()
    whole: bool = True
    secured: bool = False
    forged: bool = False


@dataclass
class _Suspect:
    """A difference: the event that it would be (*data* and *type*) or, of what was not seen, the reason (*text*)."""

    key: _Key
    alias: _Key
    type: str
    data: dict[str, Any]
    text: str = ""
    needs: int = CONFIRM
    seen: int = 1
    first_seen: str = field(default_factory=event.stamp)

    @property
    def certain(self) -> bool:
        """Whether it was there often enough."""
        return self.seen >= self.needs


class Libra:
    """Looks again and again at one mount of the guest *system*; *see* takes a look, True: with attributes forced."""

    def __init__(self, system: str, see: Callable[[bool], Sight]) -> None:
        self._system, self._see = system, see
        self._reported: set[_Key] = set()
        self.aside: list[str] = []  # what the last scan did not look at, and why

    def scan(self) -> list[Finding]:
        """Look until all is settled; what is new of what was found, or [] where all that there is was seen.

        Raises MissingError where something was not seen on the wire, and what *see* raises.
        """
        suspects: dict[_Key, _Suspect] = {}
        times = Counter[_Key]()  # looks in which something was suspect, in a row or not
        forced = False
        for number in range(LOOKS):
            if number:
                time.sleep(AGAIN)
            try:
                sight = self._see(forced)
            except (Nonsense, NonsenseError) as error:
                return self._new([self._rogue(str(error))])
            self.aside = []
            suspects = _carried(suspects, self._differences(sight))
            times.update({key for suspect in suspects.values() for key in (suspect.key, suspect.alias)})
            forced = any(suspect.type == _UNSEEN for suspect in suspects.values())
            if all(suspect.certain for suspect in suspects.values()):
                break
        certain = [suspect for suspect in suspects.values() if suspect.certain]
        unseen = [suspect.text for suspect in certain if suspect.type == _UNSEEN]
        found = [suspect for suspect in certain if suspect.type != _UNSEEN]
        if not found and unseen:
            more = f", and {len(unseen) - 1} more" if len(unseen) > 1 else ""
            raise MissingError(f"{self._system}: {unseen[0]}{more}")
        if not found and suspects:
            found = [self._unsettled(list(suspects.values()), times)]
        self.aside += unseen
        return self._new(found)

    def _new(self, found: list[_Suspect]) -> list[Finding]:
        new = [suspect for suspect in found if suspect.key not in self._reported]
        self._reported.update(suspect.key for suspect in new)
        return [
            Finding(
                suspect.type,
                {
                    "system": self._system,
                    **suspect.data,
                    "first_seen": suspect.first_seen,
                    "confirmed": event.stamp(),
                },
            )
            for suspect in new
        ]

    def _rogue(self, reason: str) -> _Suspect:
        key = (INCONSISTENT, "agent")
        return _Suspect(key, key, INCONSISTENT, {"views": ["agent"], "reason": cli.harmless(reason)[:PATH]})

    def _unsettled(self, suspects: list[_Suspect], times: Counter[_Key]) -> _Suspect:
        """Each look had a difference, though never the same: somebody may know how to hide. Raises MissingError."""
        if any(suspect.type == _UNSEEN for suspect in suspects):
            raise MissingError(f"{self._system}: it changes too fast: not all was seen in any of {LOOKS} looks")
        # What the wire shows to come or go just then, and is another file in each look, may be honest work.
        if all(one.needs == PERSIST and max(times[one.key], times[one.alias]) < CONFIRM for one in suspects):
            raise MissingError(f"{self._system}: it changes too fast: other files came or went in all {LOOKS} looks")
        key = (INCONSISTENT, "unsettled")
        reason = f"the views differ in each of {LOOKS} looks, though not by the same"
        return _Suspect(key, key, INCONSISTENT, {"views": ["getdents", "stat"], "reason": reason})

    def _differences(self, sight: Sight) -> Iterator[_Suspect]:
        shown = os.fsdecode(sight.mount.path)
        if sight.secured:
            raise MissingError(f"{self._system}: {shown}: Kerberos or TLS hides what its server says")
        if sight.served.full:
            raise MissingError(f"{self._system}: {shown}: its server says more than can be kept")
        if sight.forged:
            key, reason = ("forged",), "there are two different segments of TCP for one place: one of them is forged"
            yield _Suspect(key, key, INCONSISTENT, {"views": ["wire"], "reason": reason}, needs=1)
        if not sight.whole:
            yield _unseen(("frames",), f"{shown}: not all frames could be read")
        elif sight.served.empty:
            yield _unseen(("nothing",), f"{shown}: nothing of it was seen on the network")
        else:
            root = sight.view.files.get(sight.mount.path)
            if root is None or (root.device, root.fileid) != (sight.mount.device, sight.mount.fileid):
                yield _unseen(("root",), f"{shown}: the guest says nothing of it")
            for path, found in sight.view.files.items():
                yield from _Place(sight, path, found, self.aside).differences()


def _carried(before: Mapping[_Key, _Suspect], now: Iterator[_Suspect]) -> dict[_Key, _Suspect]:
    """The suspects of *now*, each with how often it was one in a row; a file that was renamed is the same."""
    known = {suspect.alias: suspect for suspect in before.values()}
    found = {}
    for suspect in now:
        earlier = max(
            filter(None, (before.get(suspect.key), known.get(suspect.alias))), key=lambda one: one.seen, default=None
        )
        if earlier is not None:
            suspect.seen, suspect.first_seen = earlier.seen + 1, earlier.first_seen
            suspect.needs = max(suspect.needs, earlier.needs)
        found[suspect.key] = suspect
    return found


def _unseen(what: _Key, text: str) -> _Suspect:
    key = (_UNSEEN, *what)
    return _Suspect(key, key, _UNSEEN, {}, text)


def _path(path: bytes) -> str:
    """*path* as it is told: without what would command a terminal, and not too long for an event."""
    text = cli.harmless(path.decode(errors="backslashreplace"))
    return text if len(text.encode()) <= PATH else "..." + text.encode()[-PATH:].decode(errors="ignore")


def _device(fsid: Fsid) -> str:
    return f"{fsid[0]:x}:{fsid[1]:x}"


class _Place:
    """One file or directory that the guest tells of; what is not looked at is added to *aside*."""

    def __init__(self, sight: Sight, path: bytes, found: File, aside: list[str]) -> None:
        self._mount, self._view, self._served = sight.mount, sight.view, sight.served
        self._path, self._found, self._apart, self._aside = path, found, sight.apart, aside
        self._object: Object = (sight.mount.server, sight.mount.fsid, found.fileid)

    def differences(self) -> Iterator[_Suspect]:
        """What the server says otherwise, and what it was not heard of."""
        directory = stat.S_ISDIR(self._found.mode)
        if self._found.device != self._mount.device:
            if self._path not in self._apart:
                yield _unseen(
                    ("device", self._path), f"{_path(self._path)} is of another file system, as the guest has it"
                )
            return
        yield from self._attributes()
        if directory:
            yield from self._names()

    def _attributes(self) -> Iterator[_Suspect]:
        said = self._served.of(self._object)
        for hides, told, ours in self._values(said):
            if not ours:
                text = f"the {hides} of {_path(self._path)} was not seen on the network"
                yield _unseen((hides, self._object), text)
            elif told not in ours and not (len(said) >= VALUES and min(ours) <= told <= max(ours)):
                suspect = self._file(hides, self._path, self._object, {hides: min(ours), "told": told})
                suspect.needs = CONFIRM if len(ours) == 1 else PERSIST
                yield suspect

    def _values(self, said: tuple[Attributes, ...]) -> Iterator[tuple[str, Any, set[Any]]]:
        """What is compared: its name, what the guest says, and all that the server said."""
        modes = {found.mode for found in said if found.mode is not None}
        yield "mode", f"{self._found.mode:06o}", {f"{mode:06o}" for mode in modes}
        if stat.S_ISREG(self._found.mode) or stat.S_ISLNK(self._found.mode):
            yield "size", self._found.size, {found.size for found in said if found.size is not None}

    def _names(self) -> Iterator[_Suspect]:
        names, listing = self._view.names.get(self._path), self._served.listing(self._object)
        if names is None or listing is None:
            if self._served.denied(self._object):
                self._aside.append(f"{_path(self._path)} may not be read by root of the guest")
            else:
                yield _unseen(
                    ("names", self._object), f"no whole listing of {_path(self._path)} was seen on the network"
                )
            return
        for name in listing.whole.keys() - names:
            fileid = listing.whole[name]
            wanted = self._object if fileid is None else (*self._object[:2], fileid)
            path = self._path.rstrip(b"/") + b"/" + name
            suspect = self._file("name", path, wanted, {}, key=("name", self._object, name))
            suspect.needs = PERSIST if name in listing.changed else CONFIRM
            yield suspect
        for name in names - listing.all - listing.changed:
            yield self._odd("getdents", name, "is not on the server")
        for name in names - listing.changed:
            found, fileid = self._view.files.get(self._path.rstrip(b"/") + b"/" + name), listing.whole.get(name)
            if found is None:
                if not self._served.denied(self._object):
                    yield self._odd("stat", name, "is listed, and nothing more is said of it")
            elif fileid not in (None, found.fileid) and found.device == self._mount.device:
                yield self._odd("stat", name, "is another file than that on the server")

    def _file(
        self, hides: str, path: bytes, what: Object, data: Mapping[str, Any], key: _Key | None = None
    ) -> _Suspect:
        """A finding: the guest hides of *what* its name, or tells another size or mode."""
        name = path.rpartition(b"/")[2]
        fields = {
            "views_missing": ["getdents" if hides == "name" else "stat"],
            "hides": hides,
            "name": _path(name),
            "path": _path(path),
            "fsid": _device(self._mount.fsid),
            "fileid": what[2],
            **data,
        }
        return _Suspect(key or (hides, what), (hides, what), FILE, fields)

    def _odd(self, view: str, name: bytes, reason: str) -> _Suspect:
        key = (view, self._object, name)
        path = _path(self._path.rstrip(b"/") + b"/" + name)
        return _Suspect(key, key, INCONSISTENT, {"views": [view], "path": path, "reason": f"{path} {reason}"})
