# SPDX-License-Identifier: Apache-2.0
"""What scripts would decide, in the time of the events, by the very core that decides for the engine. Nothing is done.

From event lines: each step ends at once, as it is supposed to. From a journal: outcomes, answers of persons and the
passing of time are those of the recorded run, so that the decisions must be, too.
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dre import event
from dre.errors import DreError

from dscriptlib import core, trust
from dscriptlib.journal import Record
from dscriptlib.model import Script
from dscriptlib.state import Act, Answered, Command, Given, Happened, Passed, Replied, State, shown, undump
from dscriptlib.steps import KINDS

MOST = 100_000  # decisions between two events; more would be a loop of the core's own


@dataclass(frozen=True)
class Decision:
    """What one script decided at one moment; *differs* when the recorded run decided otherwise."""

    time: float
    script: Script
    commands: Sequence[Command]
    differs: bool = False


@dataclass
class _Slot:
    script: Script
    state: State


class _World:
    """Scripts with their states, where each act is answered at once."""

    def __init__(self, scripts: Sequence[Script], failing: Collection[str], reply: bool | None) -> None:
        self.slots = [_Slot(script, State(script.sha256)) for script in scripts]
        self.failing, self.reply = failing, reply

    def give(self, slot: _Slot, given: Given) -> Iterator[Decision]:
        """What the script decides, and what follows from the outcomes of that."""
        todo: deque[Given] = deque([given])
        while todo:
            given = todo.popleft()
            script = slot.script
            slot.state, commands = core.decide(script, slot.state, given)
            if commands:
                yield Decision(given.time, script, commands)
            for command in commands:
                if isinstance(command, Act):
                    todo += self.outcome(script, command, given.time)

    def outcome(self, script: Script, act: Act, time: float) -> list[Given]:
        step = script.response(act.response).steps[act.step]
        kind = KINDS[step.action]
        if act.phase == "act" and step.action in self.failing:
            return [Answered(time, act.run, act.step, act.phase, "supposed to fail")]
        former = (kind.former(step.values, {}) if kind.former else {}) if act.phase == "read" else None
        answered: list[Given] = [Answered(time, act.run, act.step, act.phase, None, former)]
        if act.phase == "act" and kind.asks and self.reply is not None:
            answered.append(Replied(time, act.request, self.reply, "somebody"))
        return answered

    def until(self, end: float) -> Iterator[Decision]:
        """Let time pass to *end*."""
        for _ in range(MOST):
            times = [core.next_time(slot.script, slot.state) for slot in self.slots]
            due = [(time, position) for position, time in enumerate(times) if time is not None and time <= end]
            if not due:
                return
            time, position = min(due)
            yield from self.give(self.slots[position], Passed(max(time, self.now(end))))
        raise DreError("the scripts ask for time without end")

    def now(self, end: float) -> float:
        return min(end, max((max(slot.state.clock.values(), default=0.0) for slot in self.slots), default=0.0))


def of_events(
    scripts: Sequence[Script],
    events: Iterable[event.Event],
    failing: Collection[str] = (),
    reply: bool | None = None,
    after: float = 3600.0,
) -> Iterator[Decision]:
    """The decisions about *events*, and those that the *after* seconds behind the last one bring."""
    world = _World(scripts, failing, reply)
    claimed: set[str] = set()
    time: float | None = None
    for happened in events:
        moment = event.seconds(happened.time)
        if time is None:
            for slot in world.slots:  # the engine knew the time before
                yield from world.give(slot, Passed(moment))
        time = moment if time is None else max(time, moment)
        yield from world.until(time)
        ids = trust.rests_on(happened)
        proven = not happened.optional.get("claimed") and not claimed.intersection(ids)
        if not proven:
            claimed.add(str(happened.optional.get("id", "")))
        for slot in world.slots:
            if core.mentions(slot.script, happened):
                yield from world.give(slot, Happened(moment, happened, proven, ids))
    if time is not None:
        yield from world.until(time + after)


def of_record(
    records: Iterable[Record], version: Callable[[str], Script | None], others: Mapping[str, Script]
) -> Iterator[Decision]:
    """The decisions on what a journal recorded, by the versions of then, or by *others* of the same names."""
    states: dict[str, State] = {}
    for record in records:
        if "given" not in record:
            for name, stored in record.get("states", {}).items():
                if name not in others or name not in states:
                    state = State.restore(stored)
                    states[name] = core.adopt(others[name], state) if name in others else state
            continue
        for name, values in record["given"].items():
            if name not in states:
                raise DreError(f"{name}: the journal does not begin where the script came into force")
            script = others.get(name) or version(states[name].sha256)
            if script is None:
                raise DreError(f"{name}: version {states[name].sha256[:12]} is not kept any more; name a file of it")
            given = undump(values)
            states[name], commands = core.decide(script, states[name], given)
            same = json.loads(json.dumps(shown(commands))) == record["decided"][name]
            differs = name not in others and not (same and states[name].dump() == record["states"][name])
            if commands or differs:
                yield Decision(given.time, script, commands, differs)
