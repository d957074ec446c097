# SPDX-License-Identifier: Apache-2.0
"""Which rules a line may concern, found at a cost that does not depend on the number of the others.

A line is cut into words, runs of the octets WORD. From each pattern that demands words the one is taken that the
fewest patterns demand; a line without it cannot match. What demands no whole word is found by a text that it
demands, which costs a search for each; what demands nothing, or the absence of something, is always tried.
"""

from collections import Counter
from dataclasses import dataclass

from monitorlib.perlre import EDGE, Node

WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
BRANCHES = 64  # alternatives that are followed when words are looked for
_MASK = sum(1 << ord(character) for character in WORD)
CUT = bytes(code if chr(code) in WORD else ord(" ") for code in range(256))
_EVERYWHERE = frozenset({"time", "source", "host", "type", "sev", "data", "id", "seen"})  # in every event
Place = tuple[int, int]
Way = list[str]  # what is matched in turn: a character, GAP, or SPLIT
GAP = "gap"  # an unknown text, perhaps empty
SPLIT = "split"  # the edge of the line, or something that no word goes across


@dataclass(frozen=True)
class Demand:
    """What a line holds that matches in one way: these words, and this text; each may be empty."""

    words: frozenset[bytes]
    text: bytes


def words(line: bytes) -> list[bytes]:
    """The words of a line."""
    return line.translate(CUT).split()


def ways(node: Node) -> list[Way]:
    """The ways in which an expression can match."""
    if node.kind == "set":
        if node.mask.bit_count() == 1:
            return [[chr(node.mask.bit_length() - 1)]]
        return [[GAP if node.mask & _MASK else SPLIT]]
    if node.kind == "variable":
        return [[node.text]]
    if node.kind == "zero":
        return [[SPLIT if node.text in EDGE and not node.parts else GAP]]
    if node.kind == "alt":
        made = [way for part in node.parts for way in ways(part)]
        return made if len(made) <= BRANCHES else [[GAP]]
    if node.kind == "rep":
        if not node.least:
            return [[GAP]]
        return [way if way == [SPLIT] else [GAP, *way, GAP] for way in ways(node.parts[0])]
    made = [[]] if node.kind in ("cat", "group") else [[GAP]]
    for part in node.parts if made == [[]] else []:
        parts = ways(part)
        if len(made) * len(parts) > BRANCHES:
            parts = [[GAP]]
        made = [[*before, *way] for before in made for way in parts]
    return made


def text_way(text: str) -> Way:
    """The way in which a plain text matches."""
    return [GAP, *text, GAP]


def demand(way: Way) -> Demand:
    """What a line holds that matches in this *way*; the pattern may begin and end within a word."""
    found: set[bytes] = set()
    longest = run = word = ""
    is_open = True  # whether the word may have begun before
    for item in [*way, GAP]:
        if len(item) == 1 and item in WORD:
            word += item
        else:
            if word and not is_open and item != GAP and ord(item[0]) < 256:
                found.add(word.encode())
            word, is_open = "", item == GAP or (len(item) == 1 and ord(item) >= 256)
        run = run + item if len(item) == 1 and ord(item) < 256 else ""
        longest = max(longest, run, key=len)
    return Demand(frozenset(found), longest.encode("latin-1"))


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
    able = [word for word in found if word.decode() not in _EVERYWHERE]
    return min(able, key=lambda word: (count[word], -len(word), word)) if able else None
