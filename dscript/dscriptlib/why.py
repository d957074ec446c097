# SPDX-License-Identifier: Apache-2.0
"""Why something was done, from the journal alone: events and their trust, monitors, guards, version, outcome."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dscriptlib.journal import Record

_BECAUSE = {
    "event": "an event came",
    "tick": "time had passed",
    "outcome": "a step had ended",
    "answer": "a person answered",
}


def reasons(records: Iterable[Record], identity: str) -> Iterator[dict[str, Any]]:
    """A row for each run that *identity* means: a run, a request, or an event that runs began by or rest on.

    For an event from which nothing followed, one row that says so.
    """
    read = list(records)
    events = {line["id"]: (record, line) for record, line in _events(read) if "id" in line}
    runs: dict[str, list[tuple[Record, str, Mapping[str, Any]]]] = {}
    for record in read:
        for script, commands in record.get("decided", {}).items():
            for command in commands:
                run = command["run"] if command["command"] == "act" else command["data"].get("run")
                if run is not None:
                    runs.setdefault(run, []).append((record, script, command))
    found = False
    for run, decisions in runs.items():
        ids = _ids(decisions[0][2])
        began = _line(decisions[0][0]).get("id") if decisions[0][0]["kind"] == "event" else None
        if identity.split("-")[0] == run or identity == began or identity in ids:
            found = True
            yield _run(run, decisions, read, events)
    if not found and identity in events:
        yield {"run": None, "events": [_event(*events[identity])]}


def _events(records: Sequence[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    for record in records:
        if record["kind"] == "event":
            yield record, _line(record)


def _line(record: Record) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(record["line"])
    return line


def _ids(command: Mapping[str, Any]) -> list[str]:
    return list(command["events"] if command["command"] == "act" else command["data"].get("events", []))


def _event(record: Record, line: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: line.get(key) for key in ("id", "time", "source", "type", "data")}
    return {**told, "seen": record["seen"], "proven": record["proven"], "doubt": record["doubt"]}


def _run(
    run: str,
    decisions: Sequence[tuple[Record, str, Mapping[str, Any]]],
    records: Sequence[Record],
    events: Mapping[str, tuple[Record, dict[str, Any]]],
) -> dict[str, Any]:
    first, script, command = decisions[0]
    response = command["response"] if command["command"] == "act" else command["data"]["response"]
    state = first["states"][script]
    ids = _ids(command)
    if first["kind"] == "event" and _line(first).get("id") not in ids:
        ids = [*ids, _line(first).get("id", "")]
    told = [command for _, _, command in decisions if command["command"] == "tell"]
    done = next((tell["data"] for tell in told if tell["type"] == "script.response.done"), None)
    steps = list(_steps(run, records))
    goals = [_line(record).get("goal") for record in records if record.get("run") == run and "line" in record]
    goals += [tell["data"].get("goal") for tell in told]
    return {
        "run": run,
        "script": script,
        "sha256": state["sha256"],
        "goal": next((goal for goal in goals if goal), None),
        "response": response,
        "decided": first["time"],
        "because": first["kind"],
        "events": [_event(*events[name]) for name in ids if name in events],
        "raised": sorted(state["raised"]),
        "guard": {key.rstrip("?"): book for key, book in state["books"].items() if key.rstrip("?") == response},
        "steps": steps,
        "told": [{"type": tell["type"], **{key: tell["data"].get(key) for key in ("reason", "by")}} for tell in told],
        "outcome": done["outcome"] if done else "at work",
        "restored": done["restored"] if done else None,
    }


def _steps(run: str, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    ends = {record["request"]: record for record in records if record["kind"] == "outcome" and record["run"] == run}
    probes = [record["request"] for record in records if record["kind"] == "probe" and record["run"] == run]
    for record in records:
        if record["kind"] == "intent" and record["run"] == run:
            end = ends.get(record["request"])
            outcome = "unknown" if end is None else "failed" if end["error"] else "done"
            told = {key: record[key] for key in ("time", "step", "phase", "action", "argv", "request")}
            seconds, error = (end["seconds"], end["error"]) if end else (None, None)
            states = {key: end.get(key) if end else None for key in ("before", "after")}
            probed = probes.count(record["request"])
            yield {**told, "outcome": outcome, "seconds": seconds, "error": error, "probed": probed, **states}


def sentences(row: Mapping[str, Any]) -> Iterator[str]:
    """*row* for a person."""
    if row["run"] is None:
        yield "No response followed from this event:"
        yield from _told_events(row["events"])
        return
    yield f"{row['script']}/{row['response']}, run {row['run']}, for the goal {row['goal'] or '(none)'}"
    yield f"  agreed in   version {row['sha256']}"
    yield f"  decided     {row['decided']}, because {_BECAUSE.get(row['because'], row['because'])}"
    yield from _told_events(row["events"])
    yield f"  raised then {', '.join(row['raised']) or 'nothing'}"
    for book in row["guard"].values():
        yield f"  guard       {len(book['attempts'])} attempts counted, this one among them"
    for step in row["steps"]:
        seconds = "" if step["seconds"] is None else f" in {step['seconds']:.2f} s"
        again = f", asked again {step['probed']} times after a crash" if step["probed"] else ""
        word = "takes back" if step["phase"] == "revert" else "step"
        yield f"  {word:<11} {step['step']} {step['action']}: {step['outcome']}{seconds}{again}"
        yield f"              {step['time']} {' '.join(step['argv'])}"
        for key in ("before", "after"):
            if step["after"] is not None:
                yield f"              {key}: {_state(step[key])}"
        if step["error"]:
            yield f"              {step['error']}"
    for tell in row["told"]:
        said = " ".join(f"{key}={tell[key]}" for key in ("by", "reason") if tell[key])
        if tell["type"] != "script.response.done":
            yield f"  told        {tell['type']} {said}".rstrip()
    restored = {True: ", everything watched is clear", False: ", not everything watched is clear", None: ""}
    yield f"  outcome     {row['outcome']}{restored[row['restored']]}"


def _state(state: Mapping[str, Any] | None) -> str:
    if state is None:
        return "not known, for it was asked again"
    return " ".join(f"{key}={json.dumps(value)}" for key, value in state.items())


def _told_events(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for event in events:
        trust = "proven" if event["proven"] else f"claimed: {event['doubt']}"
        yield f"  event       {event['time']} {event['type']} {event['id']} from {event['source']} ({trust})"
