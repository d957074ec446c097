# SPDX-License-Identifier: Apache-2.0
"""When a monitor is raised and when it is cleared: a pure function of (monitor, state, sample, time).

It neither samples nor emits. A monitor that has been raised is raised once, until it has been cleared.
"""

from dataclasses import dataclass, replace
from typing import Literal

CALM_ANSWERS = 3  # consecutive good answers that clear an http monitor: one may be luck between two slow ones

Crossing = Literal["raised", "cleared"]


@dataclass(frozen=True)
class Monitor:
    """One monitor of a script; *hold* is its `for`, and for liveness its `missing`.

    *bound* is its `above` or, where *below*, its `below`: which way the value is over the limit.
    *missing*, for others, is after how many seconds without data it is over the limit; None: never.
    """

    script: str
    id: str
    watch: str  # a kind of watchfile.EVERY
    of: str | None
    url: str | None
    bound: float
    clear: float
    hold: float
    every: float
    system: str | None = None
    path: str | None = None
    file: str | None = None
    argv: tuple[str, ...] = ()
    missing: float | None = None
    below: bool = False

    @property
    def about(self) -> dict[str, str]:
        """What it watches, as events tell it."""
        named = {"of": self.of, "system": self.system, "path": self.path, "url": self.url, "file": self.file}
        found = {key: value for key, value in named.items() if value}
        key = next(iter(found), None)
        return {key: found[key]} if key else {"command": self.argv[0]} if self.argv else {}

    @property
    def place(self) -> str:
        """The end of its events' source."""
        return f"/app:{self.of}" if self.of else f"/system:{self.system}" if self.system else "/watch"

    @property
    def answers(self) -> int:
        """How many calm samples in a row clear it."""
        return CALM_ANSWERS if self.watch == "http" else 1

    def over(self, value: float) -> bool:
        """Whether *value* is on the wrong side of the bound."""
        return value < self.bound if self.below else value > self.bound

    def calm(self, value: float) -> bool:
        """Whether *value* is on the right side of `clear`."""
        return value > self.clear if self.below else value < self.clear

    @property
    def limit(self) -> float:
        """What the value is compared with, as events tell it."""
        return self.hold if self.watch == "liveness" else self.bound


@dataclass(frozen=True)
class Sample:
    """One look: *value* in the monitor's unit; *bad* when it is over whatever the value (no answer, an error)."""

    value: float
    bad: str = ""  # why


@dataclass(frozen=True)
class State:
    """*since*: when the value went over, while it stays there; *calm*: good samples in a row while raised."""

    raised: bool = False
    since: float | None = None
    calm: int = 0


def step(monitor: Monitor, state: State, sample: Sample, now: float) -> tuple[State, Crossing | None]:
    """The state after *sample* at *now*, and the crossing that it makes."""
    over = bool(sample.bad) or monitor.over(sample.value)
    if not state.raised:
        if not over:
            return State(), None
        since = now if state.since is None else state.since
        if now - since < monitor.hold:
            return State(since=since), None
        return State(raised=True, since=since), "raised"
    if over or not monitor.calm(sample.value):
        return replace(state, calm=0), None
    if state.calm + 1 < monitor.answers:
        return replace(state, calm=state.calm + 1), None
    return State(), "cleared"
