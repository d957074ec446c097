# SPDX-License-Identifier: Apache-2.0
"""Put event lines of several sources back in time order; pure: the caller reads, writes and knows the time.

The stamp of a line is its octets 9 to 33 (DESIGN: time comes first, with a fixed width), so nothing is parsed here,
and octet order is time order. Live, a line is released when the wall clock has passed its time by the window: the
largest time seen, as other systems have it, would let one fast clock mark everybody else late.
"""

import heapq
import re
from dataclasses import dataclass, field

from dre import event

HEAD = b'{"time":"'
BEGIN = len(HEAD)
END = BEGIN + 24
CLOSE = ord("}")
_STAMP = re.compile(rb'\{"time":"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d\.\d{3}Z","source":"')
_RESUME = re.compile(rb"#resume (\d{1,20})")


@dataclass
class Stats:
    """Since the last report."""

    taken: int = 0
    released: int = 0
    late: int = 0
    dropped: int = 0
    forced: int = 0
    refused: int = 0


@dataclass
class Place:
    """How far a reorder was in the intake's spool when it died, as it noted it after each release.

    Of the lines before *consumed*, those up to the time *passed* had been released and the others were held; none of
    those was before *oldest*.
    """

    oldest: int = 0
    consumed: int = 0
    passed: bytes = b""


@dataclass
class Reorder:
    """The held lines, a heap of (time, position in the input, line): stable for equal times.

    *passed* is the time up to which everything has been released. With *before* (the Place of the reader before us)
    positions are those of the intake's spool, told by `#resume` lines; what was released already is left out.
    """

    window: float
    most: int = 1_000_000
    late_drop: bool = False
    replay: bool = False
    before: Place | None = None
    held: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    passed: bytes = b""
    position: int = 0
    stats: Stats = field(default_factory=Stats)
    _newest: bytes = b""
    _had: int = 0  # every line before this position has come to us, in this process
    _waiting: bool = False  # for the first #resume line: what comes before is the rest of another reader's input

    def __post_init__(self) -> None:
        if self.before:
            self.passed = self.before.passed
            self._waiting = True

    @property
    def started(self) -> bool:
        """Whether all that the reader before us had has come again: only then may anything be released or noted."""
        return not self._waiting and (self.before is None or self.position >= self.before.consumed)

    def take(self, lines: list[bytes], now: float) -> list[bytes]:
        """Take whole *lines* without their newlines; returns what must leave at once (late, or too many held)."""
        out: list[bytes] = []
        latest = event.stamp(now).encode()
        for line in lines:
            position = self.position
            self.position += len(line) + 1
            if not _STAMP.match(line) or line[-1] != CLOSE or self._waiting:
                self._other(line)
                continue
            stamp = line[BEGIN:END]
            if self.before and self._is_known(position, stamp, self.before):
                continue
            self.stats.taken += 1
            if stamp <= self.passed:
                self._late(line, stamp, out)
                continue
            if not self.replay and stamp > latest:
                stamp = latest  # a clock ahead of ours must not hold its events back
            heapq.heappush(self.held, (stamp, position, line))
            if self.replay and stamp > self._newest:
                self._newest = stamp
                out += self.due(now)  # line by line, so that the outcome does not depend on how the input is cut
            if len(self.held) > self.most:
                # All of the oldest time go: nothing released later may be as old as `passed`.
                out += self.until(self.held[0][0])
                self.stats.forced += 1
        return out

    def add(self, line: bytes) -> None:
        """Hold a *line* of our own, which takes no place in the input."""
        heapq.heappush(self.held, (line[BEGIN:END], self.position, line))

    def _is_known(self, position: int, stamp: bytes, before: Place) -> bool:
        return position < self._had or (position < before.consumed and stamp <= before.passed)

    def _other(self, line: bytes) -> None:
        """A line that is not an event, or comes before we know where we are."""
        told = _RESUME.fullmatch(line) if self.before else None
        if told:
            if not self._waiting:  # a new intake sends again what we hold
                self._had = max(self._had, self.position - len(line) - 1)
            self._waiting = False
            self.position = int(told[1])
            if self.before and self.position < self.before.oldest:
                self.before = Place()  # somebody emptied the spool: these are other lines
        elif not line and self.before:
            self.position -= 1  # the newline before #resume stands in no spool
        elif line and not self._waiting:
            self.stats.refused += 1

    def _late(self, line: bytes, stamp: bytes, out: list[bytes]) -> None:
        if stamp == self.passed:
            out.append(line)  # as old as the last one released, not older
        elif self.late_drop:
            self.stats.dropped += 1
            return
        else:
            self.stats.late += 1
            out.append(b'%s,"late":%.3f}' % (line[:-1], _seconds(self.passed) - _seconds(stamp)))
        self.stats.released += 1

    def due(self, now: float) -> list[bytes]:
        """What is old enough by the wall clock, or in a replay by the newest time seen; in time order."""
        if not self.started:
            return []  # what comes again must not find its time passed
        if self.replay:
            now = _seconds(self._newest)
        return self.until(event.stamp(now - self.window).encode()) if now > self.window else []

    def wait(self, now: float) -> float:
        """Seconds until something is due."""
        return max(0.0, _seconds(self.held[0][0]) + self.window - now) if self.held else 1.0

    def until(self, limit: bytes) -> list[bytes]:
        """Release every held line up to the time *limit*."""
        out = []
        held, pop = self.held, heapq.heappop
        while held and held[0][0] <= limit:
            out.append(pop(held)[2])
        self.passed = max(self.passed, limit)
        self.stats.released += len(out)
        return out

    def rest(self) -> list[bytes]:
        """Release everything: the input has ended."""
        return self.until(max(self.held)[0]) if self.held else []

    def oldest(self) -> int:
        """The position of the first line that is not released yet."""
        return min((position for _, position, _ in self.held), default=self.position)


def _seconds(stamp: bytes) -> float:
    """Seconds since the epoch of a *stamp* of the right form; one that names no moment (the 30th of February) is 0."""
    try:
        return event.seconds(stamp.decode())
    except event.EventError:
        return 0.0
