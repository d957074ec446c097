# SPDX-License-Identifier: Apache-2.0
"""Which rules a line may concern, found at a cost that does not depend on the number of the others.

A line is cut into words, runs of the octets WORD. From the words that a pattern demands the one is taken that the
fewest patterns demand; a line without it cannot match. Where many share a word, or a pattern demands none, the texts
that they demand are all searched for at once (Aho and Corasick, CACM 18(6), 1975). What demands nothing, or that
something is absent, is always tried.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from monitorlib.perlre import EDGE, Node

WORD = "A-Za-z0-9_-"
BRANCHES = 64  # alternatives that are followed when words are looked for
CUT = bytes(code if re.match(f"[{WORD}]", chr(code)) else ord(" ") for code in range(256))
FEW = 8  # texts that are found sooner one by one
SHORT = 4  # octets, below which a text tells little
GAP = "\1"  # in a way: an unknown text, perhaps empty
SPLIT = "\2"  # in a way: the edge of the line, or something that no word goes across
_MASK = sum(1 << code for code in range(256) if CUT[code] != ord(" "))
_WHOLE = re.compile(f"(?<![{GAP}{WORD}])[{WORD}]+(?![{GAP}{WORD}])".encode())
_VARIABLE = re.compile(r"[^\0-\xff]")
_TEXT = re.compile(f"[^{GAP}{SPLIT}]+".encode())
_EVERYWHERE = frozenset({b"time", b"source", b"host", b"type", b"sev", b"data", b"id", b"seen"})  # in every event
Place = tuple[int, int]


@dataclass(frozen=True)
class Demand:
    """What a line holds that matches in one way: these words, and these texts; there may be none."""

    words: frozenset[bytes]
    texts: tuple[bytes, ...]

    @property
    def text(self) -> bytes:
        """The longest of the texts."""
        return max(self.texts, key=len, default=b"")


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
    return Demand(frozenset(_WHOLE.findall(octets)), tuple(_TEXT.findall(octets)))


class Texts:
    """Rules by the texts that they demand: a few are searched for one by one, more in one pass over the line."""

    def __init__(self, entries: list[tuple[Demand, Place]]) -> None:
        count = Counter(text for demand, _ in entries for text in set(demand.texts))
        by_text: dict[bytes, list[Place]] = {}
        for demand, place in entries:
            # What is short stands in many lines, in however few rules it may.
            text = min(demand.texts, key=lambda text: (len(text) < SHORT, count[text], -len(text), text), default=b"")
            by_text.setdefault(text, []).append(place)
        self._any = by_text.pop(b"", [])
        self._few = list(by_text.items()) if len(by_text) <= FEW else []
        self._many = None if self._few else _automaton(by_text)

    def __bool__(self) -> bool:
        return bool(self._any or self._few or self._many)

    def find(self, line: bytes) -> list[Place]:
        """The places of the rules whose text stands in *line*."""
        places = [*self._any]
        for text, found in self._few:
            if text in line:
                places += found
        if self._many is not None:
            for _, found in self._many.iter(line.decode("latin-1")):
                places += found
        return places


def _automaton(by_text: dict[bytes, list[Place]]) -> Any:
    """What finds the places of all texts in one pass; None of no texts."""
    if not by_text:
        return None
    import ahocorasick  # late, for few have so many rules

    made = ahocorasick.Automaton()  # Debian's is one of characters
    for text, places in by_text.items():
        made.add_word(text.decode("latin-1"), places)
    made.make_automaton()
    return made


class Index:
    """Rules by what they demand. A rule is named by its place, (file, number); it may have several patterns."""

    def __init__(self, patterns: list[tuple[Place, list[Demand] | None]]) -> None:
        self.always: set[Place] = set()
        loose: list[tuple[Demand, Place]] = []
        by_word: dict[bytes, list[tuple[Demand, Place]]] = {}
        count = Counter(word for _, demands in patterns for word in {w for d in demands or [] for w in d.words})
        for place, demands in patterns:
            chosen = [_best(demand.words, count) for demand in demands or []]
            if demands and None not in chosen:
                for word, demand in zip(chosen, demands, strict=True):
                    by_word.setdefault(word or b"", []).append((demand, place))
            elif demands and all(len(demand.text) > 1 for demand in demands):
                loose += [(demand, place) for demand in demands]
            else:
                self.always.add(place)
        self.by_word = {word: Texts(entries) for word, entries in by_word.items()}
        self.by_text = Texts(loose)


def _best(found: frozenset[bytes], count: Counter[bytes]) -> bytes | None:
    """The word that tells most; None when there is none that is not in every event anyway."""
    able = found - _EVERYWHERE
    return min(able, key=lambda word: (count[word], -len(word), word)) if able else None
