# SPDX-License-Identifier: Apache-2.0
"""YAML tamed to mappings, lists and strings, each with its place. Needs python3-yaml, which those want who use it.

Plain YAML would turn `on` into True, `1:30` into 90 and 271 octets with aliases into gigabytes; none of that exists
here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import]

LIMIT = 256 * 1024  # octets of a file
DEPTH = 12


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
