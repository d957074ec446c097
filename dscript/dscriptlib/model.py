# SPDX-License-Identifier: Apache-2.0
"""A loaded script as values: monitors, responses, their triggers and steps. Nothing here reads, decides or acts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dre.plainyaml import Place


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file and where; an error keeps it from running, a warning does not."""

    file: str
    at: Place
    severity: str  # error or warning
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.at.line}:{self.at.column}: {self.severity}: {self.text}"


def _place() -> Any:
    return field(default=Place(), compare=False)


@dataclass(frozen=True)
class Monitor:
    """What dre-watch samples; `above`, `below`, `clear` in the unit of the kind: percent, seconds or a number."""

    id: str
    watch: str
    of: str | None = None
    url: str | None = None
    system: str | None = None
    path: str | None = None  # of a file system
    file: str | None = None  # options of a MySQL client
    argv: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    hold: float = 0.0  # the key `for`
    missing: float | None = None
    every: float | None = None
    type: str | None = None  # of an event, for event and evidence
    source: str | None = None  # of it; `*` stands for anything
    fields: tuple[tuple[str, str], ...] = ()  # of its data, and what they are equal to
    count: int = 1
    within: float = 0.0
    first: str | None = None  # of a sequence: the event it begins with, the one it ends with,
    then: str | None = None
    unless: str | None = None  # and the one that must not come in between
    finding: str | None = None  # of the D-System Monitor
    at: Place = _place()
    every_at: Place = _place()


@dataclass(frozen=True)
class Trigger:
    """One item of `when`: a monitor that is raised, or an event, perhaps only within a time after another one."""

    monitor: str | None = None
    event: str | None = None
    after: str | None = None
    within: float = 0.0
    at: Place = _place()


@dataclass(frozen=True)
class Expect:
    """The monitors (by kind or id) that must be clear within a time after the step has ended."""

    watch: str
    within: float
    at: Place = _place()


@dataclass(frozen=True)
class Step:
    """One action with its own values, its deadline, its compensation and the effect it must have."""

    action: str
    values: Mapping[str, Any]
    timeout: float
    revert: str | None = None  # when-clear, on-failure, never; None leaves it to if-failed
    expect: Expect | None = None
    at: Place = _place()

    @property
    def container(self) -> tuple[str, str] | None:
        """What it acts on, if on a container: `of` or `system`, and the name."""
        return next(((key, self.values[key]) for key in ("of", "system") if key in self.values), None)

    @property
    def target(self) -> tuple[str, str]:
        """What it changes: its container, a monitor, else what there is one of."""
        return self.container or ("monitor", str(self.values.get("monitor", "")))


@dataclass(frozen=True)
class AtMost:
    """How often a response may be tried, and how long it is left alone after each try."""

    attempts: int
    per: float
    cooldown: float = 0.0


@dataclass(frozen=True)
class Response:
    """Steps, what triggers them, how often they may run, and whom to turn to when they did not help."""

    id: str
    steps: tuple[Step, ...]
    when: tuple[Trigger, ...] = ()
    at_most: AtMost | None = None
    then: str | None = None
    if_failed: str | None = None  # revert
    goal: str | None = None
    at: Place = _place()
    then_at: Place = _place()


@dataclass(frozen=True)
class Script:
    """One file; *sha256* is of its octets, so that evidence names exactly what was agreed."""

    name: str
    sha256: str
    agreed: Mapping[str, Any]
    monitors: tuple[Monitor, ...]
    responses: tuple[Response, ...]

    def response(self, name: str) -> Response:
        """The response of that id; KeyError when there is none, which check has excluded."""
        for response in self.responses:
            if response.id == name:
                return response
        raise KeyError(name)

    def goal(self, response: Response) -> str | None:
        """The node of the D-Case that *response* answers: its own, else the one the script was agreed for."""
        return response.goal or self.agreed.get("goal")

    def expected(self, step: Step) -> tuple[str, ...]:
        """Ids of the monitors that the `expect` of *step* means: those of its container, where there are such."""
        if step.expect is None:
            return ()
        named = [monitor for monitor in self.monitors if step.expect.watch in (monitor.watch, monitor.id)]
        own = [monitor for monitor in named if step.container in (("of", monitor.of), ("system", monitor.system))]
        return tuple(monitor.id for monitor in own or named)

    def watched(self, response: Response) -> tuple[str, ...]:
        """Ids of the monitors that tell whether *response* helped: those that trigger it and those it expects."""
        found = [trigger.monitor for trigger in response.when if trigger.monitor]
        for step in response.steps:
            found += self.expected(step)
        return tuple(dict.fromkeys(found))
