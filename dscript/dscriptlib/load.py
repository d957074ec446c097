# SPDX-License-Identifier: Apache-2.0
"""Read a script: YAML tamed to mappings, lists and strings, then typed by the language's own keys.

Plain YAML would turn `on` into True, `1:30` into 90 and 271 octets with aliases into gigabytes; none of that exists
here. Whether the parts fit together is the business of dscriptlib.check.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import]
from dre import units
from dre.errors import UsageError

from dscriptlib.model import AtMost, Expect, Finding, Monitor, Place, Response, Script, Step, Trigger
from dscriptlib.steps import KINDS

LIMIT = 256 * 1024  # octets of a file
DEPTH = 12
REVERTS = ("when-clear", "on-failure", "never")
T = TypeVar("T")


@dataclass
class Node:
    """A value of the file: text, or a list of nodes, or a mapping from key nodes to nodes."""

    at: Place
    text: str | None = None
    items: list["Node"] | None = None
    entries: list[tuple["Node", "Node"]] | None = None


class Refused(Exception):
    """The text is not even the YAML we accept."""

    def __init__(self, at: Place, text: str) -> None:
        super().__init__(text)
        self.at = at


def read(path: Path) -> bytes:
    """The octets of the file *path*, one more than LIMIT at most. Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(LIMIT + 1)


def load(octets: bytes, file: str) -> tuple[Script | None, list[Finding]]:
    """The script in *octets* and what is wrong with it; None when there is an error. *file* is for the messages."""
    reader = _Reader(file)
    try:
        script = _script(reader, _tree(octets), hashlib.sha256(octets).hexdigest())
    except Refused as refusal:
        return None, [Finding(file, refusal.at, "error", str(refusal))]
    return (None if reader.findings else script), reader.findings


# --- YAML without its surprises ---


def _tree(octets: bytes) -> Node:
    if len(octets) > LIMIT:
        raise Refused(Place(), f"the file is longer than {LIMIT // 1024} KiB")
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = octets[: error.start].count(b"\n") + 1
        raise Refused(Place(line, 1), "not UTF-8 text") from None
    try:
        events = iter(yaml.parse(text, Loader=yaml.BaseLoader))
        return _document(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Place(mark.line + 1, mark.column + 1) if mark else Place()
        raise Refused(at, f"not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise Refused(Place(line, 1), f"character U+{ord(text[error.position]):04X} is not allowed") from None


def _document(events: Iterator[Any]) -> Node:
    next(events)  # the start of the stream
    start = next(events)
    if isinstance(start, yaml.StreamEndEvent):
        raise Refused(Place(), "the file is empty")
    root = _node(next(events), events, 0)
    next(events)  # the end of the document
    more = next(events)
    if not isinstance(more, yaml.StreamEndEvent):
        raise Refused(_at(more), "one file holds one document; what is after '---' must go")
    return root


def _at(event: Any) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _node(event: Any, events: Iterator[Any], depth: int) -> Node:
    at = _at(event)
    if isinstance(event, yaml.AliasEvent):
        raise Refused(at, f"alias *{event.anchor}: write the value out, scripts have no aliases")
    if event.anchor is not None:
        raise Refused(at, f"anchor &{event.anchor}: scripts have no anchors")
    if event.tag is not None:
        raise Refused(at, f"tag {event.tag}: scripts have no tags")
    if depth > DEPTH:
        raise Refused(at, f"nested deeper than {DEPTH} levels")
    if isinstance(event, yaml.ScalarEvent):
        return Node(at, text=event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(event, events, depth + 1))
        return Node(at, items=items)
    return Node(at, entries=_entries(events, depth))


def _entries(events: Iterator[Any], depth: int) -> list[tuple[Node, Node]]:
    entries: list[tuple[Node, Node]] = []
    seen: set[str] = set()
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _node(event, events, depth + 1)
        if key.text is None:
            raise Refused(key.at, "a key must be a word")
        if key.text in seen:
            raise Refused(key.at, f"key {key.text!r} is given twice")
        seen.add(key.text)
        entries.append((key, _node(next(events), events, depth + 1)))
    return entries


# --- types ---


@dataclass
class _Reader:
    """Collects findings while values are read, so that one run shows all of them."""

    file: str
    findings: list[Finding] = field(default_factory=list)

    def error(self, at: Place, text: str) -> None:
        self.findings.append(Finding(self.file, at, "error", text))

    def mapping(self, node: Node, what: str, required: str, optional: str = "") -> dict[str, Node]:
        """The entries of *node*; unknown and missing keys are findings."""
        if node.entries is None:
            self.error(node.at, f"{what} must be a mapping of keys to values")
            return {}
        known = [*required.split(), *optional.split()]
        found = {}
        for key, value in node.entries:
            if key.text not in known:
                self.error(key.at, f"unknown key {key.text!r} in {what}; known: {', '.join(known)}")
            elif value.text == "":
                self.error(value.at, f"{key.text}: the value is missing")
            else:
                found[str(key.text)] = value
        present = {key.text for key, _ in node.entries}
        for name in required.split():
            if name not in present:
                self.error(node.at, f"{what} lacks the key {name!r}")
        return found

    def items(self, node: Node | None, what: str) -> list[Node]:
        if node is None:
            return []
        if not node.items:
            self.error(node.at, f"{what} must be a list with at least one item")
            return []
        return node.items

    def value(self, entries: Mapping[str, Node], key: str, convert: Callable[[str], T]) -> T | None:
        """The typed value of *key*; None when it is absent or, with a finding, wrong."""
        node = entries.get(key)
        if node is None:
            return None
        if node.text is None:
            self.error(node.at, f"{key}: expected one value, not a list or a mapping")
            return None
        try:
            return convert(node.text)
        except UsageError as error:
            self.error(node.at, f"{key}: {error}")
            return None

    def unique(self, things: list[Any], what: str) -> None:
        seen: set[str] = set()
        for thing in things:
            if thing.id and thing.id in seen:
                self.error(thing.at, f"{what} {thing.id!r} is defined twice")
            seen.add(thing.id)


def _one_of(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise UsageError(f"expected {' or '.join(words)}, got {text!r}")
        return text

    return convert


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise UsageError(f"{text!r} is not a word of letters, digits, '.', '_' and '-'")
    return text


def _event_type(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+", text):
        raise UsageError(f"{text!r} is not an event type such as shop.overload")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9_.~!$&'()*+,;=:@%/?-]*)?", text):
        raise UsageError(f"{text!r} is not an address such as http://10.231.0.11/")
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise UsageError(f"expected a number from 1 to 9999, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise UsageError(f"expected a number from 0 on, got {text!r}")
    return float(text)


_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _argument(text: str) -> str:
    if "\0" in text or len(text) > 1000:
        raise UsageError("a word of a command has at most 1000 characters")
    return text


def _path(text: str) -> str:
    if not text.startswith("/") or "\0" in text or len(text) > 1000:
        raise UsageError(f"{text[:60]!r} is not an absolute path")
    return text


def _some_time(text: str) -> float:
    seconds = units.duration(text)
    if not 0 < seconds <= 30 * 86400:
        raise UsageError(f"{text!r} must be above 0 and at most 30d")
    return seconds


# --- the language ---


def _script(reader: _Reader, root: Node, sha256: str) -> Script:
    entries = reader.mapping(root, "a script", "dscript name responses", "agreed monitors")
    reader.value(entries, "dscript", _one_of("1"))
    monitors = [_monitor(reader, node) for node in reader.items(entries.get("monitors"), "monitors")]
    responses = [_response(reader, node) for node in reader.items(entries.get("responses"), "responses")]
    reader.unique(monitors, "monitor")
    reader.unique(responses, "response")
    name = reader.value(entries, "name", units.name) or ""
    return Script(name, sha256, _agreed(reader, entries.get("agreed")), tuple(monitors), tuple(responses))


def _agreed(reader: _Reader, node: Node | None) -> dict[str, Any]:
    if node is None:
        return {}
    entries = reader.mapping(node, "agreed", "", "case goal evidence revision by")
    agreed: dict[str, Any] = {}
    for key in ("case", "goal", "evidence", "revision"):
        if (value := reader.value(entries, key, _word)) is not None:
            agreed[key] = value
    agreed["by"] = [reader.value({"by": item}, "by", _word) for item in reader.items(entries.get("by"), "by")]
    return agreed


_WATCHES: dict[
    str, tuple[str, str, Callable[[str], float]]
] = {  # kind → required keys, others, type of above and clear
    "cpu": ("of", "for", units.percent),
    "memory": ("of", "for", units.percent),
    "liveness": ("missing", "of system every", units.duration),
    "http": ("url", "of for every", units.duration),
    "host-cpu": ("", "for every missing", units.percent),
    "host-memory": ("", "for every missing", units.percent),
    "disk": ("path", "for every missing", units.percent),
    "clock": ("", "for every missing", units.duration),
    "apache": ("url", "of for every missing", _number),
    "mysql": ("file", "of for every missing", units.duration),
    "command": ("argv", "of system for every missing", _number),
}
# Of those that may do without above and clear: what the first D-RE had.
_USUAL = {
    **dict.fromkeys(("cpu", "memory", "host-cpu", "host-memory"), (90.0, 80.0)),  # percent
    "apache": (2500.0, 2000.0),  # accesses a minute
    "mysql": (1.0, 0.8),  # seconds
}


def _monitor(reader: _Reader, node: Node) -> Monitor:
    kind = None
    for key, value in node.entries or []:
        if key.text == "watch":
            kind = reader.value({"watch": value}, "watch", _one_of(*_WATCHES))
    if kind is None:
        if not any(finding.at >= node.at for finding in reader.findings):
            reader.error(node.at, f"a monitor needs 'watch': one of {', '.join(_WATCHES)}")
        return Monitor("", "", at=node.at)
    required, optional, measure = _WATCHES[kind]
    above, clear = _USUAL.get(kind, (None, None))
    given = {key.text for key, _ in node.entries or []} & {"above", "clear"}
    if kind != "liveness" and (given or above is None):
        required += " above clear"
    entries = reader.mapping(node, f"a monitor of {kind}", f"id watch {required}", optional)
    if kind == "liveness" and ("of" in entries) == ("system" in entries):
        reader.error(node.at, "a monitor of liveness needs 'of', an app, or 'system'")
    argv = tuple(
        reader.value({"argv": word}, "argv", _argument) or "" for word in reader.items(entries.get("argv"), "argv")
    )
    if argv and not ("system" in entries or _PROGRAM.fullmatch(argv[0])):
        reader.error(entries["argv"].at, f"argv: {argv[0]!r} is not the name of a program in actions.d")
    if argv and "system" in entries and not argv[0].startswith("/"):
        reader.error(entries["argv"].at, f"argv: {argv[0]!r} is not a path in the system")
    return Monitor(
        id=reader.value(entries, "id", units.name) or "",
        watch=kind,
        of=reader.value(entries, "of", units.name),
        url=reader.value(entries, "url", _url),
        system=reader.value(entries, "system", units.name),
        path=reader.value(entries, "path", _path),
        file=reader.value(entries, "file", _path),
        argv=argv,
        above=reader.value(entries, "above", measure) if given else above,
        clear=reader.value(entries, "clear", measure) if given else clear,
        hold=reader.value(entries, "for", units.duration) or 0.0,
        missing=reader.value(entries, "missing", _some_time),
        every=reader.value(entries, "every", _some_time),
        at=entries["clear"].at if "clear" in entries else node.at,
    )


def _response(reader: _Reader, node: Node) -> Response:
    entries = reader.mapping(node, "a response", "id steps", "when at-most then if-failed goal")
    when = entries.get("when")
    triggers = [when] if when is not None and when.items is None else reader.items(when, "when")
    return Response(
        id=reader.value(entries, "id", units.name) or "",
        steps=tuple(_step(reader, item) for item in reader.items(entries.get("steps"), "steps")),
        when=tuple(_trigger(reader, item) for item in triggers),
        at_most=_at_most(reader, entries.get("at-most")),
        then=reader.value(entries, "then", units.name),
        if_failed=reader.value(entries, "if-failed", _one_of("revert")),
        goal=reader.value(entries, "goal", _word),
        at=node.at,
        then_at=entries["then"].at if "then" in entries else node.at,
    )


def _trigger(reader: _Reader, node: Node) -> Trigger:
    if node.text is not None:
        return Trigger(monitor=reader.value({"when": node}, "when", units.name), at=node.at)
    entries = reader.mapping(node, "a trigger", "event", "after within")
    if ("after" in entries) != ("within" in entries):
        reader.error(node.at, "'after' and 'within' belong together")
    return Trigger(
        event=reader.value(entries, "event", _event_type),
        after=reader.value(entries, "after", _event_type),
        within=reader.value(entries, "within", _some_time) or 0.0,
        at=node.at,
    )


def _at_most(reader: _Reader, node: Node | None) -> AtMost | None:
    if node is None:
        return None
    entries = reader.mapping(node, "at-most", "attempts per", "cooldown")
    return AtMost(
        reader.value(entries, "attempts", _count) or 1,
        reader.value(entries, "per", _some_time) or 1.0,
        reader.value(entries, "cooldown", units.duration) or 0.0,
    )


def _step(reader: _Reader, node: Node) -> Step:
    action = None
    for key, value in node.entries or []:
        if key.text == "action":
            action = reader.value({"action": value}, "action", _action)
            if action is None:
                return Step("", {}, 1.0, at=node.at)
    if action is None:
        reader.error(node.at, "a step needs 'action': one of " + ", ".join(KINDS))
        return Step("", {}, 1.0, at=node.at)
    kind = KINDS[action]
    own = {need: " ".join(name for name, key in kind.keys.items() if key.required is need) for need in (True, False)}
    entries = reader.mapping(node, f"a step {action}", f"action {own[True]}", f"{own[False]} timeout expect revert")
    typed = {name: reader.value(entries, name, key.type) for name, key in kind.keys.items()}
    values = {name: value for name, value in typed.items() if value is not None}
    if kind.problem and (problem := kind.problem(values)) and not set(typed) & (set(entries) - set(values)):
        reader.error(node.at, problem)
    revert = reader.value(entries, "revert", _one_of(*REVERTS))
    if revert in ("when-clear", "on-failure") and kind.compensate is None:
        reader.error(entries["revert"].at, f"{action} cannot be reverted")
    timeout = reader.value(entries, "timeout", _some_time) or 60.0
    return Step(action, values, timeout, revert, _expect(reader, entries.get("expect")), node.at)


def _action(text: str) -> str:
    if text not in KINDS:
        raise UsageError(f"unknown action {text!r}; known: {', '.join(KINDS)}")
    return text


def _expect(reader: _Reader, node: Node | None) -> Expect | None:
    if node is None:
        return None
    entries = reader.mapping(node, "expect", "watch within")
    watch = reader.value(entries, "watch", units.name) or ""
    return Expect(watch, reader.value(entries, "within", _some_time) or 1.0, node.at)
