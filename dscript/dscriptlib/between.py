# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between scripts that are in force together, and between them and the containers of this host."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dre.plainyaml import Place

from dscriptlib import watching
from dscriptlib.model import Finding, Response, Script, Step

# Actions of which two on one container at the same time leave it as the last one wanted. Restart and undo are none:
# in either order the container runs, on the state that is good.
_LIFE = frozenset(("restart", "stop", "undo", "migrate"))
_HARMLESS = frozenset(("restart", "undo"))
_OPPOSITES = (frozenset(("freeze", "thaw")), frozenset(("isolate", "rejoin")))
Names = Mapping[str, Sequence[str]]  # `of` and `system` → the names of containers of this host


@dataclass(frozen=True, eq=False)
class _Node:
    file: str
    script: Script
    response: Response

    def __str__(self) -> str:
        return f"{self.script.name}/{self.response.id}"


def findings(scripts: Sequence[tuple[str, Script]], here: Names) -> list[Finding]:
    """What is wrong between *scripts*, each with its file; *here* is empty where nobody can look."""
    nodes = [_Node(file, script, response) for file, script in scripts for response in script.responses]
    found = [*_loops(nodes), *_conflicts(nodes), *_unknown(scripts, here), *_taken(scripts)]
    return sorted(set(found), key=lambda finding: (finding.file, finding.at, finding.text))


def _taken(scripts: Sequence[tuple[str, Script]]) -> Iterator[Finding]:
    for position, (file, script) in enumerate(scripts):
        for other, earlier in scripts[:position]:
            if earlier.name == script.name and other != file:
                yield Finding(
                    file, Place(), "error", f"{other} is named {script.name!r} too; each needs a name of its own"
                )


def goals(scripts: Sequence[tuple[str, Script]], case: str, file: str) -> Iterator[Finding]:
    """The goals that do not occur in *case*, the text of a D-Case in whatever form, read from *file*."""
    named = set(re.findall(r"[A-Za-z0-9][A-Za-z0-9_.-]*", case))
    for own, script in scripts:
        for response in script.responses:
            goal = script.goal(response)
            if goal is None:
                yield Finding(own, response.at, "warning", f"response {response.id!r} answers no goal of the D-Case")
            elif goal not in named:
                yield Finding(own, response.at, "error", f"unknown goal {goal!r}: {file} has no such node")


# --- events that scripts send each other ---


def _listened(script: Script, response: Response) -> set[str]:
    types = {name for trigger in response.when for name in (trigger.event, trigger.after) if name}
    watched = {trigger.monitor for trigger in response.when}
    for monitor in script.monitors:
        if monitor.id in watched and monitor.watch in ("event", "sequence"):
            types.update(watching.types(monitor))
    return types


def _loops(nodes: Sequence[_Node]) -> Iterator[Finding]:
    ways = {node: [other for other in nodes if _then(node, other) or _triggers(node, other)] for node in nodes}
    for node in nodes:
        for step in node.response.steps:
            if step.action != "emit":
                continue
            for first in nodes:
                if step.values["type"] not in _listened(first.script, first.response):
                    continue
                way = _way(first, node, ways)
                if way is not None:
                    text = " -> ".join(map(str, [node, *way]))
                    yield Finding(node.file, step.at, "error", f"responses that trigger each other without end: {text}")


def _triggers(node: _Node, other: _Node) -> bool:
    emitted = {step.values["type"] for step in node.response.steps if step.action == "emit"}
    return bool(emitted & _listened(other.script, other.response))


def _then(node: _Node, other: _Node) -> bool:
    return node.script is other.script and node.response.then == other.response.id


def _way(start: _Node, end: _Node, ways: Mapping[_Node, Sequence[_Node]]) -> list[_Node] | None:
    """The shortest way from *start* to *end*, both included."""
    paths, seen = [[start]], {start}
    for path in paths:
        if path[-1] == end:
            return path
        for following in ways[path[-1]]:
            if following not in seen:
                seen.add(following)
                paths.append([*path, following])
    return None


# --- two that act on one container ---


def _conflicts(nodes: Sequence[_Node]) -> Iterator[Finding]:
    roots = {node: {root for root in nodes if root.response.when and _leads(root, node, nodes)} for node in nodes}
    for position, node in enumerate(nodes):
        for other in nodes[:position]:
            if not any(one != two for one in roots[node] for two in roots[other]):
                continue  # one event leads to both, one after the other
            for step in node.response.steps:
                for earlier in other.response.steps:
                    if _against(step, earlier):
                        of = f" of {step.container[1]!r}" if step.container else ""
                        text = f"{step.action}{of} may come while {other} does {earlier.action}"
                        yield Finding(node.file, step.at, "warning", f"{text}; the last one would win")


def _leads(root: _Node, node: _Node, nodes: Sequence[_Node]) -> bool:
    seen: list[_Node] = []
    while root not in seen:
        if root == node:
            return True
        seen.append(root)
        root = next((other for other in nodes if _then(root, other)), root)
    return False


def _against(step: Step, other: Step) -> bool:
    if step.action == other.action == "rules":
        return step.values != other.values
    if step.container is None or step.container != other.container:
        return False
    pair = {step.action, other.action}
    if pair == {"limit"}:
        return any(step.values[key] != other.values[key] for key in step.values.keys() & other.values.keys())
    if len(pair) == 1:
        return step.action in ("undo", "migrate") and step.values != other.values
    return (pair <= _LIFE and pair != _HARMLESS) or pair in _OPPOSITES


# --- this host ---


def _unknown(scripts: Sequence[tuple[str, Script]], here: Names) -> Iterator[Finding]:
    for file, script in scripts:
        steps = [(step.container, step.at) for response in script.responses for step in response.steps]
        watched = [(("of", monitor.of), monitor.at) for monitor in script.monitors if monitor.of]
        watched += [(("system", monitor.system), monitor.at) for monitor in script.monitors if monitor.system]
        for container, at in [*steps, *watched]:
            if container is not None and here.get(container[0]) and container[1] not in here[container[0]]:
                word = "app" if container[0] == "of" else "system"
                yield Finding(file, at, "warning", f"this host has no {word} {container[1]!r} now")
