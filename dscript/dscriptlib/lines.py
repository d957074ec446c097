# SPDX-License-Identifier: Apache-2.0
"""How the engine's own doings look as event lines: the octets that go into the D-Box and to the monitor."""

from collections.abc import Mapping
from typing import Any

from dre import event
from dre.event import Event, EventError

from dscriptlib.answers import Answer
from dscriptlib.core import Act, Tell
from dscriptlib.doer import Outcome
from dscriptlib.model import Script

WORDS = 300  # characters of an error kept in an event
ARGUMENTS = 24


def line(script: str, type: str, data: Mapping[str, Any], sev: int, goal: str | None = None) -> str:
    """One event line without its newline; `events` are left out, and said to be, when they do not fit."""
    optional = {"id": event.new_id(), **({"goal": goal} if goal else {})}
    made = Event(event.stamp(), f"{event.host()}/script:{script}", type, sev, dict(data), optional)
    try:
        octets = event.new_line(made)
    except EventError:
        short = {**data, "events": [], "shortened": True}
        octets = event.new_line(Event(made.time, made.source, type, sev, short, optional))
    return octets.decode().rstrip("\n")


def told(script: Script, tell: Tell) -> str:
    """The line of what the core has to tell."""
    data = dict(tell.data)
    goal = data.pop("goal", None)
    if "reason" in data:
        data["reason"] = clip(data["reason"])
    return line(script.name, tell.type, data, tell.sev, goal)


def begun(script: Script, act: Act, argv: list[str]) -> str:
    """The line that precedes an action: which script, agreed for which goal, does what, because of which events."""
    data = {**_step(script, act), "sha256": script.sha256, "argv": [clip(word) for word in argv[:ARGUMENTS]]}
    return line(script.name, "script.step.begun", {**data, "events": list(act.events)}, 5, goal(script, act))


def ended(script: Script, act: Act, outcome: Outcome) -> tuple[str, str]:
    """The line of an outcome for the D-Box, with the state before and after, and the short one for the monitor."""
    word, sev = ("failed", 3) if outcome.error else ("done", 5)
    data: dict[str, Any] = {
        **_step(script, act),
        "seconds": round(outcome.seconds, 3),
        **({"reason": clip(outcome.error)} if outcome.error else {}),
    }
    states = {} if outcome.after is None else {"before": outcome.before, "after": outcome.after}
    return (
        line(
            script.name, f"script.step.{word}", {**data, **states, "events": list(act.events)}, sev, goal(script, act)
        ),
        line(script.name, f"script.action.{word}", data, sev, goal(script, act)),
    )


def replied(reply: Answer) -> str:
    """The line of what a person said."""
    data = {"request": reply.request, "by": reply.by, "text": reply.text, **({"via": reply.via} if reply.via else {})}
    return line("engine", f"script.person.{reply.word}", data, 5)


def goal(script: Script, act: Act) -> str | None:
    """The node of the D-Case that *act* answers."""
    return script.goal(script.response(act.response))


def clip(text: str) -> str:
    """*text* short and printable enough for an event."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:WORDS]


def _step(script: Script, act: Act) -> dict[str, Any]:
    step = script.response(act.response).steps[act.step]
    data = {"script": script.name, "response": act.response, "run": act.run, "step": act.step + 1}
    data["action"] = step.action
    if step.container:
        data.update([step.container])
    if act.phase == "revert":
        data["phase"] = act.phase
    return {**data, "request": act.request}
