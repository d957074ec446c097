# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of the language, made from the loader's own tables; editors read the shipped file.

A schema sees one key at a time: whether monitors and responses fit together only `dscript check` can say. Run as a
module it prints the file.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dre import units

from dscriptlib import tables, words
from dscriptlib.steps import CONTAINER, KINDS, account, nested, text, word

VERSION = 1  # of the language: the value of the key `dscript`
URI = f"https://d-re.example/schema/dscript-{VERSION}.json"
Schema = dict[str, Any]
_PATTERNS: Mapping[Callable[[str], Any], str] = {
    units.name: r"^[a-z0-9][a-z0-9-]{0,30}$",
    units.percent: r"^[0-9]+(\.[0-9]+)?%?$",
    units.duration: r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$",
    words.some_time: r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$",
    words.word: r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
    words.event_type: r"^[a-z][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+$",
    words.url: r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/.*)?$",
    words.count: r"^[1-9][0-9]{0,3}$",
    words.number: r"^[0-9]{1,9}(\.[0-9]{1,6})?$",
    words.path: r"^/",
    words.source: r"^/[A-Za-z0-9_.:@+/*-]{0,200}$",
    account: r"^[a-z_][a-z0-9_-]{0,31}$",
}
_PARAMETER = r"^\$[a-z0-9][a-z0-9-]{0,30}$"  # words.PARAMETER, where tables.FIXED lets it stand
_SCALAR: Schema = {"type": ["string", "number", "boolean"]}  # an editor types values, the loader reads them as text

_ONE_BOUND: Schema = {"oneOf": [{"required": ["above"]}, {"required": ["below"]}]}


def schema() -> Schema:
    """The whole schema."""
    script = _object(tables.SCRIPT)
    parameters = {"type": "object", "minProperties": 1, "additionalProperties": _SCALAR}
    script["properties"].update(
        agreed=_object(tables.AGREED, by=_list(_of(words.word)), parameters=parameters),
        monitors=_list(_chosen("watch", {kind: _monitor(kind) for kind in tables.WATCHES})),
        responses=_list(_response()),
    )
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "$id": URI, "title": f"D-Script, version {VERSION}"}
    return {**head, **script}


def _monitor(kind: str) -> Schema:
    table = dict(tables.monitor(kind, None))
    argv = _list(_of(words.argument))
    made = _object(table, argv=argv, fields={"type": "object", "minProperties": 1, "additionalProperties": _SCALAR})
    if "clear" in table:
        made["dependencies"] = {"above": ["clear"], "below": ["clear"], "clear": _ONE_BOUND}
        made["required"] += [] if kind in tables.USUAL else ["clear"]
    if kind == "liveness":
        made.update(_one_container())
    return made


def _response() -> Schema:
    expect = _object(tables.EXPECT)
    trigger = _object(tables.TRIGGER)
    trigger["dependencies"] = {"after": ["within"], "within": ["after"]}
    item = {"anyOf": [_of(units.name), trigger]}
    steps = {}
    for action, kind in KINDS.items():
        steps[action] = _object(tables.step(action), expect=expect, argv=_list(_of(words.argument)))
        if CONTAINER.keys() <= kind.keys.keys():
            steps[action].update(_one_container())
        if {"above", "below"} <= kind.keys.keys():
            steps[action].update(_ONE_BOUND)
    many = {"anyOf": [*item["anyOf"], _list(item)]}
    return _object(
        tables.RESPONSE,
        when=many,
        steps=_list(_chosen("action", steps)),
        **{"at-most": _object(tables.AT_MOST)},
    )


def _object(table: tables.Table, **inner: Schema) -> Schema:
    fixed = table if table in (tables.SCRIPT, tables.AGREED) else tables.FIXED
    properties = {
        key: inner.get(key, {}) if of.type is nested else _of(of.type, key not in fixed) for key, of in table.items()
    }
    required = [key for key, of in table.items() if of.required]
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": required} if required else made


def _list(item: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": item}


def _chosen(key: str, kinds: Mapping[str, Schema]) -> Schema:
    """One of *kinds* by the value of *key*, so that an editor complains about that kind alone."""
    rules = [{"if": {"properties": {key: {"const": name}}}, "then": of} for name, of in kinds.items()]
    return {"type": "object", "required": [key], "properties": {key: {"enum": list(kinds)}}, "allOf": rules}


def _one_container() -> Schema:
    return {"oneOf": [{"required": [key]} for key in CONTAINER]}


def _of(type: Callable[[str], Any], parameter: bool = False) -> Schema:
    """What a value of *type* looks like, or a *parameter* that stands for one."""
    if isinstance(type, word):
        return {"enum": [*type.choices, *(int(choice) for choice in type.choices if choice.isdecimal())]}
    if isinstance(type, text):
        return {**_SCALAR, "minLength": 1, "maxLength": type.limit}
    if type not in _PATTERNS:
        return dict(_SCALAR)
    made = {**_SCALAR, "pattern": _PATTERNS[type] + (f"|{_PARAMETER}" if parameter else "")}
    return {**made, "minimum": 1, "maximum": 9999} if type is words.count else made


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=1) + "\n")
