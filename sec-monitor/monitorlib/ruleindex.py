# SPDX-License-Identifier: Apache-2.0
"""Which rules a line may concern, found at a cost that does not depend on the number of the others.

A line is cut into words, runs of the octets WORD. From each pattern that demands words the one is taken that the
fewest patterns demand; a line without it cannot match. What demands no whole word is found by a text that it
demands, which costs a search for each; what demands nothing, or the absence of something, is always tried.
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
_TEXT = re.compile(f"[^{GAP}{SPLIT}]+".encode())
_EVERYWHERE = frozenset({b"time", b"source", b"host", b"type", b"sev", b"data", b"id", b"seen"})  # in every event
Place = tuple[int, int]


@dataclass(frozen=True)
class Demand:
    """What a line holds that matches in one way: these words, and this text; each may be empty."""

    words: frozenset[bytes]
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
    return Demand(frozenset(_WHOLE.findall(octets)), max(_TEXT.findall(octets), key=len, default=b""))


class Index:
    """Rules by what they demand. A rule is named by its place, (file, number); it may have several patterns."""

    def __init__(self, patterns: list[tuple[Place, list[Demand] | None]]) -> None:
        self.by_word: dict[bytes, list[Place]] = {}
        self.by_text: list[tuple[bytes, Place]] = []
        self.always: set[Place] = set()
        count = Counter(word for _, demands in patterns for word in {w for d in demands or [] for w in d.words})
        for place, demands in patterns:
            chosen = [best(demand.words, count) for demand in demands or []]
            if demands and None not in chosen:
                for word in {word for word in chosen if word}:
                    self.by_word.setdefault(word, []).append(place)
            elif demands and all(len(demand.text) > 1 for demand in demands):
                self.by_text += [(demand.text, place) for demand in demands]
            else:
                self.always.add(place)


def best(found: frozenset[bytes], count: Counter[bytes]) -> bytes | None:
    """The word that tells most; None when there is none that is not in every event anyway."""
    able = [word for word in found if word not in _EVERYWHERE]
    return min(able, key=lambda word: (count[word], -len(word), word)) if able else None
