# SPDX-License-Identifier: Apache-2.0
"""Types at a guest in windows of time chosen at random, and counts what it puts out in each.

Text that does no harm: a letter and BackSpace, which a line of a terminal shows and takes back, and never Enter. Both
are handed over at once, so that whatever happens to us leaves no letter there. Where keys were lost on the way, which
may have been a BackSpace, as many more are pressed at the end.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dre.errors import MissingError

from sysmonlib.foxy import AT_ONCE, DELAYED, Kernel
from sysmonlib.keyboard import KEYS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LISTENED = 3.0  # seconds, before, in which nobody else may type
ANSWERED = 0.5  # seconds in which a guest takes two keys
STRAY = 4  # octets of a keyboard in a window without keys that are nobody's: it answers a change of its lights
OCTETS = 2  # of a keyboard for a key that is pressed and let go: scan codes of set 1
ERASED = 64  # times that BackSpace is pressed at most, where keys were lost
Counter = tuple[str, str]  # device, and what is counted


@dataclass(frozen=True)
class Course:
    """How it is done: *pairs* of keys, evenly over a share *typing* of *length* seconds, in half of *windows*."""

    windows: int
    length: float
    typing: float
    pairs: int
    kernels: tuple[Kernel, ...]
    least: Mapping[str, int]  # what a key logger that is looked for puts out in a window with keys, by counter

    @property
    def tail(self) -> int:
        """Windows without keys at the end, for what comes late."""
        return len(self.kernels[0]) - 1


def at_once(windows: int) -> Course:
    """For what puts out each key when it is pressed: in a packet of UDP, or in a sector of a disk."""
    pairs = 30
    least = {"octets": 43 * pairs, "packets": pairs, "writes": pairs, "flushes": pairs}
    return Course(windows, 1.5, 0.7, pairs, AT_ONCE, least)


def slowly(windows: int) -> Course:
    """For what keeps up to 4096 keys, of an octet each and of letters only, or each for up to 60 s."""
    return Course(windows, 60.0, 0.7, 4200, DELAYED, {"octets": 4096, "packets": 1, "writes": 1, "flushes": 1})


class Guest(Protocol):
    """What is typed at."""

    def press(self, keys: Sequence[int]) -> None:
        """Press and let go of *keys*."""

    def taken(self) -> int:
        """Octets that its keyboard has handed over, up to now."""

    def output(self) -> Mapping[Counter, int]:
        """What it has put out, up to now."""


@dataclass
class Typed:
    """What came of it: the output of each window, *keys* that were pressed, octets the guest has *taken* of them."""

    pattern: tuple[bool, ...]
    series: dict[Counter, list[int]]
    keys: int = 0
    taken: int = 0

    def arrived(self) -> bool:
        """Whether the guest has taken the keys, but for some."""
        return self.taken * 10 >= self.keys * OCTETS * 9

    def lost(self) -> int:
        """How many of the keys it has not taken."""
        return max(0, self.keys - self.taken // OCTETS)


class Typist:
    """Types at *guest*; *source* chooses the letters."""

    def __init__(
        self,
        guest: Guest,
        source: random.Random,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        told: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        self._guest, self._source, self._clock, self._sleep, self._told = guest, source, clock, sleep, told

    def listen(self) -> None:
        """Raise MissingError if somebody else types, or one could not tell, as the guest takes no keys."""
        before = self._guest.taken()
        self._sleep(LISTENED)
        if self._guest.taken() != before:
            raise MissingError("somebody is typing there")
        self._pair()
        self._sleep(ANSWERED)
        if self._guest.taken() < before + 2 * OCTETS:
            raise MissingError("it takes no keys: it has another keyboard than PS/2, or does not read it")

    def type(self, course: Course, pattern: Sequence[bool]) -> Typed:
        """Do as *course* says. Raises MissingError where somebody else types, or the host is too slow for it."""
        done = Typed(tuple(pattern), {})
        try:
            self._type(course, [*pattern, *[False] * course.tail], done)
        finally:
            for _ in range(min(done.lost(), ERASED)):
                self._guest.press([KEYS["backspace"]])
                self._sleep(0.02)
        return done

    def _type(self, course: Course, windows: Sequence[bool], done: Typed) -> None:
        due, output, taken = self._clock(), self._guest.output(), self._guest.taken()
        for number, on in enumerate(windows):
            self._told(number, len(windows))
            if on:
                self._keys(course, due, done)
            due += course.length
            self._sleep(max(0.0, due - self._clock()))
            before, output = output, self._guest.output()
            early, taken = taken, self._guest.taken()
            if self._clock() > due + course.length / 2:
                raise MissingError("this host is too busy: a window of time was missed")
            if output.keys() != before.keys():
                raise MissingError("a device was plugged or unplugged meanwhile")
            for key, count in output.items():  # one that is counted anew has begun at 0
                done.series.setdefault(key, []).append(count - before[key] if count >= before[key] else count)
            if on:
                done.taken += taken - early
            elif taken - early > STRAY:
                raise MissingError("somebody is typing there")

    def _keys(self, course: Course, begun: float, done: Typed) -> None:
        apart = course.length * course.typing / course.pairs
        for number in range(course.pairs):
            self._sleep(max(0.0, begun + number * apart - self._clock()))
            if self._clock() > begun + course.length:
                raise MissingError("this host is too busy: keys could not be pressed in time")
            self._pair()
            done.keys += 2

    def _pair(self) -> None:
        self._guest.press([KEYS[self._source.choice(LETTERS)], KEYS["backspace"]])
