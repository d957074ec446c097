# SPDX-License-Identifier: Apache-2.0
"""What each monitor measured over time, in files of a fixed size that any user may read and no kill can spoil.

    <state>/watch/trend/SCRIPT.ID.10s   the last day, and .10m the last fortnight: rings of lines of 64 octets,
                                        `TIME LOW MEAN HIGH COUNT`, and ` !` where a sample was bad whatever its value
    <state>/watch/trend/SCRIPT.ID.json  what is watched, the limits since when, and the moments of its crossings

The place of a line in its ring follows from its time, so there is no beginning to lose: `sort FILE` is the history.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import event, files
from dre.conf import Conf

from monitorlib.crossing import Monitor, Sample

LINE = 64
RINGS = {"10s": (10, 8640), "10m": (600, 2016)}  # seconds of a line, and lines
MOMENTS, LIMITS = 200, 20  # that are kept of each monitor
KEPT = 256  # monitors; those without a sample for longest go first
AGE = 15 * 86400.0  # seconds after which one without a sample goes
_NAME = re.compile(r"[a-z0-9-]+\.[a-z0-9-]+")
_COUNT = 99_999
Key = tuple[str, str]  # script and id


@dataclass(frozen=True)
class Point:
    """The samples of one line, which begins at *time* (seconds since 1970)."""

    time: int
    low: float
    mean: float
    high: float
    count: int
    bad: bool = False

    def format(self) -> bytes:
        """Its line."""
        values = " ".join(f"{value:.4g}" for value in (self.low, self.mean, self.high))
        text = f"{event.stamp(self.time)[:19]}Z {values} {min(self.count, _COUNT)}{' !' if self.bad else ''}"
        return text.ljust(LINE - 1).encode() + b"\n"

    def plus(self, other: "Point") -> "Point":
        """Both as one."""
        count = self.count + other.count
        mean = (self.mean * self.count + other.mean * other.count) / count
        return Point(
            self.time, min(self.low, other.low), mean, max(self.high, other.high), count, self.bad or other.bad
        )


def parse(line: bytes) -> Point | None:
    """The point of a line; None for one that was never written, or is spoiled."""
    try:
        stamp, low, mean, high, count, *bad = line.decode("ascii").split()
        values = float(low), float(mean), float(high)
        begin = int(event.seconds(f"{stamp[:-1]}.000Z"))
        return Point(begin, *values, int(count), bad == ["!"]) if all(map(math.isfinite, values)) else None
    except (ValueError, event.EventError):
        return None


def directory(conf: Conf) -> Path:
    """Where all this lies."""
    return conf.core_state_dir / "watch" / "trend"


def read(place: Path, key: Key, ring: str, seconds: int, now: float) -> list[Point]:
    """The points of the last *seconds*, in order of time; none where nothing is known."""
    step, lines = RINGS[ring]
    last = int(now) // step
    first = last - min(lines, seconds // step) + 1
    try:
        octets = (place / f"{key[0]}.{key[1]}.{ring}").read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for slot in range(first, last + 1):
        begin = slot % lines * LINE
        point = parse(octets[begin : begin + LINE])
        if point and point.time == slot * step:
            found.append(point)
    return found


def about(place: Path, key: Key) -> dict[str, Any]:
    """What is watched, its limits and its moments. Raises FileNotFoundError, and ValueError."""
    found: dict[str, Any] = json.loads((place / f"{key[0]}.{key[1]}.json").read_bytes())
    return found


def known(place: Path) -> list[Key]:
    """The monitors that there is something of, in order."""
    names = [path.name.removesuffix(".json") for path in place.glob("*.json")]
    return sorted((name.partition(".")[0], name.partition(".")[2]) for name in names if _NAME.fullmatch(name))


class Trends:
    """Keeps what it is told; *later* has a call made that writes, in their order."""

    def __init__(self, place: Path, later: Callable[..., object]) -> None:
        self._place, self._later = place, later
        self._open: dict[tuple[Key, str], Point] = {}
        self._limits: dict[Key, tuple[float, float]] = {}
        if place.is_dir():
            files.remove_halves(place)

    def add(self, monitor: Monitor, sample: Sample, now: float) -> None:
        """Take a sample into account that was made at *now*, by the clock on the wall."""
        key = (monitor.script, monitor.id)
        if self._limits.get(key) != (monitor.bound, monitor.clear):
            self._limits[key] = (monitor.bound, monitor.clear)
            self._later(self._note, monitor, now)
        for ring, (step, _) in RINGS.items():
            made = Point(int(now) // step * step, sample.value, sample.value, sample.value, 1, bool(sample.bad))
            before = self._open.get((key, ring))
            if before and before.time != made.time:
                self._later(self._write, key, ring, before)
                before = None
            self._open[key, ring] = before.plus(made) if before else made

    def crossed(self, monitor: Monitor, crossing: str, value: float, now: float) -> None:
        """Keep the moment of a crossing."""
        self._later(self._note, monitor, now, [event.stamp(now), crossing, round(value, 3)])

    def end(self) -> None:
        """Write what is still open."""
        for (key, ring), point in self._open.items():
            self._later(self._write, key, ring, point)
        self._open.clear()

    def _write(self, key: Key, ring: str, point: Point) -> None:
        """One write(2) within a page: a kill leaves the line before, or this one."""
        step, lines = RINGS[ring]
        self._place.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(self._place / f"{key[0]}.{key[1]}.{ring}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            begin = point.time // step % lines * LINE
            there = parse(os.pread(fd, LINE, begin))
            if there and there.time == point.time:  # begun before a restart
                point = there.plus(point)
            os.pwrite(fd, point.format(), begin)
        finally:
            os.close(fd)

    def _note(self, monitor: Monitor, now: float, moment: list[object] | None = None) -> None:
        key = (monitor.script, monitor.id)
        try:
            told = about(self._place, key)
            limits, moments = list(told["limits"]), list(told["moments"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            limits, moments = [], []
        if not limits or limits[-1][1:] != [monitor.bound, monitor.clear]:
            limits.append([event.stamp(now), monitor.bound, monitor.clear])
        if moment:
            moments.append(moment)
        self._place.mkdir(mode=0o755, parents=True, exist_ok=True)
        said = {
            "watch": monitor.watch,
            "about": monitor.about,
            "limits": limits[-LIMITS:],
            "moments": moments[-MOMENTS:],
        }
        files.write_atomic(self._place / f"{key[0]}.{key[1]}.json", json.dumps(said) + "\n")
        if not moment:
            self._sweep()

    def _sweep(self) -> None:
        """Let go of monitors that are not sampled any more."""
        newest: dict[str, float] = {}
        for path in self._place.iterdir():
            name = path.name.rpartition(".")[0]
            if _NAME.fullmatch(name):
                newest[name] = max(newest.get(name, 0.0), path.stat().st_mtime)
        for number, name in enumerate(sorted(newest, key=lambda name: -newest[name])):
            if number >= KEPT or time.time() - newest[name] > AGE:
                for ending in ("json", *RINGS):
                    (self._place / f"{name}.{ending}").unlink(missing_ok=True)
