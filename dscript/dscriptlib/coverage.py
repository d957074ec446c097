# SPDX-License-Identifier: Apache-2.0
"""Which goals of a D-Case the scripts answer, how each stands now, and its newest evidence; rows and a page. Pure.

A goal stands as the worst of what answers it and of the goals below it, in this order: failed (the last response did
not help), raised (something is watched and not as agreed, or a response is at work), open (nothing answers it, and
nothing is below it), calm, argued (a solution alone stands for it; nothing watches it).
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dre.event import Event

from dscriptlib.case import Case
from dscriptlib.model import Response, Script

STATES = ("failed", "raised", "open", "calm", "argued")
_COLOURS = {"failed": "#f8b4b4", "raised": "#fbd38d", "open": "#e2e2e2", "calm": "#b7e4c7", "argued": "#cfe2f3"}


@dataclass(frozen=True)
class Row:
    """One goal; *evidence* is the newest event that names it."""

    depth: int
    goal: str
    text: str
    state: str
    responses: tuple[str, ...]
    monitors: tuple[str, ...]
    evidence: Event | None

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        newest = self.evidence
        own = {"goal": self.goal, "state": self.state, "responses": list(self.responses)}
        shown = {"time": newest and newest.time, "type": newest and newest.type}
        identity = newest and newest.optional.get("id")
        return {**own, "monitors": list(self.monitors), **shown, "id": identity, "depth": self.depth, "text": self.text}


def rows(case: Case, scripts: Sequence[Script], states: Mapping[str, Any], events: Iterable[Event]) -> list[Row]:
    """The goals from the top down; *states* and *events* (the oldest first) are the journal's."""
    newest: dict[str, Event] = {}
    helped: dict[tuple[str, str], bool] = {}
    for event in events:
        newest[str(event.optional.get("goal"))] = event
        if event.type == "script.response.done":
            helped[str(event.data["script"]), str(event.data["response"])] = event.data["outcome"] == "done"
    answers: dict[str, list[tuple[Script, Response]]] = {}
    for script in scripts:
        for response in script.responses:
            answers.setdefault(script.goal(response) or "", []).append((script, response))
    stand = _stand(case, {name: _own(found, states, helped) for name, found in answers.items()})
    made = []
    for depth, node in case.walk():
        if node.kind == "goal":
            found = answers.get(node.name, [])
            responses = tuple(f"{script.name}/{response.id}" for script, response in found)
            watched = [f"{script.name}/{name}" for script, response in found for name in script.watched(response)]
            monitors = tuple(dict.fromkeys(watched))
            state, evidence = stand[node.name], newest.get(node.name)
            made.append(Row(depth, node.name, node.text, state, responses, monitors, evidence))
    return made


def _own(
    found: Sequence[tuple[Script, Response]], states: Mapping[str, Any], helped: Mapping[tuple[str, str], bool]
) -> str:
    """How a goal stands by the responses that answer it."""
    seen = {"calm"}
    for script, response in found:
        state = states.get(script.name, {})
        if helped.get((script.name, response.id)) is False:
            seen.add("failed")
        running = any(run["response"] == response.id for run in state.get("runs", {}).values())
        if running or any(name in state.get("raised", {}) for name in script.watched(response)):
            seen.add("raised")
    return min(seen, key=STATES.index)


def _stand(case: Case, own: Mapping[str, str]) -> dict[str, str]:
    """How each goal and strategy stands, with all below it."""
    stand: dict[str, str] = {}
    for node in case.nodes.values():  # those below come first
        if node.kind in ("goal", "strategy"):
            found = {own[node.name]} if node.name in own else set()
            found |= {stand[below] for below in node.below if below in stand}
            found |= {"argued" for below in node.below if case.nodes[below].kind == "solution"}
            stand[node.name] = min(found, key=STATES.index, default="open")
    return stand


def page(case: Case, found: Sequence[Row], title: str, time: str) -> str:
    """The case as HTML: every node, the goals in the colour and with the word of how they stand."""
    by_name, say = {row.goal: row for row in found}, html.escape
    colours = "".join(f".{state}{{background:{colour}}}" for state, colour in _COLOURS.items())
    lines = [
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{say(title)}</title>',
        f"<style>body{{font-family:sans-serif}}p{{margin:.2em 0;padding:.2em}}{colours}</style>",
        f"<h1>{say(title)}</h1><p>As of {say(time)}: "
        + ", ".join(f"{sum(row.state == state for row in found)} {state}" for state in STATES)
        + "</p>",
    ]
    for depth, node in case.walk():
        row = by_name.get(node.name)
        more = ""
        if row is not None:
            answered = "; ".join(filter(None, (", ".join(row.responses), ", ".join(row.monitors))))
            more = f" — answered by {say(answered)}" if answered else ""
            if row.evidence is not None:
                identity = say(str(row.evidence.optional.get("id", "")))
                more += f" — newest evidence: {row.evidence.time} {say(row.evidence.type)} {identity}"
        word = f"<b>{row.state}</b> " if row is not None else ""
        lines.append(
            f'<p class="{row.state if row else say(node.kind)}" style="margin-left:{2 * depth}em">{word}'
            f"<b>{say(node.name)}</b> {say(node.text)}{more}</p>"
        )
    return "\n".join([*lines, "</html>", ""])
