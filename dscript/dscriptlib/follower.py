# SPDX-License-Identifier: Apache-2.0
"""A thread that hands on what the journal holds, in order, at its own pace, so that a slow receiver delays nobody.

How far it has come lies in a file beside the journal: after a crash it goes on there, and the one line that it may
then hand on a second time carries the same event id.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dre.errors import DreError

RETRY = (0.5, 1.0, 2.0, 5.0)  # seconds between attempts; the last one from then on
IDLE = 1.0
Item = tuple[int, bytes]


class Follower(threading.Thread):
    """Calls *deliver* for each line, again until it succeeds, and *idle* when there is nothing else to do."""

    def __init__(
        self,
        mark: Path,
        deliver: Callable[[bytes], None],
        idle: Callable[[], None],
        complain: Callable[[str], None],
    ) -> None:
        super().__init__(name=mark.name, daemon=True)
        self.fd = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        text = os.read(self.fd, 32).decode("ascii", "replace").strip()
        self.mark = int(text) if text.isdecimal() else 0
        self.deliver, self.idle, self.complain = deliver, idle, complain
        self.items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self.ending = threading.Event()

    def hand(self, number: int, line: bytes) -> None:
        """Take over one line; returns at once."""
        self.items.put((number, line))

    def stop(self, wait: float) -> None:
        """Hand on what is there, for at most *wait* seconds; the rest stays in the journal for the next start."""
        self.ending.set()
        self.items.put(None)
        self.join(wait)

    def run(self) -> None:
        """Work until stopped."""
        while True:
            try:
                item = self.items.get(timeout=IDLE)
            except queue.Empty:
                self._try(self.idle)
                continue
            if item is None or not self._persist(item):
                self._try(self.idle)
                return
            if self.items.empty():
                self._try(self.idle)

    def _persist(self, item: Item) -> bool:
        """Deliver *item* however long it takes; False when the engine ends before."""
        number, line = item
        attempt = 0
        while not self._try(lambda: self.deliver(line)):
            if self.ending.wait(RETRY[min(attempt, len(RETRY) - 1)]):
                return False
            attempt += 1
        self.mark = number
        os.pwrite(self.fd, b"%020d\n" % number, 0)
        os.fdatasync(self.fd)
        return True

    def _try(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except (DreError, OSError) as error:
            self.complain(str(error))
            return False
        return True


class Once:
    """Says a complaint once, and again only when it changes or an hour has passed."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.last = ("", 0.0)

    def __call__(self, text: str) -> None:
        """Say *text*, unless it was just said."""
        now = time.monotonic()
        if text != self.last[0] or now - self.last[1] > 3600:
            self.last = (text, now)
            self.say(text)
