# SPDX-License-Identifier: Apache-2.0
"""What streams may use of the D-Box: quota, rate, retention, and who is refused first when the disk fills.

Only the sequencer's thread comes here, before it gives an entry its number. Every refusal is counted, and the counts
become entries of the log: the first at once, more of them once a minute. A stream that has used four fifths of its
quota is told of in an event.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dre.streams import Policies, Policy

from dboxlib.log import QuotaError

WARN = 0.8  # of a quota
REPORT = 60.0  # seconds between entries that tell of refusals
LOOK = 0.5  # seconds for which the free space found is believed
REASONS = 20  # different refusals in one report; the others are counted together
STREAMS = 10_000  # different ones: writers invent them
TWICE = 2  # octets take this much at first: in the database and in its journal
BURST = 10.0  # seconds of a rate that may come at once
Told = Callable[[str, dict[str, object]], None]


@dataclass
class _Use:
    entries: int = 0
    octets: int = 0
    refused: int = 0
    warned: bool = False
    tokens: float = 0.0
    at: float = 0.0


@dataclass
class _Refusals:
    entries: int = 0
    octets: int = 0
    requests: int = 0


class Streams:
    """The use of all streams."""

    def __init__(
        self,
        policies: Policies | None = None,
        reserve: int = 0,
        free: Callable[[], tuple[int, int] | None] = lambda: None,
        told: Told = lambda _kind, _data: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policies = policies or Policies()
        self.reserve = reserve
        self.told = told
        self.refused = 0
        self._since = 0  # octets let in since the free space was looked at
        self._ask, self._clock = free, clock
        self._disk: tuple[int, int] | None = None
        self._looked = self._reported = float("-inf")
        self._use: dict[str, _Use] = {}
        self._refusals: dict[tuple[str, str], _Refusals] = {}

    def policy(self, stream: str) -> Policy:
        """The rules of a stream."""
        return self.policies.of(stream)

    def reset(self) -> None:
        """Begin to count anew, when the log is read back."""
        for use in self._use.values():
            use.entries = use.octets = 0

    def add(self, stream: str, entries: int, octets: int) -> None:
        """Count what is kept now."""
        use = self._used(stream)
        use.entries += entries
        use.octets += octets
        quota = self.policy(stream).quota
        if quota is None or use.octets < WARN * quota:
            use.warned = False
        elif not use.warned:
            use.warned = True
            self.told("dbox.quota.warning", {"stream": stream, "octets": use.octets, "quota": quota})

    def admit(self, stream: str, entries: int, octets: int, more: int = 0) -> None:
        """Let new entries in or raise QuotaError; *more* octets of the stream are in the batch already."""
        if stream not in self._use and len(self._use) >= STREAMS:
            text = f"the D-Box has {STREAMS} streams already: no room for stream {stream}"
            raise self._refusal("", "streams", entries, octets, text, 3600)
        rules, use = self.policy(stream), self._used(stream)
        if rules.quota is not None and use.octets + more + octets > rules.quota:
            text = f"stream {stream} has {use.octets} of its {rules.quota} octets: no room for {octets} more"
            raise self._refusal(stream, "quota", entries, octets, text, 3600)
        disk = self.disk()
        if disk is not None and disk[0] - octets < self.reserve * (1 + rules.priority) and self.reserve:
            text = f"{disk[0]} octets are free on the D-Box's disk: too few for stream {stream}"
            raise self._refusal(stream, "disk", entries, octets, text, 300)
        if rules.rate is not None:
            self._spend(stream, rules.rate, use, entries, octets)
        self._since += octets

    def _spend(self, stream: str, rate: float, use: _Use, entries: int, octets: int) -> None:
        """Take tokens of a bucket; a run larger than the bucket goes through when it is full, and leaves a debt."""
        now, most = self._clock(), max(rate * BURST, 1.0)
        use.tokens = most if not use.at else min(most, use.tokens + (now - use.at) * rate)
        use.at = now
        if use.tokens < min(entries, most):
            wait = int((min(entries, most) - use.tokens) / rate) + 1
            text = f"stream {stream} may have {rate:g} entries per second"
            raise self._refusal(stream, "rate", entries, octets, text, wait)
        use.tokens -= entries

    def _refusal(self, stream: str, reason: str, entries: int, octets: int, text: str, wait: int) -> QuotaError:
        self.count(stream, reason, entries, octets)
        return QuotaError(text, reason != "rate", wait)

    def count(self, stream: str, reason: str, entries: int, octets: int) -> None:
        """Count a refusal."""
        key = (stream, reason)
        if key not in self._refusals and len(self._refusals) >= REASONS:
            key = ("", reason)
        found = self._refusals.setdefault(key, _Refusals())
        found.entries += entries
        found.octets += octets
        found.requests += 1
        if stream:
            self._used(stream).refused += entries
        self.refused += entries

    def report(self) -> list[dict[str, object]]:
        """What was refused since the last report, if it is time for one."""
        now = self._clock()
        if not self._refusals or now - self._reported < REPORT:
            return []
        return [
            {"stream": stream, "reason": reason, **found.__dict__} for (stream, reason), found in self._refusals.items()
        ]

    def urge(self) -> None:
        """Have the next report at once."""
        self._reported = float("-inf")

    def reported(self) -> None:
        """The last report is in the log."""
        self._reported = self._clock()
        self._refusals = {}

    def disk(self) -> tuple[int, int] | None:
        """Octets that are free for the log, and all of its disk."""
        now = self._clock()
        if now - self._looked > LOOK:
            self._looked, self._disk, self._since = now, self._ask(), 0
        if self._disk is None:
            return None
        return max(self._disk[0] - TWICE * self._since, 0), self._disk[1]

    def status(self) -> list[dict[str, Any]]:
        """The use of each stream."""
        return [
            {
                "stream": stream,
                "entries": use.entries,
                "octets": use.octets,
                "quota": self.policy(stream).quota,
                "refused": use.refused,
            }
            for stream, use in sorted(self._use.items())
        ]

    def _used(self, stream: str) -> _Use:
        return self._use.setdefault(stream, _Use())
