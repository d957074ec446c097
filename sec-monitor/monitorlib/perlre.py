# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of Perl: read, judged, and said in Python's form; monitorlib.ruleindex asks what they demand.

What would match otherwise than in Perl is refused, as is what runs code, and what takes time exponential in the
length of a line: a part that repeats, and that can read the same text in two ways, such as (a+)+ or (a|ab|b)*.
Texts are str of one character for each octet; characters from VARIABLE on stand for texts known only later.
"""

import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

VARIABLE = 0x100
LOOP = 5  # a part that may come so often counts as one that repeats without end
POSITIONS = 300  # of characters within a part that repeats: more are not judged but refused
_ALL = (1 << 256) - 1


def _mask(characters: str) -> int:
    return sum(1 << ord(character) for character in set(characters))


_DIGIT = _mask("0123456789")
_LETTER = _mask("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SPACE = _mask(" \t\n\r\f\v")
_NAMED = {"d": _DIGIT, "w": _DIGIT | _LETTER | _mask("_"), "s": _SPACE, "h": _mask(" \t"), "v": _mask("\n\v\f\r")}
_POSIX = {
    "alpha": _LETTER,
    "digit": _DIGIT,
    "alnum": _DIGIT | _LETTER,
    "upper": _mask("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "lower": _mask("abcdefghijklmnopqrstuvwxyz"),
    "space": _SPACE,
    "blank": _mask(" \t"),
    "word": _NAMED["w"],
    "xdigit": _mask("0123456789abcdefABCDEF"),
    "punct": _mask("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    "cntrl": (1 << 32) - 1 | 1 << 127,
    "print": _mask("".join(map(chr, range(32, 127)))),
    "graph": _mask("".join(map(chr, range(33, 127)))),
}
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "e": "\x1b", "a": "\a"}
_ZERO = {"b": r"\b", "B": r"\B", "A": r"\A", "z": r"\Z", "Z": r"(?=\n?\Z)"}
EDGE = {"^", "$", r"\A", r"\Z", r"(?=\n?\Z)"}  # no character stands beyond
_QUANTIFIER = re.compile(r"([*+?]|\{(\d{1,5})(?:(,)(\d{1,5})?)?\})([?+])?")


class RefusedError(ValueError):
    """A regular expression that is not let through, and why."""


@dataclass
class Node:
    """A part of a regular expression.

    kind: set (one character of *mask*; *text* in Python's form), cat and alt (of *parts*), rep (*parts*[0], *least* to
    *most* times, None without end), group (*parts*[0]; *text* is its opening), zero (*text* matches no character;
    with *parts* it looks around), back (refers to a group: *text*, or the number *least* - 1), variable (*text*).
    """

    kind: str
    text: str = ""
    mask: int = 0
    parts: list["Node"] = field(default_factory=list)
    least: int = 1
    most: int | None = 1

    def python(self, shift: int, start: str) -> str:
        """The form of Python's re: *shift* groups stand before its own, and *start* is the beginning of the line."""
        inner = [part.python(shift, start) for part in self.parts]
        if self.kind == "alt":
            return "|".join(inner)
        if self.kind == "group" or (self.kind == "zero" and inner):
            return f"{self.text}{inner[0]})"
        if self.kind == "zero" and self.text in ("^", r"\A"):
            return start or self.text
        if self.kind == "back" and self.least > 1:
            return f"(?:\\{self.least - 1 + shift})"
        if self.kind == "rep":
            return inner[0] + self.text
        return self.text + "".join(inner)

    def any(self, test: Callable[["Node"], bool]) -> bool:
        """Whether *test* is true of this part or of one within it."""
        return test(self) or any(part.any(test) for part in self.parts)


class Expression:
    """One regular expression, read. Raises RefusedError."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._caseless = False
        self.groups = 0
        self.names: dict[str, int] = {}
        if text.startswith("(?i)"):
            self._caseless, self._at = True, 4
        self.root = self._alternatives()
        if self._at < len(text):
            raise RefusedError("a ')' without its '('")
        _judge(self.root)
        try:
            re.compile(re.sub(r"[^\0-\xff]", "x", self.python()).encode("latin-1"))
        except (re.error, OverflowError) as error:
            raise RefusedError(f"not a regular expression: {error}") from None

    def python(self) -> str:
        """The form of Python's re, for octets; variables stand in it as they are."""
        return ("(?i)" if self._caseless else "") + self.root.python(0, "")

    def shared(self, count: int) -> str | None:
        """One form for all values of its *count* variables, which stand before the line, each with a NUL behind it.

        None when there is none: for what looks behind itself, and where a variable repeats.
        """
        if self.root.any(lambda node: node.text.startswith("(?<") and node.kind == "zero") or self.root.any(
            lambda node: node.kind == "rep" and node.parts[0].kind == "variable"
        ):
            return None
        body = self.root.python(count, r"(?<=\0)")
        for number in range(count):
            body = body.replace(chr(VARIABLE + number), f"(?:\\{number + 1})")
        before = "([^\\0]*)\\0" * count
        return ("(?i)" if self._caseless else "") + f"{before}(?s:.*?)(?:{body})"

    # --- Reading ---

    def _peek(self, count: int = 1) -> str:
        return self._text[self._at : self._at + count]

    def _alternatives(self) -> Node:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else Node("alt", parts=branches)

    def _sequence(self) -> Node:
        made = Node("cat")
        while self._at < len(self._text) and self._peek() not in "|)":
            made.parts.append(self._repeated(self._atom()))
        return made

    def _repeated(self, atom: Node) -> Node:
        match = _QUANTIFIER.match(self._text, self._at)
        if not match:
            if self._peek() == "{":
                raise RefusedError("a '{' that is no quantifier; write \\{")
            return atom
        if atom.kind == "zero":
            raise RefusedError(f"{match[0]!r} repeats what matches no character")
        self._at = match.end()
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(match[1], (0, 0))
        if match[2]:
            least = int(match[2])
            most = int(match[4]) if match[4] else None if match[3] else least
        return Node("rep", match[0], parts=[atom], least=least, most=most)

    def _atom(self) -> Node:
        character = self._peek()
        self._at += 1
        if ord(character) >= VARIABLE:
            return Node("variable", character)
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == ".":
            return Node("set", ".", _ALL & ~_mask("\n"))
        if character in "^$":
            return Node("zero", character)
        if character in "*+?":
            raise RefusedError(f"{character!r} repeats nothing")
        if character == "{":
            raise RefusedError("a '{' that is no quantifier; write \\{")
        if character == "\\":
            return self._escape()
        return self._literal(character)

    def _literal(self, character: str) -> Node:
        return Node("set", re.escape(character), self._cased(_mask(character)))

    def _cased(self, mask: int) -> int:
        if not self._caseless:
            return mask
        both = mask
        for low in range(ord("a"), ord("z") + 1):
            if mask >> low & 1 or mask >> (low - 32) & 1:
                both |= 1 << low | 1 << (low - 32)
        return both

    def _escape(self) -> Node:
        character = self._peek()
        self._at += 1
        if not character:
            raise RefusedError("ends with a backslash")
        if character in _ZERO:
            if self._peek() == "{":
                raise RefusedError(f"\\{character}{{ is not supported")
            return Node("zero", _ZERO[character])
        if character in "123456789":
            digits = re.compile(r"\d*").match(self._text, self._at)
            self._at += len(digits[0]) if digits else 0
            number = int(character + (digits[0] if digits else ""))
            if number > self.groups:
                raise RefusedError(f"\\{number} refers to a group that is not there before it")
            return Node("back", least=number + 1)
        if character == "k" and (match := re.compile(r"[<{']([A-Za-z_]\w*)[>}']").match(self._text, self._at)):
            self._at = match.end()
            if match[1] not in self.names:
                raise RefusedError(f"\\k refers to a group {match[1]} that is not there before it")
            return Node("back", f"(?P={match[1]})")
        mask, text = self._character(character)
        return Node("set", text, self._cased(mask))

    def _character(self, character: str) -> tuple[int, str]:
        """What the escape of *character* matches, the same within a set and outside."""
        if character.lower() in _NAMED:
            mask = _NAMED[character.lower()]
            mask = _ALL & ~mask if character.isupper() else mask
            return mask, f"\\{character}" if character.lower() in "dws" else _set(mask)
        if character in _ESCAPED:
            return _mask(_ESCAPED[character]), re.escape(_ESCAPED[character])
        for form in (r"x([0-9A-Fa-f]{2})", r"x\{([0-9A-Fa-f]{1,2})\}", r"x([0-9A-Fa-f]?)(?![0-9A-Fa-f{])"):
            if match := re.compile(form).match(self._text, self._at - 1):
                self._at = match.end()
                code = int(match[1] or "0", 16)
                return 1 << code, f"\\x{code:02x}"
        if character == "0":
            match = re.compile(r"[0-7]{0,2}").match(self._text, self._at)
            self._at += len(match[0]) if match else 0
            code = int("0" + (match[0] if match else ""), 8)
            return 1 << code, f"\\x{code:02x}"
        if character.isalnum():
            raise RefusedError(f"\\{character} is not supported")
        return _mask(character), re.escape(character)

    def _class(self) -> Node:
        negated = self._peek() == "^"
        self._at += negated
        mask, first, low = 0, True, -1  # low: what a '-' would make the beginning of a range
        while first or self._peek() != "]":
            character = self._peek()
            if not character:
                raise RefusedError("a '[' without its ']'")
            if self._peek(2) in ("[.", "[="):
                raise RefusedError("collating elements are not supported")
            if ord(character) >= VARIABLE:
                raise RefusedError("a variable within [] is not supported")
            if match := re.compile(r"\[:(\^?)(\w+):\]").match(self._text, self._at):
                if match[2] not in _POSIX:
                    raise RefusedError(f"[:{match[2]}:] is not supported")
                self._at, added = match.end(), _POSIX[match[2]]
                added = _ALL & ~added if match[1] else added
                low = -1
            elif character == "-" and low >= 0 and self._peek(2) != "-]":
                self._at += 1
                high = self._member()[0]
                if high.bit_count() != 1 or high.bit_length() - 1 < low:
                    raise RefusedError("a range within [] that ends before it begins, or is none")
                added, low = sum(1 << code for code in range(low, high.bit_length())), -1
            else:
                added = self._member()[0]
                low = added.bit_length() - 1 if added.bit_count() == 1 else -1
            mask |= added
            first = False
        self._at += 1
        mask = self._cased(mask)
        mask = _ALL & ~mask if negated else mask
        return Node("set", _set(mask), mask)

    def _member(self) -> tuple[int, str]:
        character = self._peek()
        self._at += 1
        if character != "\\":
            return _mask(character), character
        character = self._peek()
        self._at += 1
        if not character:
            raise RefusedError("ends with a backslash")
        return (1 << 8, "\\x08") if character == "b" else self._character(character)

    def _group(self) -> Node:
        opening, kind, caseless = "(", "group", self._caseless
        rest = self._text[self._at :]
        if match := re.match(r"\?#[^)]*\)", rest):
            self._at += match.end()
            return Node("cat")
        if match := re.match(r"\?(:|i:|>|=|!|<=|<!)", rest):
            self._at += match.end()
            opening = f"(?{match[1]}"
            kind = "zero" if match[1] in ("=", "!", "<=", "<!") else "group"
            self._caseless = self._caseless or match[1] == "i:"
        elif match := re.match(r"\?P?<([A-Za-z_]\w*)>|\?'([A-Za-z_]\w*)'", rest):
            self._at += match.end()
            self.groups += 1
            name = match[1] or match[2]
            if name in self.names:
                raise RefusedError(f"two groups are named {name}")
            self.names[name] = self.groups
            opening = f"(?P<{name}>"
        elif rest.startswith(("?{", "??{", "*", "?p{")):
            raise RefusedError("Perl code in a pattern")
        elif rest.startswith("?"):
            raise RefusedError(f"({rest[:3]} is not supported")
        else:
            self.groups += 1
        inner = self._alternatives()
        if self._peek() != ")":
            raise RefusedError("a '(' without its ')'")
        self._at += 1
        self._caseless = caseless
        return Node(kind, opening, parts=[inner])


def _set(mask: int) -> str:
    """A set in Python's form, as ranges of codes."""
    if mask == _ALL:
        return r"[\x00-\xff]"
    if not mask:
        return r"[^\x00-\xff]"
    ranges, code = [], 0
    while mask >> code:
        begin = code
        while mask >> code & 1:
            code += 1
        if code > begin:
            ranges.append(f"\\x{begin:02x}" + (f"-\\x{code - 1:02x}" if code - 1 > begin else ""))
        code += 1
    return f"[{''.join(ranges)}]"


# --- Does it explode? ---


def _judge(node: Node) -> None:
    """Refuse what repeats and is ambiguous: a matcher that tries all ways then needs exponential time."""
    if node.kind == "rep" and _is_loop(node) and node.parts[0].kind != "set":
        _Loop(node.parts[0])
        return
    for part in node.parts:
        _judge(part)


def _is_loop(node: Node) -> bool:
    return node.most is None or node.most >= LOOP


class _Loop:
    """The automaton of a part that repeats: one state for each place of a character in it (Glushkov)."""

    def __init__(self, body: Node) -> None:
        self.masks: list[int] = []
        self.edges: Counter[tuple[int, int]] = Counter()
        _, first, last = self._read(body)
        self._join(last, first)
        if any(count > 1 for count in self.edges.values()) or self._meets():
            raise RefusedError("a part that repeats can read the same text in two ways, which takes without end")

    def _join(self, last: list[int], first: list[int]) -> None:
        self.edges.update((begin, end) for begin in last for end in first)

    def _read(self, node: Node) -> tuple[bool, list[int], list[int]]:
        """Whether the part can be empty, and where it can begin and end."""
        if node.kind in ("set", "variable", "back"):
            if node.kind == "back":
                raise RefusedError("a part that repeats refers to a group")
            self.masks.append(node.mask or _ALL)
            if len(self.masks) > POSITIONS:
                raise RefusedError("a part that repeats is too long")
            return False, [len(self.masks) - 1], [len(self.masks) - 1]
        if node.kind == "rep":
            return self._repeat(node)
        if node.kind == "alt":
            made = [self._read(part) for part in node.parts]
            return any(empty for empty, _, _ in made), [p for m in made for p in m[1]], [p for m in made for p in m[2]]
        if node.kind == "zero":
            return True, [], []
        return self._chain([self._read(part) for part in node.parts])

    def _chain(self, made: list[tuple[bool, list[int], list[int]]]) -> tuple[bool, list[int], list[int]]:
        empty, first, last = True, list[int](), list[int]()
        for part_empty, part_first, part_last in made:
            self._join(last, part_first)
            first = first + part_first if empty else first
            last = last + part_last if part_empty else part_last
            empty = empty and part_empty
        return empty, first, last

    def _repeat(self, node: Node) -> tuple[bool, list[int], list[int]]:
        if _is_loop(node) and not (node.least == node.most and node.parts[0].kind == "set"):
            empty, first, last = self._read(node.parts[0])
            self._join(last, first)
            return empty or node.least == 0, first, last
        first, last, before = list[int](), list[int](), list[int]()
        empty = True
        for number in range(1, (node.most or 0) + 1):
            empty_part, part_first, part_last = self._read(node.parts[0])
            self._join(before, part_first)
            first = first + part_first if empty else first
            before = before + part_last if empty_part else part_last
            last = last + part_last if number >= node.least else last
            empty = empty and empty_part
        return empty or node.least == 0, first, last

    def _meets(self) -> bool:
        """Whether two different ways through the automaton read the same text and come together again."""
        follow: list[list[int]] = [[] for _ in self.masks]
        for begin, end in self.edges:
            follow[begin].append(end)
        todo = deque((state, state) for state in range(len(self.masks)))
        seen = set(todo)
        apart: set[tuple[int, int]] = set()
        while todo:
            one, two = todo.popleft()
            for begin in follow[one]:
                for end in follow[two]:
                    if not self.masks[begin] & self.masks[end]:
                        continue
                    if begin == end and one != two:
                        return True
                    if begin < end or (begin > end and one != two):
                        pair = (min(begin, end), max(begin, end))
                        if pair not in seen:
                            seen.add(pair)
                            apart.add(pair)
                            todo.append(pair)
        return False
