# SPDX-License-Identifier: Apache-2.0
"""A D-Case as a tree of nodes, read from GSN in YAML (as gsn2x has it) or from the model files of D-Case Editor.

The editor's links go from the node above to the one below or, in its first versions, either way; so the tree is what
hangs together from the first goal that nothing is above.
"""

import graphlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from dre import plainyaml
from dre.errors import UsageError

NAMESPACES = ("http://www.dependable-os.net/2010/03/dcase/", "http://www.dependable-os.net/2013/11/dcase_model/")
LIMIT = plainyaml.LIMIT
_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_KINDS = {"G": "goal", "Sn": "solution", "S": "strategy", "C": "context", "A": "assumption", "J": "justification"}
_BELOW = ("supportedBy", "supported-by", "inContextOf", "in-context-of")


@dataclass(frozen=True)
class Node:
    """A node of the case: *name* is what scripts call it, *below* are the names of the nodes it rests on."""

    name: str
    kind: str
    text: str
    below: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """All nodes by name, those below before those above; and the tops."""

    nodes: dict[str, Node]
    tops: tuple[str, ...]

    def walk(self) -> Iterator[tuple[int, Node]]:
        """The nodes from the tops down, each once, with its depth."""
        seen: set[str] = set()
        todo = [(0, name) for name in reversed(self.tops)]
        while todo:
            depth, name = todo.pop()
            if name not in seen:
                seen.add(name)
                yield depth, self.nodes[name]
                todo += [(depth + 1, below) for below in reversed(self.nodes[name].below)]


def parse(octets: bytes, file: str) -> Case:
    """The case in *octets*. Raises UsageError with the file and what is wrong."""
    if len(octets) > LIMIT:
        raise UsageError(f"{file}: longer than {LIMIT // 1024} KiB")
    made = _xml(octets, file) if octets.lstrip().startswith(b"<") else _yaml(octets, file)
    if not any(node.kind == "goal" for node in made.nodes.values()):
        raise UsageError(f"{file}: no goal in it")
    return made


def _yaml(octets: bytes, file: str) -> Case:
    try:
        root = plainyaml.tree(octets)
    except plainyaml.Refused as error:
        raise UsageError(f"{file}:{error.at.line}:{error.at.column}: {error}") from None
    nodes, places = {}, {}
    for key, value in root.entries or []:
        kind = re.match(r"Sn|[GSCAJ]", key.text or "")
        if kind is None or value.entries is None:
            continue  # gsn2x has a `module` beside the nodes
        fields = {name.text: field for name, field in value.entries}
        below = [
            item.text or ""
            for word in _BELOW
            if word in fields
            for item in fields[word].items or [fields[word]]  # one alone may stand without a list
        ]
        text = fields["text"].text if "text" in fields else None
        nodes[key.text or ""] = Node(key.text or "", _KINDS[kind[0]], text or "", tuple(dict.fromkeys(below)))
        places[key.text or ""] = key.at
    for node in nodes.values():
        for name in node.below:
            if name not in nodes:
                raise UsageError(f"{file}:{places[node.name].line}: {node.name} rests on {name!r}, which is not there")
    above = {name for node in nodes.values() for name in node.below}
    return _case(nodes, [name for name in nodes if name not in above], file)


def _case(nodes: dict[str, Node], tops: Sequence[str], file: str) -> Case:
    try:
        order = graphlib.TopologicalSorter({name: node.below for name, node in nodes.items()}).static_order()
        return Case({name: nodes[name] for name in order}, tuple(tops))
    except graphlib.CycleError as error:
        raise UsageError(f"{file}: rests on itself: {', '.join(error.args[1])}") from None


def _xml(octets: bytes, file: str) -> Case:
    if b"<!DOCTYPE" in octets or b"<!ENTITY" in octets:
        raise UsageError(f"{file}: a document type is not needed, and not read")
    try:
        root = ElementTree.fromstring(octets)  # noqa: S314 - no entity can be in it
    except ElementTree.ParseError as error:
        raise UsageError(f"{file}: not XML: {error}") from None
    if root.tag not in {f"{{{namespace}}}Argument" for namespace in NAMESPACES}:
        raise UsageError(f"{file}: not a model of D-Case Editor")
    found: dict[str, ElementTree.Element] = {}
    for one in root:
        if _local(one.tag) == "rootBasicNode":
            found[one.get("id", "")] = one
    beside: dict[str, list[str]] = {identity: [] for identity in found}
    for link in (one for one in root if _local(one.tag) == "rootBasicLink"):
        ends = [link.get(end, "").removeprefix("#") for end in ("source", "target")]
        if any(end not in found for end in ends):
            raise UsageError(f"{file}: the link {link.get('name', '')!r} has an end that is no node")
        beside[ends[0]].append(ends[1])
        beside[ends[1]].append(ends[0])
    return _hung(found, beside, file)


def _hung(found: dict[str, ElementTree.Element], beside: dict[str, list[str]], file: str) -> Case:
    """The nodes, each below the first that reached it from a goal."""
    kinds = {identity: _local(one.get(_TYPE, "").replace(":", "}")).lower() for identity, one in found.items()}
    names = {identity: one.get("name") or identity for identity, one in found.items()}
    if len(set(names.values())) != len(names):
        raise UsageError(f"{file}: two nodes have one name")
    below: dict[str, list[str]] = {identity: [] for identity in found}
    tops, seen = [], set[str]()
    for start in sorted(found, key=lambda identity: kinds[identity] != "goal"):
        if start in seen:
            continue
        tops.append(start)
        seen.add(start)
        todo = [start]
        while todo:
            here = todo.pop(0)
            for other in beside[here]:
                if other not in seen:
                    seen.add(other)
                    below[here].append(other)
                    todo.append(other)
    nodes = {}
    for identity, one in found.items():
        kind = {"evidence": "solution"}.get(kinds[identity], kinds[identity])
        under = tuple(names[other] for other in below[identity])
        nodes[names[identity]] = Node(names[identity], kind, " ".join(one.get("desc", "").split()), under)
    return _case(nodes, [names[top] for top in tops], file)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
