# SPDX-License-Identifier: Apache-2.0
"""Looks every second at what must live, every ten at what it uses, and tells every minute how far the soak is."""

import threading
import time
from collections.abc import Callable

from demolib import answers
from demolib.places import HOME

from soaklib import processes
from soaklib.faults import Faults
from soaklib.invariants import Absences, Sample
from soaklib.services import Services
from soaklib.work import Work

REQUESTS = HOME / "requests.jsonl"
SAMPLE, TELL = 10.0, 60.0  # seconds


class Watch:
    """`absences` and `samples` are what was seen."""

    def __init__(self, services: Services, work: Work, faults: Faults, say: Callable[[str], None]) -> None:
        self.services, self.work, self.faults, self.say = services, work, faults, say
        self.absences = Absences()
        self.samples: list[Sample] = []
        self.begun = 0.0  # time.monotonic()
        self._ended = threading.Event()
        self._first: dict[int, float] = {}  # when a process was first seen
        self._thread = threading.Thread(target=self._watch, name="watch")

    def start(self) -> None:
        """Begin."""
        self.begun = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        sample, tell = self.begun, self.begun + TELL
        while not self._ended.wait(1.0):
            now, all_ = time.monotonic(), processes.table()
            self.absences.note(now, self.services.lacking(all_))
            if now >= sample:
                self._sample(now, all_)
                sample += SAMPLE
            if now >= tell:
                self.say(self.told(now))
                tell += TELL

    def _sample(self, now: float, all_: processes.Table) -> None:
        for name, found in self.services.parts(all_).items():
            for number, one in enumerate(found, 1):
                memory, descriptors = processes.memory(one.pid), processes.descriptors(one.pid)
                if memory is None or descriptors is None:
                    continue
                part = f"{name} {number}" if len(found) > 1 else name
                age = now - self._first.setdefault(one.pid, now)
                self.samples.append(Sample(part, one.pid, now - self.begun, age, memory, descriptors))

    def told(self, now: float) -> str:
        """How far it is."""
        requests = answers.parse(REQUESTS.read_text()) if REQUESTS.exists() else []
        good = sum(not request.failed for request in requests)
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.counts.items()))
        return (
            f"{(now - self.begun) / 60:.0f} min: {sum(self.faults.counts.values())} faults ({counts}); "
            f"{good} of {len(requests)} requests answered; {len(self.work.records)} records and "
            f"{len(self.work.ticks)} events acknowledged; services started again "
            f"{sum(self.services.restarts.values())} times"
        )
