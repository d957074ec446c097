# SPDX-License-Identifier: Apache-2.0
"""What third parties said of our tree heads, checked: cosignatures under the keys of known witnesses, and time stamps
under the CA of the authority. Anybody may have put a row there, so a row that does not verify is no anchor, and no
alarm; a tree head that was confirmed and that the log does not continue is one.

How old the newest may be is the policy of the settings, judged here for the page, for GET /v1/status and for the tools.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dre import event, evidence, witness
from dre.conf import Conf
from dre.errors import DreError
from dre.evidence import FormatError, Head, Note

TRIED = 16  # anchors that are looked at for one entry, the first ones and the last ones
KEPT = 1_000  # results of time stamps, each of which takes openssl 50 ms
GREEN, AMBER, NONE = "green", "amber", "none"


@dataclass(frozen=True)
class Judged:
    """What the anchors of a log are worth by the policy: *state* green, amber, or none where nobody is asked."""

    state: str
    reason: str


def wanted(conf: Conf) -> bool:
    """Whether the settings know a third party at all."""
    return conf.dbox_witnesses is not None or bool(conf.dbox_tsa_url) or conf.dbox_tsa_ca is not None


def judge(conf: Conf, newest: tuple[str, int] | None, size: int) -> Judged:
    """Judge now by the *newest* proven anchor (the time that the third party said, entries) of a log of *size*."""
    if not wanted(conf):
        return Judged(NONE, "no third party is asked (DRE_DBOX_WITNESSES, DRE_DBOX_TSA_URL)")
    want = f"the settings want one every {conf.dbox_anchor_age / 3600:.1f} h"
    if newest is None:
        return Judged(AMBER, f"no third party is known to have confirmed a tree head yet; {want}")
    age = time.time() - event.seconds(newest[0])
    told = f"the newest anchor is {age / 3600:.1f} h old and covers {newest[1]} of {size} entries"
    return Judged(GREEN, told) if age <= conf.dbox_anchor_age else Judged(AMBER, f"{told}; {want}")


@dataclass(frozen=True)
class Anchor:
    """One anchor; *proven* is the time that the third party said, empty where that is unproven for the reason *why*."""

    kind: str
    name: str
    size: int
    time: str  # when we got it
    head: Head | None = None
    proven: str = ""
    why: str = ""

    @property
    def who(self) -> str:
        """The third party."""
        return f"witness {self.name}" if self.kind == "witness" else f"time stamping authority {self.name}".strip()


class Anchors:
    """The anchors of one log, under the keys of the settings."""

    def __init__(self, conf: Conf, store: Any) -> None:
        self.conf, self.store = conf, store
        self._stamps: dict[tuple[int, bytes], str] = {}

    def judge(self, size: int) -> Judged:
        """Judge the anchors of this log, which has *size* entries now."""
        proven = ((one.proven, one.size) for one in self.newest() if one.proven) if wanted(self.conf) else ()
        return judge(self.conf, max(proven, default=None), size)

    def over(self, number: int) -> Iterator[Anchor]:
        """Anchors of tree heads over entry *number*: the first ones after it, which tell the earliest time."""
        rows = self.store.anchors(number)
        for row in (*rows[:TRIED], *rows[TRIED:][-TRIED:]):
            yield self._checked(*row)

    def newest(self) -> list[Anchor]:
        """The newest anchor of every third party."""
        found: dict[tuple[str, str], tuple[Any, ...]] = {}
        for row in self.store.anchors():
            last = found.get(row[:2])
            if last is None or row[2] >= last[2]:
                found[row[:2]] = row
        return [self._checked(*row) for row in found.values()]

    def _checked(self, kind: str, name: str, size: int, time: str, octets: bytes) -> Anchor:
        head = None
        try:
            there = next(iter(self.store.heads(size - 1, 1)), None)
            if there is None or there[0] != size:
                return Anchor(kind, name, size, time, None, "", "its tree head is not in the database")
            note = evidence.parse_note(there[1])
            head = evidence.parse_head(note.text)
            proven = self._cosigned(name, note, octets) if kind == "witness" else self._stamped(size, note, octets)
            return Anchor(kind, name, size, time, head, proven)
        except (DreError, OSError, UnicodeDecodeError) as error:
            return Anchor(kind, name, size, time, head, "", str(error))

    def _cosigned(self, name: str, note: Note, octets: bytes) -> str:
        """When a witness that we know cosigned. Raises DreError, OSError."""
        place = self.conf.dbox_witnesses
        keys = witness.parse_keys(place.read_text(), str(place)) if place is not None else []
        known = [one.key for one in keys if not name or one.key.name == name]
        if not known:
            raise FormatError(f"no key of this witness is known here ({place or 'DRE_DBOX_WITNESSES is empty'})")
        signed = witness.cosignatures(Note(note.text, witness.signature_lines(octets.decode())), known)
        if not signed:
            raise FormatError("it has no cosignature by a key that is known here")
        return event.stamp(signed[0][1])

    def _stamped(self, size: int, note: Note, octets: bytes) -> str:
        """The time of a time stamp. Raises DreError, OSError."""
        from dre import timestamp

        if self.conf.dbox_tsa_ca is None:
            raise FormatError("no authority is known here (DRE_DBOX_TSA_CA is empty)")
        key = (size, hashlib.sha256(note.text.encode() + octets).digest())
        if key not in self._stamps:
            if len(self._stamps) >= KEPT:
                self._stamps.clear()
            self._stamps[key] = timestamp.check(self.conf.dbox_tsa_ca, note.text, octets)
        return self._stamps[key]
