# SPDX-License-Identifier: Apache-2.0
"""The state of a correlator as JSON, and back; a rule is known again by what it says, wherever it stands now."""

from typing import Any

from monitorlib.correlate import Correlator, Operation
from monitorlib.memory import CONTEXT, Context
from monitorlib.ruleset import BytesAction


def freeze(correlator: Correlator) -> dict[str, Any]:
    """All that the correlator knows, between two lines."""
    memory = correlator.memory
    return {
        "now": memory.now,
        "born": correlator.born,
        "variables": {_text(name): _text(value) for name, value in memory.variables.items()},
        "contexts": {_text(name): _context(context) for name, context in memory.contexts.items()},
        "operations": [
            {"rule": correlator.rules.files[file][number].mark, **_operation(operation)}
            for (file, number), waiting in correlator.operations.items()
            for operation in waiting.all.values()
        ],
    }


def thaw(correlator: Correlator, state: dict[str, Any]) -> int:
    """Give a fresh *correlator* what *state* knows; the number of operations whose rule is no more."""
    memory = correlator.memory
    memory.now, correlator.born = state["now"], state["born"]
    memory.variables.update((_octets(name), _octets(value)) for name, value in state["variables"].items())
    for name, row in state["contexts"].items():
        context = Context(row["time"], row["window"], _actions(row["actions"]), _octets(row["desc"]), row["rule"])
        context.lines, context.ids = [_octets(line) for line in row["lines"]], [_octets(one) for one in row["ids"]]
        memory.contexts[_octets(name)] = context
        memory.timers.put(CONTEXT, _octets(name), context)
    rules = {rule.mark: rule for rules in correlator.rules.files for rule in rules}
    lost = 0
    for row in state["operations"]:
        rule = rules.get(row["rule"])
        if rule is None or not correlator.keep(rule, _as_operation(row)):
            lost += 1
    return lost


def _context(context: Context) -> dict[str, Any]:
    return {
        "time": context.time,
        "window": context.window,
        "actions": _plain(context.actions),
        "desc": _text(context.desc),
        "rule": context.rule,
        "lines": [_text(line) for line in context.lines],
        "ids": [_text(one) for one in context.ids],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "time": operation.time,
        "window": operation.window,
        "born": operation.born,
        "desc": _text(operation.desc),
        "actions": _plain(operation.actions),
        "actions2": _plain(operation.actions2),
        "desc2": _text(operation.desc2),
        "times": operation.times,
        "second": operation.second,
        "texts": [_text(text) for text in operation.texts],
        "context2": operation.context2,
        "ids": [_text(one) for one in operation.ids],
    }


def _as_operation(row: dict[str, Any]) -> Operation:
    return Operation(
        row["time"],
        row["window"],
        row["born"],
        _octets(row["desc"]),
        _actions(row["actions"]),
        _actions(row["actions2"]),
        _octets(row["desc2"]),
        row["times"],
        row["second"],
        tuple(map(_octets, row["texts"])),
        _terms(row["context2"]),
        [_octets(one) for one in row["ids"]],
    )


def _plain(actions: list[BytesAction]) -> list[Any]:
    return [
        [verb, *(_plain(part) if isinstance(part, list) else _text(part) for part in rest)] for verb, *rest in actions
    ]


def _actions(rows: list[Any]) -> list[BytesAction]:
    return [
        (verb, *(_actions(part) if isinstance(part, list) else _octets(part) for part in rest)) for verb, *rest in rows
    ]


def _terms(rows: list[Any]) -> list[tuple[str, Any]]:
    return [(kind, _terms(term) if isinstance(term, list) else term) for kind, term in rows]


def _text(octets: bytes) -> str:
    return octets.decode("latin-1")


def _octets(text: str) -> bytes:
    return text.encode("latin-1")
