# SPDX-License-Identifier: Apache-2.0
"""A curve as shapes of SVG, from points, limits and moments; pure, and without a thought of who looks at it.

Shapes are in a box of `WIDTH` by `HEIGHT` that is stretched to any size; words stand beside it, in HTML.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dre import event

from monitorlib.trend import Point

WIDTH, HEIGHT = 720, 200
COLUMNS = 360  # points that are drawn
_STEPS = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)  # a quarter of each is round


@dataclass(frozen=True)
class Mark:
    """A moment: where, `raised` or `cleared`, when and how much."""

    x: float
    kind: str
    words: str


@dataclass(frozen=True)
class Graph:
    """What is drawn; lists of points as SVG has them."""

    top: float
    band: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)
    above: str = ""
    clear: str = ""
    bad: list[float] = field(default_factory=list)
    raised: list[tuple[float, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    scale: list[str] = field(default_factory=list)  # from the top down
    times: list[str] = field(default_factory=list)


def draw(
    points: Sequence[Point],
    limits: Sequence[tuple[float, float, float]],
    moments: Sequence[tuple[float, str, float]],
    begin: float,
    end: float,
    step: int,
) -> Graph:
    """*points*: *step* seconds each; *limits*: since when, above, clear; *moments*: when, raised or cleared, value."""
    step, points = _thin(points, begin, end, step)
    largest = max([point.high for point in points] + [limit[1] for limit in limits[-1:]], default=1.0)
    top = _top(largest)

    def x(moment: float) -> float:
        return round(WIDTH * min(1.0, max(0.0, (moment - begin) / (end - begin))), 1)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - min(1.0, max(0.0, value / top))), 1)

    band, line = list[str](), list[str]()
    for run in _runs(points, step):
        middles = [x(point.time + step / 2) for point in run]
        upper = [f"{at},{y(point.high)}" for at, point in zip(middles, run, strict=True)]
        lower = [f"{at},{y(point.low)}" for at, point in zip(middles, run, strict=True)]
        band.append(" ".join(upper + lower[::-1]))
        line.append(" ".join(f"{at},{y(point.mean)}" for at, point in zip(middles, run, strict=True)))
    steps = [(max(begin, since), above, clear) for since, above, clear in limits if since < end]
    steps = [one for number, one in enumerate(steps) if number + 1 == len(steps) or steps[number + 1][0] > one[0]]
    shown = [moment for moment in moments if begin <= moment[0] <= end]
    return Graph(
        top,
        band,
        line,
        _stairs([(x(since), y(above)) for since, above, _ in steps]),
        _stairs([(x(since), y(clear)) for since, _, clear in steps]),
        [x(point.time + step / 2) for point in points if point.bad],
        [(left, round(max(1.0, right - left), 1)) for left, right in _spans(moments, begin, end, x)],
        [Mark(x(when), kind, f"{kind} {event.stamp(when)[:19]}Z at {value:g}") for when, kind, value in shown],
        [f"{top * part / 4:.4g}" for part in (4, 3, 2, 1, 0)],
        [_clock(begin + (end - begin) * part / 4, end - begin) for part in range(5)],
    )


def _top(largest: float) -> float:
    """The round number that the scale ends with."""
    if largest < 1e-9:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next((power * step for step in _STEPS if power * step >= largest), power * 20)


def _thin(points: Sequence[Point], begin: float, end: float, step: int) -> tuple[int, list[Point]]:
    """At most COLUMNS points, and how many seconds each of them is."""
    wide = step * max(1, math.ceil((end - begin) / step / COLUMNS))
    made: dict[int, Point] = {}
    for point in points:
        slot = point.time // wide * wide
        moved = Point(slot, point.low, point.mean, point.high, point.count, point.bad)
        made[slot] = made[slot].plus(moved) if slot in made else moved
    return wide, list(made.values())


def _runs(points: Sequence[Point], step: int) -> list[list[Point]]:
    """Points without a gap between them; one miss is none, for a monitor may sample as seldom as that."""
    runs = list[list[Point]]()
    for point in points:
        if runs and point.time - runs[-1][-1].time <= 2 * step:
            runs[-1].append(point)
        else:
            runs.append([point])
    return [run if len(run) > 1 else [run[0], Point(run[0].time + step // 2, *_values(run[0]))] for run in runs]


def _values(point: Point) -> tuple[float, float, float, int]:
    return point.low, point.mean, point.high, point.count


def _stairs(steps: Sequence[tuple[float, float]]) -> str:
    """A line that keeps its height until the next step."""
    corners = list[str]()
    for number, (at, height) in enumerate(steps):
        until = steps[number + 1][0] if number + 1 < len(steps) else WIDTH
        corners += [f"{at},{height}", f"{until},{height}"]
    return " ".join(corners)


def _spans(
    moments: Sequence[tuple[float, str, float]], begin: float, end: float, x: Callable[[float], float]
) -> list[tuple[float, float]]:
    """From where to where it was raised."""
    spans, since = list[tuple[float, float]](), None
    for when, kind, _ in moments:
        if kind == "raised" and since is None:
            since = when
        elif kind == "cleared":
            if since is not None and when >= begin:
                spans.append((x(since), x(when)))
            since = None
    if since is not None:
        spans.append((x(since), x(end)))
    return spans


def _clock(moment: float, length: float) -> str:
    return time.strftime("%H:%M" if length <= 2 * 86400 else "%b %d", time.gmtime(moment))
