# SPDX-License-Identifier: Apache-2.0
"""Read a script: its nodes, typed by the tables of the language. Whether the parts fit is the business of check."""

import hashlib
from collections.abc import Mapping
from typing import Any

from dre import units
from dre.errors import UsageError
from dre.plainyaml import DEPTH, LIMIT, Node, Reader, Refused, read, tree

from dscriptlib import tables, words
from dscriptlib.model import AtMost, Expect, Finding, Monitor, Response, Script, Step, Trigger
from dscriptlib.steps import KINDS, nested, word
from dscriptlib.tables import Table

__all__ = ["DEPTH", "LIMIT", "load", "read"]


def load(octets: bytes, file: str) -> tuple[Script | None, list[Finding]]:
    """The script in *octets* and what is wrong with it; None when there is an error. *file* is for the messages."""
    reader = _Reader()
    try:
        root = tree(octets)
        _fill(reader, root)
        script = _script(reader, root, hashlib.sha256(octets).hexdigest())
    except Refused as refusal:
        return None, [Finding(file, refusal.at, "error", str(refusal))]
    findings = [Finding(file, at, "error", text) for at, text in reader.errors]
    return (None if findings else script), findings


class _Reader(Reader):
    """Reads by the tables of the language."""

    def table(self, node: Node, what: str, table: Table) -> dict[str, Node]:
        """The entries of *node*; keys that *table* has not, and missing ones, are errors."""
        needed = [key for key in table if table[key].required]
        return self.mapping(node, what, sorted(table, key=lambda key: not table[key].required), needed)

    def items(self, node: Node | None, what: str) -> list[Node]:
        if node is None:
            return []
        if not node.items:
            self.error(node.at, f"{what} must be a list with at least one item")
            return []
        return node.items

    def values(self, entries: Mapping[str, Node], table: Table) -> dict[str, Any]:
        """The typed values of all keys that hold one value and are there."""
        found = {key: self.value(entries, key, of.type) for key, of in table.items() if of.type is not nested}
        return {key: value for key, value in found.items() if value is not None}

    def unique(self, things: list[Any], what: str) -> None:
        seen: set[str] = set()
        for thing in things:
            if thing.id and thing.id in seen:
                self.error(thing.at, f"{what} {thing.id!r} is defined twice")
            seen.add(thing.id)


# --- agreed parameters ---


def _entry(node: Node, name: str) -> Node:
    """The value of a key; nothing where it is not there."""
    return next((value for key, value in node.entries or () if key.text == name), Node(node.at))


def _fill(reader: _Reader, root: Node) -> None:
    """Put what is agreed in the place of each value `$NAME`. Without parameters that is a word like others."""
    declared = _entry(_entry(root, "agreed"), "parameters")
    if declared.entries is None:
        return
    agreed = {str(key.text): value.text for key, value in declared.entries}
    used: set[str] = set()

    def fill(node: Node) -> None:
        if node.text is not None and (found := words.PARAMETER.fullmatch(node.text)):
            if agreed.get(found[1]) is None:
                reader.error(node.at, f"{node.text}: no parameter {found[1]!r} is agreed")
            else:
                used.add(found[1])
                node.text = agreed[found[1]]
        for item in node.items or ():
            fill(item)
        for key, value in node.entries or ():
            if value.text is None or key.text not in tables.FIXED:
                fill(value)

    for part in ("monitors", "responses"):
        fill(_entry(root, part))
    for key, _ in declared.entries:
        if key.text not in used:
            reader.error(key.at, f"parameter {key.text!r} is agreed, but nothing is said by it")


# --- the language ---


def _script(reader: _Reader, root: Node, sha256: str) -> Script:
    entries = reader.table(root, "a script", tables.SCRIPT)
    values = reader.values(entries, tables.SCRIPT)
    monitors = [_monitor(reader, node) for node in reader.items(entries.get("monitors"), "monitors")]
    responses = [_response(reader, node) for node in reader.items(entries.get("responses"), "responses")]
    reader.unique(monitors, "monitor")
    reader.unique(responses, "response")
    agreed = _agreed(reader, entries.get("agreed"))
    return Script(values.get("name", ""), sha256, agreed, tuple(monitors), tuple(responses))


def _agreed(reader: _Reader, node: Node | None) -> dict[str, Any]:
    if node is None:
        return {}
    entries = reader.table(node, "agreed", tables.AGREED)
    agreed = reader.values(entries, tables.AGREED)
    agreed["by"] = [reader.typed(item, "by", words.word) for item in reader.items(entries.get("by"), "by")]
    if "parameters" in entries:
        agreed["parameters"] = _parameters(reader, entries["parameters"])
    return agreed


def _parameters(reader: _Reader, node: Node) -> dict[str, str]:
    if not node.entries:
        reader.error(node.at, "parameters must be a mapping of names to values")
    found = {}
    for key, value in node.entries or ():
        name = reader.typed(key, "parameters", units.name)
        said = reader.typed(value, "parameters", words.agreed_value)
        if name is not None and said is not None:
            found[name] = said
    return found


def _monitor(reader: _Reader, node: Node) -> Monitor:
    kind = None
    for key, value in node.entries or []:
        if key.text == "watch":
            kind = reader.typed(value, "watch", word(*tables.WATCHES))
    if kind is None:
        if not any(at >= node.at for at, _ in reader.errors):
            reader.error(node.at, f"a monitor needs 'watch': one of {', '.join(tables.WATCHES)}")
        return Monitor("", "", at=node.at)
    given = {key.text for key, _ in node.entries or []} & {"above", "below", "clear"}
    usual = dict(zip(("above", "clear"), tables.USUAL.get(kind, ()), strict=False)) if not given else {}
    table = tables.monitor(kind, None if usual else "below" if "below" in given else "above")
    entries = reader.table(node, f"a monitor of {kind}", table)
    if {"above", "below"} <= entries.keys():
        reader.error(node.at, "a monitor is raised 'above' a value or 'below' one, not both")
    if kind == "liveness" and ("of" in entries) == ("system" in entries):
        reader.error(node.at, "a monitor of liveness needs 'of', an app, or 'system'")
    elif "of" in entries and "system" in entries:
        reader.error(node.at, "a monitor is 'of' an app or of a 'system', not of both")
    values = reader.values(entries, table)
    values["hold"] = values.pop("for", 0.0)
    return Monitor(
        **{**usual, **values, "id": values.get("id", ""), "watch": kind},
        argv=_argv(reader, entries),
        fields=_fields(reader, entries.get("fields")),
        at=entries["clear"].at if "clear" in entries else node.at,
        every_at=entries["every"].at if "every" in entries else node.at,
    )


def _argv(reader: _Reader, entries: Mapping[str, Node]) -> tuple[str, ...]:
    items = reader.items(entries.get("argv"), "argv")
    argv = tuple(reader.typed(item, "argv", words.argument) or "" for item in items)
    if argv and not ("system" in entries or words.PROGRAM.fullmatch(argv[0])):
        reader.error(entries["argv"].at, f"argv: {argv[0]!r} is not the name of a program in actions.d")
    if argv and "system" in entries and not argv[0].startswith("/"):
        reader.error(entries["argv"].at, f"argv: {argv[0]!r} is not a path in the system")
    return argv


def _fields(reader: _Reader, node: Node | None) -> tuple[tuple[str, str], ...]:
    if node is None:
        return ()
    if not node.entries:
        reader.error(node.at, "fields must be a mapping of fields of the event to what they are equal to")
        return ()
    found = [(str(key.text), reader.typed(value, "fields", words.field_value)) for key, value in node.entries]
    return tuple((key, value) for key, value in found if value is not None)


def _response(reader: _Reader, node: Node) -> Response:
    entries = reader.table(node, "a response", tables.RESPONSE)
    values = reader.values(entries, tables.RESPONSE)
    when = entries.get("when")
    triggers = [when] if when is not None and when.items is None else reader.items(when, "when")
    return Response(
        id=values.get("id", ""),
        steps=tuple(_step(reader, item) for item in reader.items(entries.get("steps"), "steps")),
        when=tuple(_trigger(reader, item) for item in triggers),
        at_most=_at_most(reader, entries.get("at-most")),
        then=values.get("then"),
        if_failed=values.get("if-failed"),
        goal=values.get("goal"),
        at=node.at,
        then_at=entries["then"].at if "then" in entries else node.at,
    )


def _trigger(reader: _Reader, node: Node) -> Trigger:
    if node.text is not None:
        return Trigger(monitor=reader.typed(node, "when", units.name), at=node.at)
    entries = reader.table(node, "a trigger", tables.TRIGGER)
    if ("after" in entries) != ("within" in entries):
        reader.error(node.at, "'after' and 'within' belong together")
    return Trigger(**reader.values(entries, tables.TRIGGER), at=node.at)


def _at_most(reader: _Reader, node: Node | None) -> AtMost | None:
    if node is None:
        return None
    values = reader.values(reader.table(node, "at-most", tables.AT_MOST), tables.AT_MOST)
    return AtMost(values.get("attempts", 1), values.get("per", 1.0), values.get("cooldown", 0.0))


def _step(reader: _Reader, node: Node) -> Step:
    action = None
    for key, value in node.entries or []:
        if key.text == "action":
            action = reader.typed(value, "action", _action)
            if action is None:
                return Step("", {}, 1.0, at=node.at)
    if action is None:
        reader.error(node.at, "a step needs 'action': one of " + ", ".join(KINDS))
        return Step("", {}, 1.0, at=node.at)
    kind = KINDS[action]
    entries = reader.table(node, f"a step {action}", tables.step(action))
    values = reader.values(entries, kind.keys)
    if "argv" in kind.keys:
        values["argv"] = _argv(reader, {"argv": entries["argv"]} if "argv" in entries else {})
    if kind.problem and (problem := kind.problem(values)) and not set(kind.keys) & (set(entries) - set(values)):
        reader.error(node.at, problem)
    common = reader.values(entries, tables.STEP)
    revert = common.get("revert")
    if revert in ("when-clear", "on-failure") and not kind.reversible:
        reader.error(entries["revert"].at, f"{action} cannot be reverted")
    return Step(action, values, common.get("timeout", 60.0), revert, _expect(reader, entries.get("expect")), node.at)


def _action(text: str) -> str:
    if text not in KINDS:
        raise UsageError(f"unknown action {text!r}; known: {', '.join(KINDS)}")
    return text


def _expect(reader: _Reader, node: Node | None) -> Expect | None:
    if node is None:
        return None
    values = reader.values(reader.table(node, "expect", tables.EXPECT), tables.EXPECT)
    return Expect(values.get("watch", ""), values.get("within", 1.0), node.at)
