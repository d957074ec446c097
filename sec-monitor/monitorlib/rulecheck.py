# SPDX-License-Identifier: Apache-2.0
"""Read SEC rules before SEC does, and let through only what is known to run nothing. Nothing in a file is executed.

SEC's own `--testonly` is no such check: it runs Perl from the file. Here a rule may match by plain patterns, keep
contexts and variables, and write event lines to the FIFOs of DRE_MONITOR_PIPES, which it names as `%script` and the
like. Perl, shells, programs, other files and sockets are refused, as is whatever is not in the tables below.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT = 1024 * 1024
_TYPES = {"Single", "SingleWithSuppress", "SingleWithThreshold", "Pair", "PairWithWindow", "Suppress"}
_KEYS = {"type", "continue", "ptype", "pattern", "desc", "context", "action", "window", "thresh", "rem", "label"}
_KEYS |= {f"{key}2" for key in ("continue", "ptype", "pattern", "desc", "context", "action")}
_PTYPE = re.compile(r"N?(RegExp|SubStr)(\d{0,2})")
_CONTINUE = {"TakeNext", "DontCont", "EndMatch"}
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_]|\$[0-9+]|\$\{[0-9]+\})*"
_CONTEXT = re.compile(rf"\[?\s*(?:{_NAME}|&&|\|\||!|\(|\)|\s)+\]?")
_CONTEXT_ACTION = re.compile(rf"(create|set|delete|obsolete|add|copy) ({_NAME})(?: (.*))?", re.DOTALL)
_WRITE = re.compile(r"write %([A-Za-z][A-Za-z0-9_]*) (.+)", re.DOTALL)
_VARIABLE = re.compile(r"%[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[0-9]{1,7}")
_REMEMBER = re.compile(r"#\s*remember:\s*([a-z][a-z0-9.-]*)\s+([0-9]{1,5})")


@dataclass(frozen=True)
class Finding:
    """Why a file is refused, and where."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def check(file: str, text: str, pipes: set[str]) -> list[Finding]:
    """What is wrong with the rules in *text*, which may write to the FIFOs named *pipes*; empty when acceptable."""
    found = []
    rules = 0
    for rule in _rules(text):
        rules += 1
        found += [Finding(file, line, reason) for line, reason in _rule(rule, pipes)]
    if not rules:
        found.append(Finding(file, 1, "holds no rule"))
    return found


def read(path: Path) -> str:
    """The text of a rule file. Raises OSError, and ValueError when it is no text of a bearable length."""
    with path.open("rb") as stream:
        octets = stream.read(LIMIT + 1)
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


def _rule(rule: list[tuple[int, str]], pipes: set[str]) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for line, text in rule:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or key not in _KEYS:
            yield line, f"{key[:40]!r} is not a key that is allowed"
        elif key in seen:
            yield line, f"{key} is given twice in one rule"
        elif not value:
            yield line, f"{key} is empty"
        elif reason := _value(key.rstrip("2"), value, pipes):
            yield line, f"{key}: {reason}"
        seen.add(key)
    missing = {"type", "ptype", "pattern"} - seen
    if missing:
        yield rule[0][0], f"the rule has no {min(missing)}"


def _value(key: str, value: str, pipes: set[str]) -> str | None:
    """Why *value* cannot stand for *key*, or None."""
    if key == "type":
        return None if value in _TYPES else f"{value[:40]!r} is not a type that is allowed"
    if key == "ptype":
        return None if _PTYPE.fullmatch(value) else f"{value[:40]!r}: only RegExp and SubStr are allowed"
    if key == "pattern":
        return "Perl code in a pattern" if "(?{" in value or "(??{" in value or "(*" in value else None
    if key == "continue":
        return None if value in _CONTINUE else f"{value[:40]!r} is none of {', '.join(sorted(_CONTINUE))}"
    if key == "context":
        plain = _CONTEXT.fullmatch(value) and not re.search(r"[\w}]\s+[\w$]", value)  # `varset X` is two words
        return None if plain else "only names of contexts, !, &&, || and parentheses are allowed"
    if key in ("window", "thresh"):
        return None if _NUMBER.fullmatch(value) else f"{value[:40]!r} is not a number"
    if key == "action":
        return next((reason for item in value.split(";") if (reason := _action(item.strip(), pipes))), None)
    return None


def _action(text: str, pipes: set[str]) -> str | None:
    """Why one action is refused, or None."""
    verb = text.partition(" ")[0]
    if verb in ("none", "logonly"):
        return None
    if match := _WRITE.fullmatch(text):
        return None if match[1] in pipes else f"%{match[1]} is not a FIFO of DRE_MONITOR_PIPES"
    if verb == "write":
        return "write goes only to %NAME, the name of a FIFO in DRE_MONITOR_PIPES"
    match = _CONTEXT_ACTION.fullmatch(text)
    if not match:
        return f"{verb[:40]!r} is not an action that is allowed in this form"
    rest = match[3]
    if match[1] in ("create", "set"):
        # A third word would be a list of actions at the context's end.
        return None if rest is None or _NUMBER.fullmatch(rest) else f"{verb} takes a name and a number of seconds"
    if match[1] == "copy":
        if not rest or not _VARIABLE.fullmatch(rest):
            return "copy takes a name and a %variable"
        return "the names of FIFOs are not for copy" if rest[1:] in pipes else None
    return None
