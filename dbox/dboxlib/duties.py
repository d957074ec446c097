# SPDX-License-Identifier: Apache-2.0
"""What the sequencer's thread does between batches: another sign key, refusals on record, octets that go.

Whatever goes has its reason in the log before it goes, so that one who was killed in between can be finished.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence

from dre import evidence, trust
from dre.errors import DreError

from dboxlib import pki
from dboxlib.appender import Appender
from dboxlib.log import Outcome
from dboxlib.signer import SignKey
from dboxlib.store import FencedError, Store

EXPIRE = 60.0  # seconds between looks for octets whose time is over
EXPIRED = 5_000  # octets erased at once
Rotate = Callable[[bool], tuple[SignKey, Callable[[], None]] | None]


class Duties:
    """What is due in *log*; *eraser* opens the database under the account that may erase, where that is another one."""

    def __init__(self, log: Appender, eraser: Callable[[], Store] | None = None) -> None:
        self.log = log
        self.rotation: Rotate = lambda _now: None
        self.told: Callable[[str, dict[str, object]], None] = lambda _kind, _data: None  # emits an event
        self._eraser = eraser
        self._expired: dict[str, int] = {}  # up to where octets of a stream have gone
        self._looked = float("-inf")

    def run(self) -> None:
        """All that is due; what goes wrong is said, and tried again the next time."""
        for duty in (lambda: self.replace_key(False), self.report, self._expire):
            try:
                duty()
            except FencedError:
                return
            except (DreError, OSError) as error:
                sys.stderr.write(f"dbox: {error}\n")

    def replace_key(self, now: bool) -> bool:
        """Replace the sign key when its time has come; the old key signs the entry that names the new one."""
        try:
            made = self.rotation(now)
            if made is None:
                return False
            sign, finish = made
            old, new = (trust.fingerprint(one.certificate) for one in (self.log.signer.sign, sign))
            data: dict[str, object] = {"old": old, "new": new, "size": self.log.head.size + 1}
            certificate = ("sign", new, pki.pem(sign.certificate).decode())
            self.log.append_own("dbox.key.rotated", data, certificate=certificate)
            self.log.signer.replace(sign)
            finish()
        except (DreError, OSError) as error:
            raise DreError(f"sign key not replaced, going on with the present one: {error}") from None
        return True

    def report(self) -> None:
        """Make the refusals of the last minute entries of the log."""
        found = self.log.streams.report()
        for data in found:
            self.log.append_own("dbox.refused", data)
            self.told("dbox.refused", data)
        if found:
            self.log.streams.reported()

    # --- Octets that go ---

    def erase(self, number: int, reason: str, first: str, second: str) -> Outcome:
        """Remove octets and salt of an entry for *reason*. Raises IndexError, DreError."""
        found = self.log.store.payload(number)
        if found is None or number >= self.log.head.size:
            raise IndexError(number)
        if found[1] is None:
            raise DreError(f"the octets of entry {number} were erased already")
        header = evidence.parse_header(found[0])
        data: dict[str, object] = {"entry": number, "reason": reason, "first": first, "second": second}
        row = (number, len(found[1]), self.log.now(), reason, first, second)
        outcome = self.log.append_own("dbox.erased", data, erased=[row])
        self._remove([number])
        self.log.streams.add(header.stream, 0, -len(found[1]))
        return outcome

    def finish_erasing(self) -> None:
        """Remove octets that have a reason already: somebody was killed in between."""
        left = self.log.store.unfinished()
        if left:
            self._remove(left)
            self.log.reload()

    def _remove(self, numbers: Sequence[int]) -> None:
        if self._eraser is None:
            self.log.store.erase(numbers)
            return
        with contextlib.closing(self._eraser()) as other:
            other.erase(numbers)

    def _expire(self) -> None:
        """Erase octets that a stream keeps for a time only."""
        now = time.monotonic()
        if now - self._looked < EXPIRE or not self.log.streams.policies.any_keeps():
            return
        self._looked = now
        sources: dict[str, list[int]] = {}
        for number, (writer, stream) in self.log.store.sources().items():
            if writer != self.log.own:
                sources.setdefault(stream, []).append(number)
        for stream, numbers in sources.items():
            keep = self.log.streams.policy(stream).keep
            if keep is not None:
                self._expire_stream(stream, numbers, int((self.log.clock() - keep) * 1000))

    def _expire_stream(self, stream: str, sources: Sequence[int], before: int) -> None:
        end = self.log.store.first_at(before)
        found = self.log.store.old(sources, end, self._expired.get(stream, 0), EXPIRED)
        if not found:
            self._expired[stream] = end
            return
        numbers = [number for number, _ in found]
        data: dict[str, object] = {
            "stream": stream,
            "first": numbers[0],
            "last": numbers[-1],
            "entries": len(found),
        }
        when = self.log.now()
        rows = [(number, length, when, "retention", "", "") for number, length in found]
        self.log.append_own("dbox.expired", data, erased=rows)
        self._remove(numbers)
        self.log.streams.add(stream, 0, -sum(length for _, length in found))
        self._expired[stream] = numbers[-1] + 1
        if len(found) == EXPIRED:
            self._looked = float("-inf")  # there is more
