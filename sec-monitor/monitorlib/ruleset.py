# SPDX-License-Identifier: Apache-2.0
"""The rules of all files made ready to run: patterns compiled, continuations numbered, sets of files known.

What only sec does is refused here, with its line: patterns over several lines, and contexts of its own.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from monitorlib import perlre, ruleindex, secvars
from monitorlib.rulecheck import Action, Book, Condition, Finding, Rule, actions, condition, template

END = -1  # continuation: no more rules in any file
_SPECIAL = {"0": "", "n": "\n", "r": "\r", "s": " ", "t": "\t", "\\": "\\"}
_OWN_CONTEXTS = re.compile(r"SEC_INTERNAL_EVENT|_INTERNAL_EVENT|_FILE_EVENT_.*")
_NUMBERS = re.compile(r"\s*([A-Za-z]\w*)\s*=\s*0*([0-9]+)\s*")
BytesAction = tuple[Any, ...]  # as rulecheck.Action, its texts as octets


Search = Callable[[bytes], re.Match[bytes] | None]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern. A text stands for itself; a regular expression has groups, some of them with names.

    One that is shared wants *before* in front of the line, holds *skip* groups of its own for that, and does not work
    on a line with a NUL, which *alone* makes a search for.
    """

    negated: bool
    text: bytes | None = None
    search: Search | None = None
    names: tuple[tuple[bytes, int], ...] = ()
    groups: int = 0
    always: bool = False  # TValue: TRUE when not negated
    map: tuple[tuple[bytes, int], ...] = ()
    before: bytes = b""
    skip: int = 0
    alone: "Callable[[], Pattern] | None" = None

    def match(self, line: bytes) -> dict[bytes, bytes | None] | None:
        """What was matched, by name, where SEC would know it; None when the pattern does not match."""
        if self.search is None:
            found = self.always or (self.text is not None and self.text in line)
            return {} if found != self.negated else None
        if self.alone and b"\0" in line:
            return self.alone().match(line)
        match = self.search(self.before + line) if self.before else self.search(line)
        if self.negated:
            return None if match else {b"0": line}
        if not match:
            return None
        values: dict[bytes, bytes | None] = {name: match[number] for name, number in self.names}
        if self.groups > self.skip:
            found_groups = match.groups()[self.skip :]
            values.update((b"%d" % number, value) for number, value in enumerate(found_groups, 1))
        else:
            values[b"1"] = b"1"  # Perl's match in list context, which SEC uses, gives (1) without groups
        values[b"0"] = line
        for name, number in self.map:
            values[name] = values.get(b"%d" % number)
        return values


@dataclass
class Ready:
    """One rule, ready to run."""

    place: ruleindex.Place
    file: str
    line: int
    type: str
    pattern: Pattern
    pattern2: "Second | None"
    desc: bytes
    desc2: bytes
    context: tuple[bool, Condition]
    context2: tuple[bool, Condition]
    actions: list[BytesAction]
    actions2: list[BytesAction]
    window: int
    window2: int
    thresh: int
    thresh2: int
    goto: int
    goto2: int
    sets: list[bytes] | None
    is_constant: bool
    mark: str = ""  # the same as long as the rule says the same
    slow: int = 0  # times that its pattern took too long

    @property
    def name(self) -> str:
        """FILE:LINE."""
        return f"{self.file}:{self.line}"


class Second:
    """The second pattern of a pair, which holds for each pair what its first pattern matched."""

    def __init__(self, ptype: str, text: str, map: tuple[tuple[bytes, int], ...], is_template: bool) -> None:
        self.kind = ptype.removeprefix("N").rstrip("0123456789")
        self.negated = ptype.startswith("N")
        self._text = special(text)
        self._map = map
        self._variables: list[str] = []
        self._shared: Search | None = None
        if self.kind == "RegExp":
            text, self._variables = template(text) if is_template else (text, [])
            self._expression = perlre.Expression(text)
            self.ways = ruleindex.ways(self._expression.root)
            self._skip = len(self._variables)
            if self._skip and (shared := self._expression.shared(self._skip)):
                self._shared = re.compile(shared.encode("latin-1")).match
        elif self.kind == "SubStr":
            self.ways = [ruleindex.text_way(_VARIABLES.sub(chr(perlre.VARIABLE), self._text))]
        else:
            self.ways = [ruleindex.GAP]
        self.fixed = None if self._variables or self.kind == "SubStr" else _pattern(ptype, text, map)
        self.demands = [ruleindex.demand(way) for way in self.ways]
        self.common = frozenset[bytes]().union(*(demand.words for demand in self.demands))
        self._alone = lru_cache(maxsize=1024)(self._make_alone)

    def texts(self, values: secvars.Values) -> tuple[bytes, ...]:
        """What *values*, of the first pattern, say for the variables of this one: the argument of `make`."""
        if self.kind == "SubStr":
            text = self._text.encode("latin-1")
            return (secvars.matched(text, values) if values else text,)
        return tuple(secvars.matched(text.encode(), values) for text in self._variables)

    def make(self, texts: tuple[bytes, ...]) -> tuple[Pattern, tuple[bytes, ...] | None]:
        """The pattern, and a word for each way in which it matches, None where it demands none. Raises re.error."""
        if self.fixed:
            return self.fixed, self._words(self.ways, {})
        if self.kind == "SubStr":
            return Pattern(self.negated, text=texts[0]), self._words([ruleindex.text_way(_latin(texts[0]))], {})
        words = self._words(self.ways, {perlre.VARIABLE + n: _latin(text) for n, text in enumerate(texts)})
        if not self._shared or any(b"\0" in text for text in texts):
            return self._alone(texts), words
        names = tuple((name.encode(), number + self._skip) for name, number in self._expression.names.items())
        groups = self._expression.groups + self._skip
        before = b"\0".join((*texts, b""))
        alone = partial(self._alone, texts)
        return Pattern(
            self.negated, None, self._shared, names, groups, False, self._map, before, self._skip, alone
        ), words

    def _make_alone(self, texts: tuple[bytes, ...]) -> Pattern:
        known = {chr(perlre.VARIABLE + n): re.escape(_latin(text)) for n, text in enumerate(texts)}
        python = re.sub(r"[^\0-\xff]", lambda match: known[match[0]], self._expression.python())
        return _compiled(self.negated, python, self._expression, self._map)

    def _words(self, ways: list[str], known: dict[int, str]) -> tuple[bytes, ...] | None:
        if self.negated or self.kind == "TValue":
            return None
        made = []
        for way in ways:
            words = ruleindex.demand(way, known).words
            if not words:
                return None
            made.append(max(words - self.common or words, key=len))
        return tuple(made)


def _latin(text: bytes) -> str:
    return text.decode("latin-1")


_VARIABLES = re.compile(r"\$(?:\$|[0-9]+|\{[0-9]+\}|\+\{[A-Za-z_]\w*\})")


@dataclass
class Ruleset:
    """All files: their rules, those that every line goes through, and the sets that others jump to."""

    files: list[list[Ready]] = field(default_factory=list)
    main: list[int] = field(default_factory=list)
    sets: dict[bytes, list[int]] = field(default_factory=dict)
    index: ruleindex.Index = field(default_factory=lambda: ruleindex.Index([]))


def compile(books: list[Book], pipes: set[str]) -> tuple[Ruleset, list[Finding]]:
    """The rules of *books*, which the reader has found nothing wrong with; and what only sec can do."""
    made = Ruleset()
    findings: list[Finding] = []
    patterns: list[tuple[ruleindex.Place, list[ruleindex.Demand] | None]] = []
    for number, book in enumerate(books):
        found = [Finding(book.file, line, reason) for rule in book.rules for line, reason in _only_sec(rule)]
        findings += found
        marks = _marks(book)
        rules = [] if found else [_ready(book, rule, (number, n), pipes, marks) for n, rule in enumerate(book.rules)]
        made.files.append(rules)
        if book.options.get("procallin", "yes").lower() == "yes":
            made.main.append(number)
        for name in dict.fromkeys(book.options.get("joincfset", "").split()):
            made.sets.setdefault(name.encode(), []).append(number)
        for ready, rule in zip(rules, book.rules, strict=False):
            if ready.type == "Jump":
                continue  # of no effect where no rule of the file it goes to is concerned
            patterns.append((ready.place, _demands(rule.values["ptype"], rule.values["pattern"])))
            if ready.pattern2:
                is_known = ready.pattern2.kind != "TValue" and not ready.pattern2.negated
                patterns.append((ready.place, ready.pattern2.demands if is_known else None))
    made.index = ruleindex.Index(patterns)
    return made, findings


def _marks(book: Book) -> list[str]:
    """For each rule of a file what stays the same as long as the rule says the same."""
    marks: list[str] = []
    known: Counter[str] = Counter()
    for rule in book.rules:
        mark = hashlib.sha256(repr((Path(book.file).name, sorted(rule.values.items()))).encode()).hexdigest()[:16]
        marks.append(f"{mark}-{known[mark]}")
        known[mark] += 1
    return marks


def _only_sec(rule: Rule) -> list[tuple[int, str]]:
    found = []
    for key in ("ptype", "ptype2"):
        if re.fullmatch(r"\D+(0*[2-9]|0*1\d+)", rule.values.get(key, "")):
            found.append((rule.lines[key], f"{key}: dre-correlate matches single lines only"))
    for key in ("context", "context2"):
        if key in rule.values and any(map(_OWN_CONTEXTS.fullmatch, _names(condition(rule.values[key])[1]))):
            found.append((rule.lines[key], f"{key}: contexts that sec makes itself are not supported"))
    return found


def _names(terms: Condition) -> list[str]:
    """The names of contexts in a condition."""
    return [name for _, term in terms if term for name in ([term] if isinstance(term, str) else _names(term))]


def _ready(book: Book, rule: Rule, place: ruleindex.Place, pipes: set[str], marks: list[str]) -> Ready:
    has = rule.values

    def number(key: str) -> int:
        return int(has.get(key, "0"))

    def goto(key: str) -> int:
        word, *label = has.get(key, "DontCont").split(None, 1)
        if label:
            return book.labels[label[0]]
        return {"TakeNext": place[1] + 1, "EndMatch": END}.get(word, len(book.rules))

    def octets(key: str) -> list[BytesAction]:
        return [_octets(action, place[1], marks) for action in actions(has[key], pipes)] if key in has else []

    second = None
    if "pattern2" in has:
        second = Second(has["ptype2"], has["pattern2"], _map(has.get("varmap2")), "RegExp" in has["ptype"])
    return Ready(
        place=place,
        file=book.file,
        line=rule.line,
        type=rule.type,
        pattern=_pattern(has["ptype"], has["pattern"], _map(has.get("varmap"))),
        pattern2=second,
        desc=has.get("desc", "").encode(),
        desc2=has.get("desc2", "").encode(),
        context=condition(has["context"]) if "context" in has else (False, []),
        context2=condition(has["context2"]) if "context2" in has else (False, []),
        actions=octets("action"),
        actions2=octets("action2"),
        window=number("window"),
        window2=number("window2"),
        thresh=number("thresh"),
        thresh2=number("thresh2"),
        goto=goto("continue"),
        goto2=goto("continue2"),
        sets=has["cfset"].encode().split() if "cfset" in has else None,
        is_constant=has.get("constset", "yes").lower() == "yes",
        mark=marks[place[1]],
    )


def _octets(action: Action, number: int, marks: list[str]) -> BytesAction:
    """An action of the rule *number* in octets; what `reset` ends is named by marks, for the rule may move."""
    verb, *parts = action
    if verb == "reset" and isinstance(parts[0], str):
        parts[0] = " ".join(_reset(parts[0], number, marks))
    return (
        verb,
        *(part.encode() if isinstance(part, str) else [_octets(a, number, marks) for a in part] for part in parts),
    )


def _reset(which: str, number: int, marks: list[str]) -> list[str]:
    """The marks of the rules whose operations end: of the first one for 1, of the one before for -1, of all without."""
    if not which:
        return marks
    target = number + int(which) if which[0] in "+-" or not int(which) else int(which) - 1
    return marks[target : target + 1] if target >= 0 else []


def _map(text: str | None) -> tuple[tuple[bytes, int], ...]:
    """A varmap: names of matched groups."""
    found = map(_NUMBERS.fullmatch, text.split(";") if text else [])
    return tuple((match[1].encode(), int(match[2])) for match in found if match)


def special(text: str) -> str:
    r"""The text of a SubStr pattern, in which \\t and the like stand for one character."""
    return re.sub(r"\\([0nrst\\])", lambda match: _SPECIAL[match[1]], text)


def _pattern(ptype: str, text: str, map: tuple[tuple[bytes, int], ...]) -> Pattern:
    negated, kind = ptype.startswith("N"), ptype.removeprefix("N")
    if kind == "TValue":
        return Pattern(False, always=text.upper() == "TRUE")
    if kind.startswith("SubStr"):
        return Pattern(negated, text=special(text).encode("latin-1"))
    expression = perlre.Expression(text)
    return _compiled(negated, expression.python(), expression, map)


def _compiled(negated: bool, python: str, expression: perlre.Expression, map: tuple[tuple[bytes, int], ...]) -> Pattern:
    compiled = re.compile(python.encode("latin-1"))
    names = tuple((name.encode(), number) for name, number in expression.names.items())
    return Pattern(negated, search=compiled.search, names=names, groups=compiled.groups, map=map)


def _demands(ptype: str, text: str) -> list[ruleindex.Demand] | None:
    if ptype.startswith("N") or ptype == "TValue":
        return None
    if ptype.startswith("SubStr"):
        return [ruleindex.demand(ruleindex.text_way(special(text)))]
    return [ruleindex.demand(way) for way in ruleindex.ways(perlre.Expression(text).root)]
