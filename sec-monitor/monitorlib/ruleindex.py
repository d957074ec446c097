# SPDX-License-Identifier: Apache-2.0
"""Which rules a line may concern, found at a cost that does not depend on the number of the others.

A line is cut into words, runs of the octets WORD. From the words, and beginnings of words, that a pattern demands the
one is taken that the fewest patterns demand; a line without it cannot match. What demands no such thing is found by a
text that it demands, which costs a search for each; what demands nothing, or that something is absent, is always tried.
"""

import re
from collections import Counter
from dataclasses import dataclass

from monitorlib.perlre import EDGE, Node

WORD = "A-Za-z0-9_-"
BRANCHES = 64  # alternatives that are followed when words are looked for
CUT = bytes(code if re.match(f"[{WORD}]", chr(code)) else ord(" ") for code in range(256))
GAP = "\1"  # in a way: an unknown text, perhaps empty
SPLIT = "\2"  # in a way: the edge of the line, or something that no word goes across
_MASK = sum(1 << code for code in range(256) if CUT[code] != ord(" "))
_WHOLE = re.compile(f"(?<![{GAP}{WORD}])[{WORD}]+(?![{GAP}{WORD}])".encode())
_VARIABLE = re.compile(r"[^\0-\xff]")
_BEGIN = re.compile(f"(?<![{GAP}{WORD}])[{WORD}]{{2,}}(?={GAP})".encode())
_TEXT = re.compile(f"[^{GAP}{SPLIT}]+".encode())
_EVERYWHERE = frozenset({b"time", b"source", b"host", b"type", b"sev", b"data", b"id", b"seen"})  # in every event
Place = tuple[int, int]
Entry = tuple[bytes, Place]
Key = tuple[bool, bytes]  # whether it is only the beginning of a word, and that


@dataclass(frozen=True)
class Demand:
    """What a line holds that matches in one way: these words, words that begin so, and this text; each may be empty."""

    words: frozenset[bytes]
    begins: frozenset[bytes]
    text: bytes


def words(line: bytes) -> list[bytes]:
    """The words of a line."""
    return line.translate(CUT).split()


def ways(node: Node) -> list[str]:
    """The ways in which an expression can match: what is matched in turn. Variables stand in it as they are."""
    if node.kind == "set":
        if node.mask.bit_count() == 1:
            return [_plain(chr(node.mask.bit_length() - 1))]
        return [GAP if node.mask & _MASK else SPLIT]
    if node.kind == "variable":
        return [node.text]
    if node.kind == "zero":
        return [SPLIT if node.text in EDGE and not node.parts else GAP]
    if node.kind == "alt":
        made = [way for part in node.parts for way in ways(part)]
        return made if len(made) <= BRANCHES else [GAP]
    if node.kind == "rep":
        if not node.least:
            return [GAP]
        return [way if way == SPLIT else GAP + way + GAP for way in ways(node.parts[0])]
    if node.kind not in ("cat", "group"):
        return [GAP]
    made = [""]
    for part in node.parts:
        parts = ways(part)
        if len(made) * len(parts) > BRANCHES:
            parts = [GAP]
        made = [before + way for before in made for way in parts]
    return made


def _plain(text: str) -> str:
    """A text in a way."""
    return text.replace(SPLIT, GAP)


def text_way(text: str) -> str:
    """The way in which a plain text matches."""
    return GAP + _plain(text) + GAP


def demand(way: str, known: dict[int, str] | None = None) -> Demand:
    """What a line holds that matches in this *way*, when its variables are *known*; it may begin within a word."""
    if known is not None:
        way = way.translate({code: _plain(text) for code, text in known.items()})
    octets = (GAP + _VARIABLE.sub(GAP, way) + GAP).encode("latin-1")
    whole, begins = frozenset(_WHOLE.findall(octets)), frozenset(_BEGIN.findall(octets))
    return Demand(whole, begins, max(_TEXT.findall(octets), key=len, default=b""))


class Index:
    """Rules by what they demand. A rule is named by its place, (file, number); it may have several patterns.

    Beside the place stands a text that the line must hold as well.
    """

    def __init__(self, patterns: list[tuple[Place, list[Demand] | None]]) -> None:
        self.by_word: dict[bytes, list[Entry]] = {}
        self.by_begin: dict[int, dict[bytes, list[Entry]]] = {}  # by the length of what a word begins with
        self.by_text: list[Entry] = []
        self.always: set[Place] = set()
        count: Counter[Key] = Counter()
        for _, demands in patterns:
            count.update({key for demand in demands or [] for key in _keys(demand)})
        for place, demands in patterns:
            chosen = [_best(demand, count) for demand in demands or []]
            if demands and None not in chosen:
                for key, demand in zip(chosen, demands, strict=True):
                    if key:
                        table = self.by_begin.setdefault(len(key[1]), {}) if key[0] else self.by_word
                        table.setdefault(key[1], []).append((demand.text, place))
            elif demands and all(len(demand.text) > 1 for demand in demands):
                self.by_text += [(demand.text, place) for demand in demands]
            else:
                self.always.add(place)


def _keys(demand: Demand) -> list[Key]:
    """By what a demand can be found."""
    return [(False, word) for word in demand.words - _EVERYWHERE] + [(True, begin) for begin in demand.begins]


def _best(demand: Demand, count: Counter[Key]) -> Key | None:
    """That of them which tells most; None when there is none."""
    keys = _keys(demand)
    return min(keys, key=lambda key: (count[key], key[0], -len(key[1]), key[1])) if keys else None
