# SPDX-License-Identifier: Apache-2.0
"""Run the rules of SEC in event time; pure: the caller reads lines and writes what comes out.

The clock is that of the events, in whole seconds as in sec(1): it advances with the stamp of each line and with
`dre.watermark` lines, never back, and what is due happens before the line that made it due is looked at. So a record
gives the same result however fast it is read: that of sec when each line comes in the second of its stamp.
"""

import datetime
import re
from dataclasses import dataclass, field
from typing import Any

from dre import event

from monitorlib import ruleindex, secvars
from monitorlib.memory import CONTEXT, MOST, Context, Memory, id_of, kept, texts
from monitorlib.ruleset import END, BytesAction, Pattern, Ready, Ruleset

SECOND = 28  # the head of a line up to its second
_TIME = rb"(\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d)\.\d{3}Z"
_LINE = re.compile(rb'\{"time":"' + _TIME + b'","source":"')
_SEEN = re.compile(rb'"seen":"' + _TIME + rb'"[^{}]*\}$')
_WATERMARK = b"watermark"
_IS_WATERMARK = re.compile(rb'.{35}"source":"[^"]*","type":"dre\.watermark"[,}]')
Values = dict[bytes, bytes | None]


class TooLongError(Exception):
    """Raised by the caller's alarm while a pattern is tried, when that takes too long."""


@dataclass
class Operation:
    """What a rule has begun for one description: it counts, suppresses, or waits for the second event."""

    time: int
    window: int
    born: int
    desc: bytes
    actions: list[BytesAction]
    actions2: list[BytesAction]
    desc2: bytes = b""
    times: list[int] = field(default_factory=list)
    second: bool = False  # suppressing, or counting down
    texts: tuple[bytes, ...] = ()  # the variables of the second pattern
    context2: list[tuple[str, Any]] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    queued: int = 0

    @property
    def due(self) -> int:
        """The second in which its window is over; 0 for never."""
        return self.time + self.window + 1 if self.window else 0

    def row(self) -> dict[str, object]:
        """What is told of it."""
        made: dict[str, object] = {"since": self.time, "until": self.time + self.window if self.window else None}
        if self.times:
            made["count"] = len(self.times)
        if self.second:
            made["second"] = True
        return made


@dataclass
class _Waiting:
    """The operations of one rule: by description, and for pairs by a word that the second event must hold."""

    all: dict[bytes, Operation] = field(default_factory=dict)
    patterns: dict[bytes, Pattern] = field(default_factory=dict)
    by_word: dict[bytes, dict[bytes, None]] = field(default_factory=dict)
    words: dict[bytes, tuple[bytes, ...] | None] = field(default_factory=dict)
    any: dict[bytes, None] = field(default_factory=dict)


class Correlator:
    """The state machine: feed it lines, take `out`."""

    def __init__(self, rules: Ruleset, pipes: list[str], explain: bool = False) -> None:
        self.rules = rules
        self.memory = Memory(pipes, explain)
        self.operations: dict[ruleindex.Place, _Waiting] = {}
        self.lines = 0  # that were fed
        self.refused = 0  # of them, because they are no events
        self.trying: Ready | None = None  # its pattern is being matched just now
        self.born = 0  # operations, ever
        self.count = 0  # operations, now
        self._head = b"-"
        self._line = b""
        self._about: list[bytes] = []  # contexts that an explanation is to show
        self._marked = {rule.mark.encode(): rule for rules in rules.files for rule in rules}
        self.memory.reset = self._reset
        self._prepare()

    def _prepare(self) -> None:
        index = self.rules.index
        self._always: dict[int, list[int]] = {}
        jumps = {rule.place for rules in self.rules.files for rule in rules if rule.type == "Jump"}
        for file, number in sorted(index.always | jumps):
            self._always.setdefault(file, []).append(number)
        self._words = {**index.by_word}
        self._words.setdefault(_WATERMARK, ruleindex.Texts([]))
        self._is_silent = not index.always and not index.by_text  # a line without a word of a rule concerns none

    # --- Lines ---

    def feed(self, lines: list[bytes]) -> None:
        """Take whole *lines* without their newlines."""
        known, cut, split = self._words.keys(), ruleindex.CUT, bytes.split
        for line in lines:
            self.lines += 1
            if line[:SECOND] != self._head and not self._clock(line):
                continue
            found = known & split(line.translate(cut))
            if found or not self._is_silent:
                self._event(line, found)

    def _clock(self, line: bytes) -> bool:
        """Advance to the second of *line*, or to that of its arrival if it tells of the future; False: no event."""
        match, seen = _LINE.match(line), _SEEN.search(line)
        try:
            text = min(match[1], seen[1]) if match and seen else match[1] if match else b""
            now = int(datetime.datetime.fromisoformat(text.decode() + "+00:00").timestamp())
        except ValueError:
            self.refused += 1
            return False
        if now >= self.memory.now:
            self._advance(now)
            self._head = line[:SECOND] if match and text == match[1] else self._head
        return True

    def _event(self, line: bytes, found: set[bytes]) -> None:
        if _WATERMARK in found and _IS_WATERMARK.match(line):
            return
        index = self.rules.index
        places: dict[int, set[int]] = {}
        for some in (index.by_text, *map(self._words.__getitem__, found)):
            for file, number in some.find(line):
                places.setdefault(file, set()).add(number)
        if not places and not index.always:
            return
        self._line = line
        self.memory.begin(line)
        for file in self.rules.main:
            if (file in places or file in self._always) and self._file(file, places, set()):
                break

    def _file(self, file: int, places: dict[int, set[int]], trace: set[bytes]) -> bool:
        """Run the rules of *file* that the line may concern; True when no more rules are to be looked at."""
        rules = self.rules.files[file]
        following = 0
        for number in sorted({*places.get(file, ()), *self._always.get(file, ())}):
            if number < following:
                continue
            following = self._rule(rules[number], places, trace)
            if following == END:
                return True
        return False

    def _rule(self, rule: Ready, places: dict[int, set[int]], trace: set[bytes]) -> int:
        """Try one rule; the number of the rule that is next."""
        if (values := self._matches(rule, rule.pattern, *rule.context)) is not None:
            if rule.type == "Jump":
                return END if self._jump(rule, values, places, trace) else rule.goto
            if rule.type != "Suppress":
                self.memory.ids = self._evidence(rule.context[1], {} if rule.context[0] else values)
                self._act(rule, values)
            return rule.goto
        if rule.pattern2 and rule.place in self.operations and self._pairs(rule):
            return rule.goto2
        return rule.place[1] + 1

    def _matches(self, rule: Ready, pattern: Pattern, before: bool, context: list[tuple[str, Any]]) -> Values | None:
        """What *pattern* matches in the line, when the condition *context* holds too."""
        if before and context and not self.memory.holds(context, {}):
            return None
        self.trying = rule
        try:
            values = pattern.match(self._line)
        except TooLongError:
            rule.slow += 1
            return None
        finally:
            self.trying = None
        if values is None or (context and not before and not self.memory.holds(context, values)):
            return None
        return values

    def _jump(self, rule: Ready, values: Values, places: dict[int, set[int]], trace: set[bytes]) -> bool:
        for name in rule.sets or []:
            if values and not rule.is_constant:
                name = secvars.matched(name, values)
            if name in trace:
                continue
            trace.add(name)
            files = [file for file in self.rules.sets.get(name, ()) if file in places or file in self._always]
            ended = any(self._file(file, places, trace) for file in files)
            trace.discard(name)
            if ended:
                return True
        return False

    def _evidence(self, terms: list[tuple[str, Any]], values: Values) -> list[bytes]:
        """The ids of the line and of the events on which the contexts that a condition names rest."""
        ids: list[bytes] = []
        for name in secvars.names(terms, values):
            if context := self.memory.contexts.get(name):
                ids += context.ids
        return [*dict.fromkeys(ids), *id_of(self._line)]

    # --- Time ---

    def _advance(self, now: int) -> None:
        """Do what is due up to the second *now*, each thing in its own second."""
        memory = self.memory
        while entry := memory.timers.next(now):
            due, place, name = entry
            waiting = self.operations.get(place)
            thing = memory.contexts.get(name) if place == CONTEXT else waiting and waiting.all.get(name)
            if not thing or thing.queued != due:
                continue
            thing.queued = 0
            if thing.due != due:
                memory.timers.put(place, name, thing)
                continue
            memory.now = due
            memory.begin(b"%d %d %s" % (due, place[1], name))
            if isinstance(thing, Context):
                memory.expire(name, thing)
            else:
                self._over(self.rules.files[place[0]][place[1]], thing)
        memory.now = now

    def _over(self, rule: Ready, operation: Operation) -> None:
        """The window of an operation is over."""
        if not operation.second and rule.type in ("SingleWithThreshold", "SingleWith2Thresholds"):
            operation.times = [time for time in operation.times if time >= self.memory.now - operation.window]
            if operation.times:
                operation.time = operation.times[0]
                self.memory.timers.put(rule.place, operation.desc, operation)
                return
            self._end(rule, operation)
            return
        actions, desc = operation.actions2, operation.desc2 or operation.desc
        if rule.type == "PairWithWindow":
            actions, desc = operation.actions, operation.desc
        elif rule.type not in ("SingleWithThreshold", "SingleWith2Thresholds"):
            actions = []
        self.memory.ids = operation.ids
        if actions:
            self._begin(rule, operation.desc, desc, [])
            self.memory.run(actions, desc, rule.name)
        self._end(rule, operation)
        self._done(rule, operation.desc)

    # --- Operations ---

    def _act(self, rule: Ready, values: Values) -> None:
        """The first pattern of *rule* has matched."""
        desc = secvars.matched(rule.desc, values) if values else rule.desc
        waiting = self.operations.get(rule.place)
        operation = waiting.all.get(desc) if waiting else None
        self._begin(rule, desc, desc, secvars.names(rule.context[1], {} if rule.context[0] else values))
        if rule.type == "Single":
            self.memory.run(secvars.given(rule.actions, values), desc, rule.name)
        elif rule.type in ("SingleWithSuppress", "Pair", "PairWithWindow"):
            if not operation:
                operation = self._start(rule, desc, values)
                if operation and rule.type != "PairWithWindow":
                    self.memory.run(operation.actions, desc, rule.name)
        elif operation := operation or self._start(rule, desc, values):
            self._count_up(rule, operation, desc)
        self._done(rule, desc)

    def _start(self, rule: Ready, desc: bytes, values: Values) -> Operation | None:
        """Begin an operation; None when its second pattern cannot be made."""
        self.born += 1
        made = Operation(self.memory.now, rule.window, self.born, desc, secvars.given(rule.actions, values), [])
        made.ids = list(self.memory.ids)
        second = rule.pattern2
        if not second:
            made.actions2 = secvars.given(rule.actions2, values)
            made.desc2 = secvars.matched(rule.desc2, values) if values else rule.desc2
        else:
            sign = b"%" if second.kind == "RegExp" else b"$"
            made.texts = second.texts(values)
            if values and sign == b"%":
                values = dict(secvars.masked(values, b"$"))
            made.actions2 = secvars.given(rule.actions2, values, sign)
            made.desc2 = secvars.matched(rule.desc2, values, sign) if values else rule.desc2
            made.context2 = secvars.renamed(rule.context2[1], values, sign) if values else rule.context2[1]
        return made if self.keep(rule, made) else None

    def keep(self, rule: Ready, operation: Operation) -> bool:
        """Enter an operation into the books; False when its second pattern cannot be made, or there are too many."""
        name = operation.desc
        if self.count >= MOST:
            self.memory.full += 1
            return False
        waiting = self.operations.setdefault(rule.place, _Waiting())
        if rule.pattern2:
            try:
                waiting.patterns[name], words = rule.pattern2.make(operation.texts)
            except re.error as error:
                self.memory.logged.append(f"{rule.name}: pattern2: {error}".encode())
                return False
            waiting.words[name] = words
            for word in words or ():
                waiting.by_word.setdefault(word, {})[name] = None
            if words is None:
                waiting.any[name] = None
        waiting.all[name] = operation
        self.count += 1
        self.memory.timers.put(rule.place, name, operation)
        return True

    def _reset(self, marks: bytes, desc: bytes) -> None:
        """End the operations of the rules with *marks* for the description *desc*, without their actions."""
        for rule in map(self._marked.get, marks.split()):
            waiting = self.operations.get(rule.place) if rule else None
            if rule and waiting and (operation := waiting.all.get(desc)):
                self._end(rule, operation)

    def _end(self, rule: Ready, operation: Operation) -> None:
        """Take an operation out of the books, unless `reset` has done so."""
        name = operation.desc
        waiting = self.operations.get(rule.place)
        if not waiting or waiting.all.get(name) is not operation:
            return
        del waiting.all[name]
        self.count -= 1
        waiting.patterns.pop(name, None)
        waiting.any.pop(name, None)
        for word in set(waiting.words.pop(name, None) or ()):
            del waiting.by_word[word][name]
            if not waiting.by_word[word]:
                del waiting.by_word[word]
        if not waiting.all:
            del self.operations[rule.place]

    def _count_up(self, rule: Ready, operation: Operation, desc: bytes) -> None:
        """One more event for a threshold."""
        if operation.second and rule.type == "SingleWithThreshold":
            return
        operation.times.append(self.memory.now)
        if self.memory.ids != operation.ids:
            operation.ids = kept([*operation.ids, *self.memory.ids])
        if operation.second:
            if len(operation.times) > rule.thresh2:
                del operation.times[0]
                operation.time = operation.times[0] if operation.times else self.memory.now
            return
        if len(operation.times) < rule.thresh:
            return
        operation.second = True
        if rule.type == "SingleWith2Thresholds":
            operation.time, operation.window, operation.times = self.memory.now, rule.window2, []
            self.memory.timers.put(rule.place, operation.desc, operation)
        self.memory.ids = operation.ids
        if self.memory.why is not None:
            self.memory.why["events"] = texts(operation.ids)
        self.memory.run(operation.actions, desc, rule.name)

    def _pairs(self, rule: Ready) -> bool:
        """Try the line as the second event of the pairs that wait for one."""
        waiting = self.operations[rule.place]
        if len(waiting.all) <= 4:
            names = list(waiting.all)
        else:
            words = waiting.by_word.keys() & set(ruleindex.words(self._line))
            some = {name for word in words for name in waiting.by_word[word]}.union(waiting.any)
            names = sorted(some, key=lambda name: waiting.all[name].born)
        found = False
        for name in names:
            operation = waiting.all.get(name)
            if not operation:
                continue
            values = self._matches(rule, waiting.patterns[name], rule.context2[0], operation.context2)
            if values is None:
                continue
            found = True
            contexts = secvars.names(operation.context2, {} if rule.context2[0] else values)
            self.memory.ids = kept([*operation.ids, *self._evidence(operation.context2, values)])
            desc = secvars.matched(operation.desc2, values) if values else operation.desc2
            self._begin(rule, name, desc, contexts)
            self.memory.run(secvars.given(operation.actions2, values), desc, rule.name)
            self._end(rule, operation)
            self._done(rule, name)
        return found

    # --- Explanations ---

    def _begin(self, rule: Ready, name: bytes, desc: bytes, contexts: list[bytes]) -> None:
        if self.memory.explain:
            self._about = contexts
            self.memory.why = {
                "time": event.stamp(self.memory.now),
                "rule": rule.name,
                "type": rule.type,
                "desc": desc.decode(errors="replace"),
                "events": texts(self.memory.ids),
                "before": self._view(rule, name),
            }

    def _done(self, rule: Ready, name: bytes) -> None:
        if self.memory.why is not None:
            self.memory.why["after"] = self._view(rule, name)
            self.memory.why = None

    def _view(self, rule: Ready, name: bytes) -> dict[str, object]:
        waiting = self.operations.get(rule.place)
        operation = waiting.all.get(name) if waiting else None
        return {
            "operation": operation.row() if operation else None,
            "contexts": {context.decode(errors="replace"): context in self.memory.contexts for context in self._about},
        }
