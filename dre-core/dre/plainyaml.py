# SPDX-License-Identifier: Apache-2.0
"""YAML tamed to mappings, lists and strings, each with its place, and these as typed values.

Needs python3-yaml, which those want who use it.

Plain YAML would turn `on` into True, `1:30` into 90 and 271 octets with aliases into gigabytes; none of that exists
here.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import]

from dre.errors import UsageError

LIMIT = 256 * 1024  # octets of a file
DEPTH = 12
_T = TypeVar("_T")


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands in a file, counted from 1 as editors do."""

    line: int = 1
    column: int = 1


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


def tree(octets: bytes) -> Node:
    """The nodes of *octets*. Raises Refused."""
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
        raise Refused(at, f"alias *{event.anchor}: write the value out, there are no aliases here")
    if event.anchor is not None:
        raise Refused(at, f"anchor &{event.anchor}: there are none here")
    if event.tag is not None:
        raise Refused(at, f"tag {event.tag}: there are none here")
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


@dataclass
class Reader:
    """Reads nodes as typed values and collects what is wrong, so that one run shows all of it."""

    errors: list[tuple[Place, str]] = field(default_factory=list)

    def error(self, at: Place, text: str) -> None:
        self.errors.append((at, text))

    def mapping(self, node: Node, what: str, known: Collection[str], needed: Collection[str]) -> dict[str, Node]:
        """The entries of *node* that have a value; keys that are not *known*, and missing ones, are errors."""
        if node.entries is None:
            self.error(node.at, f"{what} must be a mapping of keys to values")
            return {}
        found = {}
        for key, value in node.entries:
            if key.text not in known:
                self.error(key.at, f"unknown key {key.text!r} in {what}; known: {', '.join(known)}")
            elif value.text == "":
                self.error(value.at, f"{key.text}: the value is missing")
            else:
                found[str(key.text)] = value
        present = {key.text for key, _ in node.entries}
        for name in needed:
            if name not in present:
                self.error(node.at, f"{what} lacks the key {name!r}")
        return found

    def value(self, entries: Mapping[str, Node], key: str, convert: Callable[[str], _T]) -> _T | None:
        """The typed value of *key*; None when it is absent or, with an error, wrong."""
        return self.typed(entries[key], key, convert) if key in entries else None

    def typed(self, node: Node, key: str, convert: Callable[[str], _T]) -> _T | None:
        """The typed value of *node*, which stands at *key*; None when it is, with an error, wrong."""
        if node.text is None:
            self.error(node.at, f"{key}: expected one value, not a list or a mapping")
            return None
        try:
            return convert(node.text)
        except UsageError as error:
            self.error(node.at, f"{key}: {error}")
            return None
