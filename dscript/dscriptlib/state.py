# SPDX-License-Identifier: Apache-2.0
"""What the core is given, what it answers and what it remembers: plain values that survive as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dre import event
from dre.event import Event

# --- what comes in ---


@dataclass(frozen=True)
class Happened:
    """An event, whether it is proven, and the ids that it rests on."""

    time: float
    event: Event
    proven: bool
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """The outcome of an Act; *former* is what a read found."""

    time: float
    run: str
    step: int
    phase: str
    error: str | None = None
    former: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Replied:
    """A person's answer to the question of an `ask`."""

    time: float
    request: str
    approved: bool
    by: str


@dataclass(frozen=True)
class Passed:
    """Time has passed without an event."""

    time: float


Given = Happened | Answered | Replied | Passed


def line(given: Event) -> str:
    """The line of an event without its newline."""
    return event.format(given).decode().rstrip("\n")


def dump(given: Given) -> dict[str, Any]:
    """*given* as JSON values, so that the journal can give it again."""
    values: dict[str, Any] = {"input": type(given).__name__.lower(), **vars(given)}
    if isinstance(given, Happened):
        values["event"] = line(given.event)
        values["ids"] = list(given.ids)
    return values


def undump(values: Mapping[str, Any]) -> Given:
    """What `dump` was given."""
    fields: dict[str, Any] = {key: value for key, value in values.items() if key != "input"}
    if values["input"] == "happened":
        fields.update(event=event.parse(fields["event"]), ids=tuple(fields["ids"]))
        return Happened(**fields)
    kinds: dict[str, type[Answered] | type[Replied] | type[Passed]] = {
        "answered": Answered,
        "replied": Replied,
        "passed": Passed,
    }
    return kinds[values["input"]](**fields)


# --- what goes out ---


@dataclass(frozen=True)
class Act:
    """Do one phase of a step: read (what it will change), act, or revert (with what was read)."""

    run: str
    response: str
    step: int
    phase: str
    events: tuple[str, ...]
    former: Mapping[str, str] | None = None
    about: str | None = None  # the line of the event that led to it, for a step that hands it on

    @property
    def request(self) -> str:
        """The request id under which the outcome is remembered, and a question asked."""
        return f"{self.run}-{self.step}-{self.phase}"


@dataclass(frozen=True)
class Tell:
    """Something to record and to send to the monitor as an event."""

    type: str
    sev: int
    data: Mapping[str, Any]


Command = Act | Tell


def shown(commands: Sequence[Command]) -> list[dict[str, Any]]:
    """*commands* as JSON values."""
    return [{"command": type(command).__name__.lower(), **asdict(command)} for command in commands]


# --- what is remembered ---


@dataclass
class Book:
    """The guard of one response; claimed events have a book of their own, so they cannot use up its attempts."""

    attempts: list[float] = field(default_factory=list)
    ended: float | None = None
    exhausted: bool = False  # escalated already because no attempt was left


@dataclass
class Run:
    """One execution of a response, standing at one phase of one step."""

    id: str
    response: str
    proven: bool
    events: list[str]
    step: int = 0
    phase: str = "act"  # read, act, ask, expect or revert
    deadline: float | None = None  # of ask and expect
    formers: dict[str, dict[str, str]] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    undoing: list[int] = field(default_factory=list)
    error: str | None = None
    about: str | None = None
    reply: list[Any] | None = None  # a person's answer that came before the question had gone out


@dataclass
class Later:
    """A compensation that waits until the monitors are clear."""

    run: str
    response: str
    step: int
    proven: bool
    events: list[str]
    former: dict[str, str]
    asked: bool = False


@dataclass
class State:
    """All that the core knows about one script; plain values that survive as JSON."""

    sha256: str
    count: int = 0
    clock: dict[str, float] = field(default_factory=dict)
    seen: dict[str, list[Any]] = field(default_factory=dict)  # "type" or "type?" (claimed) → [time, ids]
    raised: dict[str, list[str]] = field(default_factory=dict)  # monitor id → ids of the event that raised it
    windows: dict[str, list[Any]] = field(default_factory=dict)  # of a monitor of events: [[time, ids], …]
    books: dict[str, Book] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    later: list[Later] = field(default_factory=list)

    def busy(self) -> bool:
        """Whether something of this version of the script is still to be done."""
        return bool(self.runs or self.later)

    def time(self) -> float:
        """The latest moment that was decided about."""
        return max(self.clock.values(), default=0.0)

    def dump(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> "State":
        """The state that `dump` gave."""
        state = cls(**values)
        state.books = {key: Book(**book) for key, book in values["books"].items()}
        state.runs = {key: Run(**run) for key, run in values["runs"].items()}
        state.later = [Later(**later) for later in values["later"]]
        return state
