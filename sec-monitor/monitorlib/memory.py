# SPDX-License-Identifier: Apache-2.0
"""What rules remember and do: contexts, variables, the clock with what is due, and the lines that are put out."""

import hashlib
import heapq
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dre import event

from monitorlib import secvars
from monitorlib.ruleindex import Place
from monitorlib.ruleset import BytesAction

HEAD = b'{"time":"'
STORE = 10_000  # most lines that a context keeps
MOST = 500_000  # contexts, and operations of rules, at most: what a flood of names begins has an end
KEPT = 32  # most ids that an operation or a context remembers: the first and the latest
CONTEXT = (-1, 0)  # stands before all rules: what is due in one second is done in this order
_ID = re.compile(rb',"id":"([^"\\]*)"[^{}]*\}$')


class Due(Protocol):
    """Something that ends: *due* is the second in which it is over, 0 for never; *queued* is for Timers."""

    queued: int

    @property
    def due(self) -> int: ...


@dataclass
class Context:
    """A context: its end, its lines, and the ids of the events that made it."""

    time: int
    window: int
    actions: list[BytesAction]
    desc: bytes
    rule: str
    lines: list[bytes] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    ending: bool = False
    queued: int = 0

    @property
    def due(self) -> int:
        """The second in which it is no more; 0 for never."""
        return self.time + self.window + 1 if self.window else 0


@dataclass
class Output:
    """One line for a FIFO, and why it is written."""

    pipe: str
    text: bytes
    why: dict[str, object] | None = None


class Timers:
    """What ends, in the order in which it does: by second, then contexts before rules, then by name."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Place, bytes]] = []

    def put(self, place: Place, name: bytes, thing: Due) -> None:
        """Enter *thing*, or that its end has changed. An end that was put off is noticed when the old one comes."""
        if thing.due and (not thing.queued or thing.due < thing.queued):
            thing.queued = thing.due
            heapq.heappush(self._heap, (thing.due, place, name))

    @property
    def first(self) -> int | None:
        """The second in which something may be over next."""
        return self._heap[0][0] if self._heap else None

    def next(self, now: int) -> tuple[int, Place, bytes] | None:
        """The next entry up to the second *now*; whether that thing is over its `due` must tell."""
        return heapq.heappop(self._heap) if self._heap and self._heap[0][0] <= now else None


class Memory:
    """All that outlasts a line, but for the operations of rules; and what actions do to it."""

    def __init__(self, pipes: list[str], explain: bool) -> None:
        self.explain = explain
        self.now = 0  # seconds since the epoch
        self.timers = Timers()
        self.contexts: dict[bytes, Context] = {}
        self.variables = {name.encode(): name.encode() for name in pipes}
        self.out: list[Output] = []
        self.logged: list[bytes] = []
        self.cause = b""  # the line, or the end of something, that is dealt with
        self.count = 0  # of the lines it has put out
        self.ids: list[bytes] = []  # of the events on which that rests
        self.why: dict[str, object] | None = None
        self.reset: Callable[[bytes, bytes], None] = lambda marks, desc: None  # ends operations of rules
        self.full = 0  # contexts and operations that were not begun because there were too many

    def begin(self, cause: bytes) -> None:
        """Deal with the next line, or end of something."""
        self.cause, self.count, self.ids = cause, 0, []

    def holds(self, terms: list[tuple[str, Any]], values: secvars.Values) -> bool:
        """The truth of a condition. The order of evaluation is SEC's own, which differs from C's: see sec(1)."""
        left: bool | None = None
        right: list[tuple[str, Any]] = []
        for kind, term in terms:
            if kind == "not":
                if right:
                    right.append((kind, term))
                else:
                    left = not left
            elif kind in ("and", "or"):
                if bool(left) == (kind == "and"):
                    left = self.holds(right, values)
                right = []
            elif left is not None:
                right.append((kind, term))
            elif kind == "name":
                left = self._is_valid(secvars.name_of(term, values))
            else:
                left = self.holds(term, values)
        return bool(left)

    def _is_valid(self, name: bytes) -> bool:
        context = self.contexts.get(name)
        if not context or not context.window or self.now - context.time <= context.window:
            return bool(context)
        if not context.ending:
            self.expire(name, context)
        return False

    def expire(self, name: bytes, context: Context) -> None:
        """The end of a context: its actions, then it is no more."""
        if context.actions:
            context.ending = True
            why, self.why = self.why, self._end_of(name, context)
            before = self.contexts.get(b"_THIS")
            self.contexts[b"_THIS"] = context
            ids, self.ids = self.ids, context.ids
            self.run(context.actions, context.desc, context.rule)
            self.ids, self.why = ids, why
            if before:
                self.contexts[b"_THIS"] = before
            else:
                self.contexts.pop(b"_THIS", None)
        if self.contexts.get(name) is context:
            del self.contexts[name]

    def run(self, actions: list[BytesAction], desc: bytes, rule: str) -> None:
        for action in actions:
            verb = action[0]
            if verb == "none":
                continue
            name, *rest = (
                secvars.variables(part, self.variables, desc, self.now) if isinstance(part, bytes) else part
                for part in action[1:]
            )
            if verb == "write":
                self._write(name.decode(), rest[0], rule)
            elif verb == "logonly":
                self.logged.append(name)
            elif verb == "reset":
                self.reset(name, rest[0])
            elif verb == "assign":
                self.variables[name] = rest[0]
            else:
                self._change(str(verb), name, rest, desc, rule)

    def _change(self, verb: str, name: bytes, rest: list[Any], desc: bytes, rule: str) -> None:
        """An action on the context *name*."""
        context = self.contexts.get(name)
        if verb == "create" or (verb == "add" and not context):
            window = int(rest[0]) if verb == "create" else 0
            actions = rest[1] if verb == "create" else []
            if not context and len(self.contexts) >= MOST:
                self.full += 1
                return
            if context:
                context.time, context.window, context.actions, context.desc = self.now, window, actions, desc
                context.lines, context.ids, context.rule = [], [], rule
            else:
                context = self.contexts[name] = Context(self.now, window, actions, desc if actions else b"", rule)
            context.ids = kept([*context.ids, *self.ids])
            self.timers.put(CONTEXT, name, context)
        if not context:
            return
        if verb == "add":
            lines = rest[0].rstrip(b"\n").split(b"\n") if rest[0].strip(b"\n") else []
            if len(context.lines) + len(lines) <= STORE:
                context.lines += lines
                context.ids = kept([*context.ids, *self.ids])
        elif verb in ("delete", "obsolete") and not context.ending:
            if verb == "obsolete":
                context.window = -1
                self.expire(name, context)
            else:
                del self.contexts[name]
        elif verb == "set":
            if rest[0] != b"-":
                context.time, context.window = self.now, int(rest[0])
                self.timers.put(CONTEXT, name, context)
            if rest[1]:
                context.actions, context.desc, context.rule = rest[1], desc, rule
        elif verb in ("copy", "empty"):
            if rest:
                self.variables[rest[0]] = b"\n".join(context.lines)
            if verb == "empty":
                context.lines = []

    def _write(self, pipe: str, text: bytes, rule: str) -> None:
        """Put out one line. An event without an id gets one that is the same whenever the same cause comes again."""
        self.count += 1
        if text.startswith(HEAD) and text.endswith(b"}") and not _ID.search(text):
            seed = b"\0".join((self.cause, rule.rpartition("/")[2].encode(), b"%d" % self.count))
            text = b'%s,"id":"%s"}' % (text[:-1], hashlib.sha256(seed).hexdigest()[:16].encode())
        self.out.append(Output(pipe, text, self.why))

    def _end_of(self, name: bytes, context: Context) -> dict[str, object] | None:
        """Why the last actions of a context are carried out."""
        if not self.explain:
            return None
        text = name.decode(errors="replace")
        return {
            "time": event.stamp(self.now),
            "rule": context.rule,
            "type": "context",
            "desc": context.desc.decode(errors="replace"),
            "events": texts(context.ids),
            "before": {"operation": None, "contexts": {text: True}},
            "after": {"operation": None, "contexts": {text: False}},
        }


def id_of(line: bytes) -> list[bytes]:
    match = _ID.search(line)
    return [match[1]] if match else []


def kept(ids: list[bytes]) -> list[bytes]:
    """The first and the latest of *ids*, each once."""
    once = list(dict.fromkeys(ids))
    return once if len(once) <= KEPT else [once[0], *once[1 - KEPT :]]


def texts(ids: list[bytes]) -> list[str]:
    return [identity.decode(errors="replace") for identity in ids]
