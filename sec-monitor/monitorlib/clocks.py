# SPDX-License-Identifier: Apache-2.0
"""Which sources have a wrong clock: told by how far the time of their events is from that of their arrival.

One event a second of a source is looked at, and the median of the last 15 counts: a burst after a stall is one sample,
not a wrong clock. Pure; the moments are those of the events, so a replay comes to the same answers.
"""

import statistics
from collections import deque
from dataclasses import dataclass, field

from dre import event

SAMPLES = 15
ENOUGH = 3  # samples before anything is said
SOURCES = 10_000  # in memory
SECOND = len("2026-11-23T08:00:00")


class Clock:
    """One source: *skew* is 0, or by how many seconds its clock is behind (negative: ahead) while that is too much.

    *looked* is the second of the last sample, *last* the time and *arrived* the arrival of its newest event.
    """

    __slots__ = ("arrived", "deltas", "last", "looked", "skew")

    def __init__(self) -> None:
        self.looked = self.last = self.arrived = b""
        self.skew = 0.0
        self.deltas: deque[float] = deque(maxlen=SAMPLES)


@dataclass
class Clocks:
    """The clocks of all sources; *most* is how far, in seconds, one may be off (0: nobody looks).

    *changed* collects sources whose clock was found wrong, or right again, until the caller empties it.
    """

    most: float
    changed: list[tuple[bytes, float]] = field(default_factory=list)
    known: dict[bytes, Clock] = field(default_factory=dict)

    def clock(self, source: bytes) -> Clock:
        """The clock of *source*."""
        found = self.known.get(source)
        if found is None:
            if len(self.known) >= SOURCES:
                kept = sorted(self.known, key=lambda name: self.known[name].looked)[SOURCES // 2 :]
                self.known = {name: self.known[name] for name in kept}
            found = self.known[source] = Clock()
        return found

    def look(self, source: bytes, clock: Clock, stamp: bytes, seen: bytes) -> None:
        """Take a sample, unless this second has one: an event of time *stamp* arrived at *seen*."""
        if seen[:SECOND] == clock.looked:
            return
        clock.looked = seen[:SECOND]
        try:
            delta = event.seconds(seen.decode()) - event.seconds(stamp.decode())
        except event.EventError:
            return  # a time that there is not
        clock.deltas.append(delta)
        if len(clock.deltas) < ENOUGH:
            return
        median = statistics.median(clock.deltas)
        if abs(median) > self.most:
            if not clock.skew:
                self.changed.append((source, median))
            clock.skew = median
        elif clock.skew and abs(median) <= self.most / 2:
            clock.skew = 0.0
            self.changed.append((source, 0.0))

    def slowest(self, since: bytes) -> bytes:
        """The oldest of the newest times of all sources that sent something after *since*; empty without any."""
        return min((clock.last for clock in self.known.values() if clock.arrived > since), default=b"")
