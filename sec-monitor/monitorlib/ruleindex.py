# SPDX-License-Identifier: Apache-2.0
"""Which rules a line may concern, found at a cost that does not depend on the number of the others.

A line is cut into words, runs of the octets WORD. From the words that a pattern demands the one is taken that the
fewest patterns demand; a line without it cannot match. Where many share a word, or a pattern demands none, they are
told apart by four octets in a row of the texts that they demand. What demands nothing, or that something is absent, is
always tried.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from monitorlib.perlre import EDGE, Node

WORD = "A-Za-z0-9_-"
BRANCHES = 64  # alternatives that are followed when words are looked for
CUT = bytes(code if re.match(f"[{WORD}]", chr(code)) else ord(" ") for code in range(256))
FEW = 16  # texts for which it is quickest to search
GAP = "\1"  # in a way: an unknown text, perhaps empty
SPLIT = "\2"  # in a way: the edge of the line, or something that no word goes across
_MASK = sum(1 << code for code in range(256) if CUT[code] != ord(" "))
_WHOLE = re.compile(f"(?<![{GAP}{WORD}])[{WORD}]+(?![{GAP}{WORD}])".encode())
_VARIABLE = re.compile(r"[^\0-\xff]")
_TEXT = re.compile(f"[^{GAP}{SPLIT}]+".encode())
_EVERYWHERE = frozenset({b"time", b"source", b"host", b"type", b"sev", b"data", b"id", b"seen"})  # in every event
Place = tuple[int, int]
Entry = tuple[bytes, Place]


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
    """Rules by the texts that they demand: a few are searched for, more are found by the rarest four octets of each."""

    def __init__(self, entries: list[tuple[Demand, Place]]) -> None:
        self._few = [(demand.text, place) for demand, place in entries]
        self._by_four: dict[int, list[Entry]] = {}
        if len(entries) > FEW:
            self._few = []
            found = [{four: text for text in demand.texts for four in _fours(text)} for demand, _ in entries]
            count = Counter(four for fours in found for four in fours)
            for fours, (demand, place) in zip(found, entries, strict=True):
                if fours:
                    four = min(fours, key=lambda four: (count[four], four))
                    self._by_four.setdefault(four, []).append((fours[four], place))
                else:
                    self._few.append((demand.text, place))

    def __bool__(self) -> bool:
        return bool(self._few or self._by_four)

    def find(self, line: bytes) -> list[Place]:
        """The places of the rules whose text stands in *line*."""
        places = [place for text, place in self._few if text in line]
        if self._by_four:
            for row in _rows(line):
                for four in self._by_four.keys() & row:
                    places += [place for text, place in self._by_four[four] if text in line]
        return places


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


def _rows(text: bytes) -> Iterator[memoryview]:
    """All four octets in a row that stand in *text*, as numbers."""
    for shift in range(min(4, len(text))):
        yield memoryview(text[shift : shift + (len(text) - shift) // 4 * 4]).cast("I")


def _fours(text: bytes) -> set[int]:
    return {four for row in _rows(text) for four in row}
