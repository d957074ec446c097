# SPDX-License-Identifier: Apache-2.0
"""The engine's time: seconds since 1970 that go on at their pace, whatever becomes of the clock of this host.

Else a clock that jumps ahead would use up deadlines and give attempts back, and one that jumps back would hold both
for hours. Who sets the host's clock is seen only at the next start, and never to go back behind what was decided.
"""

import time


class Clock:
    """Begins with the host's clock, but not before *least*."""

    def __init__(self, least: float = 0.0) -> None:
        self.base = max(time.time(), least) - _since_boot()

    def now(self) -> float:
        """The time now."""
        return self.base + _since_boot()

    def of(self, stamp: float) -> float:
        """When something happened that the host's clock has stamped *stamp*: as long ago as that clock says now.

        What is from the future happens now: it must not push the clock of the guards ahead.
        """
        return self.now() - max(0.0, time.time() - stamp)


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
