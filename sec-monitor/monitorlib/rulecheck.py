# SPDX-License-Identifier: Apache-2.0
"""Read SEC rules, and let through only what is known to run nothing. Nothing in a file is executed.

SEC's own `--testonly` is no such check: it runs Perl from the file. Here a rule may match by plain patterns, keep
contexts and variables, write event lines to the FIFOs of DRE_MONITOR_PIPES, which it names as `%script` and the like,
and ask for programs of actions.d by `cmdexec`, which is read as a request written to the FIFO of monitorlib.actions.
Perl, shells, other programs, files and sockets are refused, as is whatever is not in the tables below. The same reader
serves dre-rules, which checks what sec is given, and dre-correlate, which runs what was read.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from monitorlib import perlre
from monitorlib.actions import FIFO as ACTIONS

LIMIT = 1024 * 1024
# Of each type: keys that it needs, and keys that it may have, besides rem and label.
_ONE = {"ptype", "pattern", "desc", "action"}
_MAY = {"continue", "varmap", "context"}
_TWO = {f"{key}2" for key in _ONE}
_MAY_TWO = {f"{key}2" for key in _MAY}
TYPES: dict[str, tuple[set[str], set[str]]] = {
    "Single": (_ONE, _MAY),
    "SingleWithSuppress": (_ONE | {"window"}, _MAY),
    "SingleWithThreshold": (_ONE | {"window", "thresh"}, _MAY | {"action2"}),
    "SingleWith2Thresholds": (
        _ONE | {"window", "thresh", "desc2", "action2", "window2", "thresh2"},
        _MAY,
    ),
    "Pair": (_ONE | _TWO, _MAY | _MAY_TWO | {"window"}),
    "PairWithWindow": (_ONE | _TWO | {"window"}, _MAY | _MAY_TWO),
    "Suppress": ({"ptype", "pattern"}, {"varmap", "context", "desc"}),
    "Jump": ({"ptype", "pattern"}, _MAY | {"cfset", "constset", "desc"}),
    "Options": (set(), {"joincfset", "procallin"}),
}
_KEYS = {"type", "rem", "label"}.union(*(needs | may for needs, may in TYPES.values()))
_PTYPE = re.compile(r"N?(RegExp|SubStr)(\d{0,2})|TValue")
_CONTINUE = re.compile(r"TakeNext|DontCont|EndMatch|GoTo\s+(\S.*)")
_VARMAP = re.compile(r"[A-Za-z]\w*\s*=\s*[0-9]{1,3}(\s*;\s*[A-Za-z]\w*\s*=\s*[0-9]{1,3})*")
_MATCHED = r"[$%](?:[0-9]+|\{[0-9]+\}|\+\{[A-Za-z_]\w*\})"  # what a pattern matched
_NAME = rf"(?:[A-Za-z0-9_]|\$\+|{_MATCHED})(?:[A-Za-z0-9_.:-]|\$\+|{_MATCHED})*"
_CONTEXT = re.compile(rf"\[?\s*(?:{_NAME}|&&|\|\||!|\(|\)|\s)+\]?")
_CONTEXT_ACTION = re.compile(rf"(create|set|delete|obsolete|add|copy|empty) ({_NAME})(?:\s+(.*))?", re.DOTALL)
_WRITE = re.compile(r"write %([A-Za-z][A-Za-z0-9_]*)(?:\s+(.+))?", re.DOTALL)
_ASSIGN = re.compile(r"assign (%[A-Za-z][A-Za-z0-9_]*)(?:\s+(.+))?", re.DOTALL)
# A program, and arguments that hold nothing which would end an action.
_PROGRAM = re.compile(r"(?:/etc/dre/actions\.d/)?([A-Za-z0-9][A-Za-z0-9_.-]{0,63})((?:\s+[^\s;()\\]{1,256})*)")
_ARGUMENTS = 16  # at most
_VALUE = re.compile(r"[$%]")
_CALL = re.compile(r"(^|[;(])(\s*)cmdexec\s([^;()]*)")
_LIFETIME = re.compile(r"([0-9]{1,7}|-)(?:\s+(.+))?", re.DOTALL)
_RESET = re.compile(r"reset(?:\s+([+-]?[0-9]{1,4}))?(?:\s+(.*\S))?", re.DOTALL)
_VARIABLE = re.compile(r"%[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[0-9]{1,7}")
_SET = re.compile(r"[A-Za-z0-9_.:+${}-]+(\s+[A-Za-z0-9_.:+${}-]+)*")
_REMEMBER = re.compile(r"#\s*remember:\s*([a-z][a-z0-9.-]*)\s+([0-9]{1,5})")
_MATCHED_IN_PATTERN = re.compile(r"\$(?:\$|[0-9]+|\{[0-9]+\}|\+\{[A-Za-z_]\w*\})")
_HIDDEN = "\0"  # stands for what was in parentheses; rules hold no such character
# One action: its verb, then what it is given; a list of actions in place of a text is what a context does in the end.
Action = tuple["str | list[Action]", ...]
# A condition in the order in which SEC evaluates it; see monitorlib.correlate.
Condition = list["tuple[str, str | Condition]"]


class RefusedError(ValueError):
    """A value that is not let through, and why."""


@dataclass(frozen=True)
class Finding:
    """Why a file is refused, and where."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Rule:
    """The keys of one rule with their values, and the lines where they stand."""

    line: int
    values: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The type as it is written."""
        return self.values.get("type", "")


@dataclass
class Book:
    """What one file says: its rules in order without those of type Options, its labels, and its Options."""

    file: str
    rules: list[Rule] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the rule that comes next, by its number
    options: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check(file: str, text: str, pipes: set[str]) -> list[Finding]:
    """What is wrong with the rules in *text*, which may write to the FIFOs named *pipes*; empty when acceptable."""
    return parse(file, text, pipes).findings


def parse(file: str, text: str, pipes: set[str]) -> Book:
    """Read the rules in *text*; what is wrong with them is in the findings."""
    book = Book(file)
    for lines in _rules(text):
        rule = Rule(lines[0][0])
        found = [Finding(file, line, reason) for line, reason in _fields(rule, lines, pipes, book)]
        if rule.values or found:
            found = found or [Finding(file, line, reason) for line, reason in _fits(rule)]
            if rule.type == "Options":
                book.options = rule.values
            else:
                book.rules.append(rule)
        book.findings += found
    book.findings += [Finding(file, line, reason) for line, reason in _jumps(book)]
    if not book.rules and not book.findings:
        book.findings.append(Finding(file, 1, "holds no rule"))
    return book


def read(path: Path) -> str:
    """The text of a rule file. Raises OSError, and ValueError when it is no text of a bearable length."""
    with path.open("rb") as stream:
        return text(stream.read(LIMIT + 1))


def text(octets: bytes) -> str:
    """The text of what a rule file holds. Raises ValueError when it is none of a bearable length."""
    if len(octets) > LIMIT:
        raise ValueError(f"longer than {LIMIT} octets")
    text = octets.decode("ascii")
    # White space that SEC's Perl and we might see differently could hide the end of a line.
    if odd := re.search(r"[^\n\t -~]", text):
        raise ValueError(f"holds the control character {odd[0]!r}")
    return text


def remembered(text: str) -> dict[str, int]:
    """Event types that the rules want once more after a restart of sec, and for how many seconds back."""
    found = (_REMEMBER.fullmatch(line.strip()) for line in text.split("\n"))
    return {match[1]: int(match[2]) for match in found if match}


def memory(book: Book, pipes: set[str]) -> float:
    """For how many seconds acceptable rules remember an event, by their windows and the lives of their contexts."""
    longest = [0.0]
    for rule in book.rules:
        longest += [float(rule.values[key]) for key in ("window", "window2") if key in rule.values]
        if rule.type == "Pair" and not int(rule.values.get("window", "0")):
            longest.append(math.inf)
        for key in ("action", "action2"):
            longest += _lives(actions(rule.values[key], pipes)) if key in rule.values else []
    return max(longest)


def _lives(made: list[Action]) -> Iterator[float]:
    """How long the contexts live that actions make; 0 stands for ever."""
    for action in made:
        if action[0] in ("create", "set") and isinstance(action[2], str):
            if action[2] != "-":
                yield float(action[2]) or math.inf
            if isinstance(action[3], list):
                yield from _lives(action[3])


def _rules(text: str) -> Iterator[list[tuple[int, str]]]:
    """The rules just as SEC's read_configfile separates them: by empty lines and comments; a backslash continues."""
    rule: list[tuple[int, str]] = []
    begun = 0
    joined = ""
    for number, line in enumerate([*text.split("\n"), ""], 1):
        begun = begun if joined else number
        joined = (joined + line).strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        complete, joined = joined, ""
        if complete and not complete.startswith("#"):
            rule.append((begun, complete))
        elif rule:
            yield rule
            rule = []
    if rule:
        yield rule


def _fields(rule: Rule, lines: list[tuple[int, str]], pipes: set[str], book: Book) -> Iterator[tuple[int, str]]:
    """Fill *rule* and the labels of *book* from *lines*; what is wrong with single values."""
    for line, text in lines:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or key not in _KEYS:
            yield line, f"{key[:40]!r} is not a key that is allowed"
        elif key in rule.values:
            yield line, f"{key} is given twice in one rule"
        elif not value:
            yield line, f"{key} is empty"
        elif key == "label":
            book.labels[value] = len(book.rules)
        elif key != "rem":
            rule.values[key], rule.lines[key] = value, line
            try:
                _value(key.rstrip("2"), value, pipes)
            except ValueError as error:
                yield line, f"{key}: {error}"


def _fits(rule: Rule) -> Iterator[tuple[int, str]]:
    """What is wrong with a rule whose single values are right."""
    if "type" not in rule.values:
        yield rule.line, "the rule has no type"
        return
    needs, may = TYPES[rule.type]
    for key in sorted(needs - set(rule.values)):
        yield rule.line, f"a rule of type {rule.type} needs {key}"
    for key in sorted(set(rule.values) - needs - may - {"type"}):
        yield rule.lines[key], f"a rule of type {rule.type} has no {key}"
    for number in ("", "2"):
        if f"pattern{number}" not in rule.values or f"ptype{number}" not in rule.values:
            continue
        try:
            _pattern(rule.values[f"ptype{number}"], rule.values[f"pattern{number}"], number, rule.values["ptype"])
        except ValueError as error:
            yield rule.lines[f"pattern{number}"], f"pattern{number}: {error}"
    for number in ("", "2"):
        ptype = rule.values.get(f"ptype{number}", rule.values.get("ptype", ""))
        if "RegExp" not in ptype and _asks(rule.values.get(f"action{number}", "")):
            yield rule.lines[f"action{number}"], f"action{number}: cmdexec needs a RegExp, whose $0 is the event"
    for key in {"window", "window2", "thresh"} & set(rule.values):
        if not int(rule.values[key]) and rule.type != "Pair":
            yield rule.lines[key], f"{key} must not be 0"


def _jumps(book: Book) -> Iterator[tuple[int, str]]:
    """Labels that are nowhere behind the rule that goes to them: sec would go on as with DontCont, and tell its log."""
    for number, rule in enumerate(book.rules):
        for key in ("continue", "continue2"):
            match = _CONTINUE.fullmatch(rule.values.get(key, ""))
            if match and match[1] and book.labels.get(match[1], -1) <= number:
                yield rule.lines[key], f"{key}: there is no label {match[1]} behind this rule"


def _value(key: str, value: str, pipes: set[str]) -> None:
    """Raise ValueError, with the reason, when *value* cannot stand for *key*."""
    if key == "type" and value not in TYPES:
        raise RefusedError(f"{value[:40]!r} is not a type that is allowed")
    if key == "ptype" and not _PTYPE.fullmatch(value):
        raise RefusedError(f"{value[:40]!r}: only RegExp, SubStr and TValue are allowed")
    if key == "pattern" and ("(?{" in value or "(??{" in value or "(*" in value):
        raise RefusedError("Perl code in a pattern")
    if key == "continue" and not _CONTINUE.fullmatch(value):
        raise RefusedError(f"{value[:40]!r} is none of DontCont, EndMatch, GoTo LABEL, TakeNext")
    if key == "varmap" and not _VARMAP.fullmatch(value):
        raise RefusedError("only NAME=NUMBER; ... is allowed")
    if key == "context":
        condition(value)
    if key in ("window", "thresh") and not _NUMBER.fullmatch(value):
        raise RefusedError(f"{value[:40]!r} is not a number")
    if key == "action":
        actions(value, pipes)
    if key in ("cfset", "joincfset") and not _SET.fullmatch(value):
        raise RefusedError("only names of sets of files are allowed")
    if key in ("constset", "procallin") and value.lower() not in ("yes", "no"):
        raise RefusedError(f"{value[:40]!r} is neither yes nor no")


def _pattern(ptype: str, pattern: str, number: str, first: str) -> None:
    if ptype == "TValue":
        if pattern.upper() not in ("TRUE", "FALSE"):
            raise RefusedError(f"{pattern[:40]!r} is neither TRUE nor FALSE")
    elif "RegExp" in ptype:
        perlre.Expression(template(pattern)[0] if number and "RegExp" in first else pattern)


def template(pattern: str) -> tuple[str, list[str]]:
    """The second *pattern* of a pair with each `$1` as a character from perlre.VARIABLE on; and what they stood for."""
    found: list[str] = []

    def hide(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found.append(match[0])
        return chr(perlre.VARIABLE + len(found) - 1)

    return _MATCHED_IN_PATTERN.sub(hide, pattern), found


# --- Actions ---


def actions(text: str, pipes: set[str]) -> list[Action]:
    """A list of actions, read as SEC does: divided by `;` outside of parentheses. Raises RefusedError."""
    hidden: list[str] = []
    bare = _hide(text.strip(), hidden)
    made = []
    for part in re.split(r"\s*;\s*", bare):
        whole = part
        while _HIDDEN in whole:
            whole = whole.replace(_HIDDEN, f"({hidden.pop(0)})", 1)
        made.append(_action(whole, pipes))
    return made


def _hide(text: str, hidden: list[str]) -> str:
    """*text* with what stands in parentheses, which a backslash masks, moved to *hidden*."""
    made, depth, begun, before = "", 0, 0, ""
    for at, character in enumerate(text):
        masked = before == "\\"
        before = character
        if character == "(" and not masked:
            begun = begun if depth else at
            depth += 1
        elif character == ")" and not masked:
            depth -= 1
            if depth < 0:
                raise RefusedError("a ')' without its '('")
            if not depth:
                hidden.append(text[begun + 1 : at])
                made += _HIDDEN
                before = ""
        elif not depth:
            made += character
    if depth:
        raise RefusedError("a '(' without its ')'")
    return made


def _plain(text: str | None) -> str:
    """A text as an action uses it: without the parentheses around it, or the description of the rule for none."""
    text = _bare(text or "")
    return re.sub(r"\\([()])", r"\1", text) or "%s"


def _bare(text: str) -> str:
    match = re.fullmatch(r"\(\s*(.*?)\s*\)\s*", text)
    return match[1] if match else text


def _action(text: str, pipes: set[str]) -> Action:
    verb, _, rest = text.partition(" ")
    if verb == "cmdexec":
        return ("write", ACTIONS, _request(rest))
    if text == "none":
        return ("none",)
    if verb == "logonly":
        return ("logonly", _plain(rest.strip()))
    if match := _WRITE.fullmatch(text):
        if match[1] not in pipes:
            raise RefusedError(f"%{match[1]} is not a FIFO of DRE_MONITOR_PIPES")
        return ("write", match[1], _plain(match[2]))
    if verb == "write":
        raise RefusedError("write goes only to %NAME, the name of a FIFO in DRE_MONITOR_PIPES")
    if match := _ASSIGN.fullmatch(text):
        return ("assign", _variable("assign", match[1], pipes), _plain(match[2]))
    if match := _RESET.fullmatch(text):
        return ("reset", match[1] or "", _plain(match[2]))
    match = _CONTEXT_ACTION.fullmatch(text)
    if not match:
        raise RefusedError(f"{verb[:40]!r} is not an action that is allowed in this form")
    verb, name, rest = match[1], match[2], match[3] or ""
    if verb in ("create", "set"):
        return _lifetime(verb, name, rest, pipes)
    if verb == "add":
        return (verb, name, _plain(rest))
    if verb == "copy" or (verb == "empty" and rest):
        return (verb, name, _variable(verb, rest, pipes))
    if rest:
        raise RefusedError(f"{verb} takes a name only")
    return (verb, name)


def _lifetime(verb: str, name: str, rest: str, pipes: set[str]) -> Action:
    match = _LIFETIME.fullmatch(rest or ("0" if verb == "create" else ""))
    if not match or (match[1] == "-" and verb == "create"):
        raise RefusedError(f"{verb} takes a name, a number of seconds, and actions in parentheses")
    return (verb, name, match[1], actions(_bare(match[2]), pipes) if match[2] else [])


def _variable(verb: str, text: str, pipes: set[str]) -> str:
    if not _VARIABLE.fullmatch(text):
        raise RefusedError(f"{verb} takes a name and a %variable")
    if text[1:] in {*pipes, ACTIONS}:
        raise RefusedError(f"the names of FIFOs are not for {verb}")
    return text[1:]


# --- Programs ---


def _request(text: str) -> str:
    """What is written for a program and its arguments, in *text*; monitorlib.actions says what it means."""
    match = _PROGRAM.fullmatch(text.strip())
    words = match[2].split() if match else []
    if not match or len(words) > _ARGUMENTS:
        raise RefusedError(f"cmdexec takes the name of a program in actions.d and at most {_ARGUMENTS} words")
    signs = ["?" if _VALUE.match(word) else "+" if _VALUE.search(word) else "=" for word in words]
    fields = [str(len(words) + 1), f"={match[1]}", *map("".join, zip(signs, words, strict=True)), "$0"]
    return "%{.tab}".join(fields)


def _asks(text: str) -> bool:
    """Whether a list of actions asks for a program."""
    return bool(_CALL.search(text))


def for_sec(text: str, pipes: set[str]) -> str:
    """The acceptable rules in *text* as sec is given them: `cmdexec` as what it is read as, all else as it is.

    Raises ValueError where that is not possible: a text that holds what looks like this action.
    """
    made: list[str] = []
    lines = iter(text.split("\n"))
    for line in lines:
        parts = [line]
        whole = line.strip()
        while whole.endswith("\\") and (following := next(lines, None)) is not None:
            parts.append(following)
            whole = (whole[:-1] + following).strip()
        key, _, value = (part.strip() for part in whole.partition("="))
        if key in ("action", "action2") and _asks(value):
            changed = _CALL.sub(lambda match: f"{match[1]}{match[2]}write %{ACTIONS} {_request(match[3])}", value)
            if actions(changed, {*pipes, ACTIONS}) != actions(value, pipes):
                raise RefusedError(f"{key}: a text that holds 'cmdexec' cannot be told to sec")
            # As many lines as before, so that sec counts them as we do.
            parts = [f"{key}={changed}" + "\\" * (len(parts) > 1), *["\\"] * (len(parts) - 2), *[""] * (len(parts) > 1)]
        made += parts
    return "\n".join(made)


# --- Conditions ---


def condition(text: str) -> tuple[bool, Condition]:
    """The value of `context`: whether it stands in [], and what it says. Raises RefusedError."""
    if not _CONTEXT.fullmatch(text) or re.search(r"[\w}]\s+[\w$]", text):  # `varset X` is two words
        raise RefusedError("only names of contexts, !, &&, || and parentheses are allowed")
    match = re.fullmatch(r"\s*\[(.*)\]\s*", text)
    if not match and ("[" in text or "]" in text):
        raise RefusedError("'[' and ']' stand around the whole or not at all")
    return bool(match), _condition(match[1] if match else text)


def _condition(text: str) -> Condition:
    hidden: list[str] = []
    made = [
        ("inner", _condition(hidden.pop(0))) if item == ("name", _HIDDEN) else item
        for item in _terms(_hide(text, hidden))
    ]
    if hidden:
        raise RefusedError("parentheses within a name")
    return made


def _terms(text: str) -> Condition:
    for sign in ("||", "&&"):
        left, found, right = text.rpartition(sign)
        if found:
            return [*_terms(left), *_terms(right), ("and" if sign == "&&" else "or", "")]
    text = text.strip()
    if text.startswith("!"):
        return [*_terms(text[1:]), ("not", "")]
    if not text or (_HIDDEN in text and text != _HIDDEN):
        raise RefusedError("a name of a context is missing")
    return [("name", text)]
