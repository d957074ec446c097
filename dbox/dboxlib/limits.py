# SPDX-License-Identifier: Apache-2.0
"""How often one client may ask: a token bucket each, in memory. Quotas of streams are the sequencer's."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

KNOWN = 4_096  # clients remembered; who was not here for longest is forgotten, and so begins anew


class Rate:
    """*most* requests per second of each client, and as many at once; 0 sets no limit."""

    def __init__(self, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def wait(self, client: str) -> float:
        """Count a request of *client*: 0, or for how many seconds it should not ask again."""
        if not self.most:
            return 0.0
        now = self._clock()
        with self._lock:
            left, then = self._left.pop(client, (self.most, now))
            left = min(self.most, left + (now - then) * self.most)
            self._left[client] = (left - 1 if left >= 1 else left), now
            if len(self._left) > KNOWN:
                self._left.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.most
