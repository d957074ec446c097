# SPDX-License-Identifier: Apache-2.0
"""Put event lines of several sources back in time order; pure: the caller reads, writes and knows the time.

The stamp of a line is its octets 9 to 33 (DESIGN: time comes first, with a fixed width), so nothing is parsed here,
and octet order is time order. Live, a line is released when the wall clock has passed its time by the window: the
largest time seen, as other systems have it, would let one fast clock mark everybody else late. No event is younger
than its arrival (`seen`), and those of a source whose clock is wrong are ordered by it: see `clocks`.
"""

import bisect
import heapq
import operator
import re
from dataclasses import dataclass, field

from dre import event

from monitorlib.clocks import SECOND, Clocks

HEAD = b'{"time":"'
BEGIN = len(HEAD)
END = BEGIN + 24
CLOSE = ord("}")
# Python's re takes twice as long for \d{4} as for \d\d\d\d.
_STAMP = re.compile(
    rb'\{"time":"(\d\d\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d\.\d\d\dZ)","source":"([^"]*)"(?:.*"seen":"'
    rb'(\d\d\d\d-[^"]{18}Z)")?',
    re.DOTALL,
)
_RESUME = re.compile(rb"#resume (\d{1,20})")
_BUCKET = len("2026-11-23T08:00:00.1")  # the times of a tenth of a second are sorted together
AHEAD = 0.25  # of the window
MARK, DROP, DIVERT = "mark", "drop", "divert"
Held = tuple[bytes, int, bytes]  # time, position in the input, line
_time = operator.itemgetter(0)


@dataclass
class Stats:
    """Since the last report; *skewed* of the released ones were ordered by their arrival."""

    taken: int = 0
    released: int = 0
    late: int = 0
    dropped: int = 0
    diverted: int = 0
    forced: int = 0
    skewed: int = 0
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


class _Queue:
    """The held lines, in buckets of a tenth of a second; a bucket is sorted when it is wanted."""

    def __init__(self) -> None:
        self.count = 0
        self.buckets: dict[bytes, list[Held]] = {}
        self._order: list[bytes] = []  # a heap of the keys

    def bucket(self, stamp: bytes) -> list[Held]:
        """The bucket for lines of the time *stamp*; who appends one counts it. Equal times stay as they came."""
        key = stamp[:_BUCKET]
        if key not in self.buckets:
            self.buckets[key] = []
            heapq.heappush(self._order, key)
        return self.buckets[key]

    def pop(self, limit: bytes) -> list[bytes]:
        """Every line up to the time *limit*, in order."""
        out: list[bytes] = []
        last = limit[:_BUCKET]
        while self._order and self._order[0] <= last:
            bucket = self._first()
            at = len(bucket)
            if self._order[0] == last:
                at = bisect.bisect_right(bucket, limit, key=_time)
            out += [line for _, _, line in bucket[:at]]
            if at < len(bucket):
                del bucket[:at]
                break
            del self.buckets[heapq.heappop(self._order)]
        self.count -= len(out)
        return out

    def first(self) -> bytes:
        """The oldest time; there must be one."""
        return self._first()[0][0]

    def last(self) -> bytes:
        """The newest time; there must be one."""
        return max(self.buckets[max(self._order)], key=_time)[0]

    def oldest(self, otherwise: int) -> int:
        """The least position, or *otherwise*."""
        return min((held[1] for bucket in self.buckets.values() for held in bucket), default=otherwise)

    def _first(self) -> list[Held]:
        bucket = self.buckets[self._order[0]]
        bucket.sort(key=_time)
        return bucket


@dataclass
class Reorder:
    """Holds lines for *window* seconds, at most *most* of them: stable for equal times.

    *passed* is the time up to which everything has been released. Late lines are marked, dropped, or put into
    *diverted* for the caller to take. With *early*, a line is released at once when every source that sent anything in
    the last *idle* seconds has sent something younger. With *before* (the Place of the reader before us) positions are
    those of the intake's spool, told by `#resume` lines; what was released already is left out.
    """

    window: float
    most: int = 1_000_000
    late: str = MARK
    replay: bool = False
    before: Place | None = None
    skew: float = 0.0
    early: bool = False
    idle: float = 10.0
    passed: bytes = b""
    position: int = 0
    stats: Stats = field(default_factory=Stats)
    diverted: list[bytes] = field(default_factory=list)
    clocks: Clocks = field(init=False)
    _queue: _Queue = field(default_factory=_Queue)
    _newest: bytes = b""
    _until: bytes = b""  # see _replayed
    _bound: bytes = b""
    _had: int = 0  # every line before this position has come to us, in this process
    _waiting: bool = False  # for the first #resume line: what comes before is the rest of another reader's input

    def __post_init__(self) -> None:
        self.clocks = Clocks(self.skew)
        if self.before:
            self.passed = self.before.passed
            self._waiting = True

    @property
    def held(self) -> int:
        """How many lines are held."""
        return self._queue.count

    @property
    def started(self) -> bool:
        """Whether all that the reader before us had has come again: only then may anything be released or noted."""
        return not self._waiting and (self.before is None or self.position >= self.before.consumed)

    def take(self, lines: list[bytes], now: float) -> list[bytes]:
        """Take whole *lines* without their newlines; returns what must leave at once (late, or too many held)."""
        out: list[bytes] = []
        latest = b"" if self.replay else event.stamp(now).encode()
        watched, early, replay = bool(self.skew) or self.early, self.early, self.replay
        # Every line goes through here, several 100 000 a second: what is looked up often is looked up once.
        match, queue, clocks = _STAMP.match, self._queue, self.clocks.known
        buckets, room = queue.buckets, self.most - queue.count
        position, known, waiting = self.position, self._known(), self._waiting
        passed, newest, until, bound = self.passed, self._newest, self._until, self._bound
        left = 0
        for line in lines:
            begin = position
            position += len(line) + 1
            found = match(line)
            if found is None or line[-1] != CLOSE or waiting:
                self.position = position
                self._other(line)
                position, known, waiting = self.position, self._known(), self._waiting
                left += 1
                continue
            stamp, source, seen = found.groups()
            if begin < known and self._is_known(begin, stamp):
                left += 1
                continue
            if seen is None or (latest and seen > latest):
                seen = latest
            if seen:
                if watched:
                    clock = clocks.get(source)
                    if clock is None or clock.looked != seen[:SECOND] or clock.skew or early:
                        stamp, line = self._watched(source, stamp, seen, line)
                        clocks = self.clocks.known
                if stamp > seen:
                    stamp = seen  # a clock ahead of ours must not hold its events back
            if replay:
                if stamp > newest:
                    newest = stamp
                if stamp > until or stamp <= bound:
                    self._newest = newest
                    out += self._replayed(stamp)
                    passed, until, bound = self.passed, self._until, self._bound
                    room = self.most - queue.count
            if stamp <= passed:
                self._late(line, stamp, out)
                continue
            bucket = buckets.get(stamp[:_BUCKET])
            if bucket is None:
                bucket = queue.bucket(stamp)
            bucket.append((stamp, begin, line))
            queue.count += 1
            room -= 1
            if room < 0:
                self._newest = newest
                out += self._forced()
                passed, room = self.passed, self.most - queue.count
        self.position, self._newest = position, newest
        self.stats.taken += len(lines) - left
        return out

    def add(self, line: bytes) -> None:
        """Hold a *line* of our own, which takes no place in the input."""
        self._queue.bucket(line[BEGIN:END]).append((line[BEGIN:END], self.position, line))
        self._queue.count += 1

    def _watched(self, source: bytes, stamp: bytes, seen: bytes, line: bytes) -> tuple[bytes, bytes]:
        """By which time a line is ordered, and how it is passed on."""
        clock = self.clocks.clock(source)
        if self.skew:
            self.clocks.look(source, clock, stamp, seen)
        if clock.skew:
            self.stats.skewed += 1
            stamp, line = seen, b'%s,"skew":%.3f}' % (line[:-1], clock.skew)
        elif stamp > seen:
            stamp = seen
        clock.arrived = seen
        if stamp > clock.last:
            clock.last = stamp
        return stamp, line

    def _replayed(self, stamp: bytes) -> list[bytes]:
        """What a line of the time *stamp* releases in a replay, before it is looked at itself.

        Lines may be released later than they could be, as long as none comes between that is late. So the limit is
        reckoned for a moment somewhat ahead: up to *_until* only lines up to *_bound* can be late, and these ask for
        the exact one.
        """
        now = _seconds(self._newest)
        if stamp > self._until:
            ahead = AHEAD * self.window
            self._until, self._bound = _stamp(now + ahead), _stamp(now + ahead - self.window)
        return self.until(_stamp(now - self.window))

    def _forced(self) -> list[bytes]:
        """What leaves because there are too many; in a replay not what was due anyway."""
        out = self.due(0.0) if self.replay else []
        if self._queue.count > self.most:
            # All of the oldest time go: nothing released later may be as old as `passed`.
            out += self.until(self._queue.first())
            self.stats.forced += 1
        return out

    def _known(self) -> int:
        """The position before which we, or the reader before us, may have had a line."""
        return max(self._had, self.before.consumed) if self.before else 0

    def _is_known(self, position: int, stamp: bytes) -> bool:
        if position < self._had:
            return True
        return self.before is not None and position < self.before.consumed and stamp <= self.before.passed

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
        elif self.late == DROP:
            self.stats.dropped += 1
            return
        else:
            line = b'%s,"late":%.3f}' % (line[:-1], _seconds(self.passed) - _seconds(stamp))
            if self.late == DIVERT:
                self.stats.diverted += 1
                self.diverted.append(line)
                return
            self.stats.late += 1
            out.append(line)
        self.stats.released += 1

    def due(self, now: float) -> list[bytes]:
        """What is old enough by the wall clock, or in a replay by the newest time seen; in time order."""
        if not self.started:
            return []  # what comes again must not find its time passed
        if self.replay:
            now = _seconds(self._newest)
        out = self.until(_stamp(now - self.window))
        if self.early and self._queue.count:
            slowest = self.clocks.slowest(_stamp(now - self.idle))
            if slowest > self.passed:
                # Its own time may come again: only what is older is certain.
                out += self.until(_stamp(_seconds(slowest) - 0.001))
        return out

    def wait(self, now: float) -> float:
        """Seconds until something is due."""
        return max(0.0, _seconds(self._queue.first()) + self.window - now) if self._queue.count else 1.0

    def lag(self, now: float) -> float:
        """Seconds since the oldest held line."""
        return max(0.0, now - _seconds(self._queue.first())) if self._queue.count else 0.0

    def until(self, limit: bytes) -> list[bytes]:
        """Release every held line up to the time *limit*."""
        out = self._queue.pop(limit)
        self.passed = max(self.passed, limit)
        self.stats.released += len(out)
        return out

    def rest(self) -> list[bytes]:
        """Release everything: the input has ended."""
        return self.until(self._queue.last()) if self._queue.count else []

    def oldest(self) -> int:
        """The position of the first line that is not released yet."""
        return self._queue.oldest(self.position)


def _stamp(seconds: float) -> bytes:
    """The time *seconds* after the epoch; empty for one before it."""
    return event.stamp(seconds).encode() if seconds > 0 else b""


def _seconds(stamp: bytes) -> float:
    """Seconds since the epoch of a *stamp* of the right form; one that names no moment (the 30th of February) is 0."""
    try:
        return event.seconds(stamp.decode())
    except event.EventError:
        return 0.0
