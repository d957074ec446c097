# SPDX-License-Identifier: Apache-2.0
"""The engine's time: seconds since 1970 that go on at their pace, whatever becomes of the clock of this host.

Else a clock that jumps ahead would use up deadlines and give attempts back, and one that jumps back would hold both
for hours. Who sets the host's clock is seen only at the next start, and never to go back behind what was decided.
"""

import time

SLEWED = 0.1  # seconds the host's clock may drift from ours until it counts as set, not slewed


class Clock:
    """Begins with the host's clock, but not before *least*."""

    def __init__(self, least: float = 0.0) -> None:
        self.base = max(time.time(), least) - _since_boot()
        self.ahead = self._ahead()

    def now(self) -> float:
        """The time now."""
        return self.base + _since_boot()

    def of(self, stamp: float) -> float:
        """When something happened that the host's clock has stamped *stamp*: as long ago as that clock says now.

        What is from the future happens now: it must not push the clock of the guards ahead. Two stamps stay as far
        apart as they are: only when the host's clock was set do they move against each other.
        """
        ahead = self._ahead()
        if abs(ahead - self.ahead) > SLEWED:
            self.ahead = ahead
        return min(stamp + self.ahead, self.now())

    def _ahead(self) -> float:
        """Seconds our time is ahead of the host's clock.

        Who is stopped between the looks at both clocks would find them apart by as long, so that the nearest pair of
        several counts.
        """
        pairs = []
        for _ in range(3):
            before, ours, after = time.time(), self.now(), time.time()
            pairs.append((abs(after - before), ours - (before + after) / 2))
        return min(pairs)[1]


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
