# SPDX-License-Identifier: Apache-2.0
"""A full audit of a log: every leaf, every tree head, every signature, in one pass and bounded memory.

The entries come from a `Source` (database, export, server), which compares each with what is stored of it. From their
leaves the tree is made again, as a frontier of one hash a level, and its root compared with every tree head and with
every head that somebody remembers (`Mark`). What is wrong has the index of the first bad entry, as exactly as can be
told. What an authorised writer invented, or a D-Box never acknowledged, no audit can see: but gaps in the numbers of
a writer's stream are reported.
"""

import functools
import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dre import evidence
from dre.errors import DreError, UsageError
from dre.evidence import Head, Note, TamperedError, VerifyError
from dre.trust import Trust

EMPTY = hashlib.sha256(b"").digest()  # root of a tree without leaves
MEMORY = "dre-audit/v1"
RANGES = 100_000  # separate ranges of numbers remembered of one writer's stream
SUSPECTS = 64  # jumps of numbers remembered since the last good tree head
Key = tuple[str, str]  # writer, stream


@dataclass(frozen=True)
class Chunk:
    """Entries *first*, *first* + 1, … as a source found them; the lists have one item for each."""

    first: int
    leaves: list[bytes]
    keys: list[Key]
    seqs: list[int]
    times: list[str]
    gone: Sequence[int] = ()  # indexes of those whose octets were erased


@dataclass(frozen=True)
class Anchor:
    """What a third party said of the tree head of *size*; *octets* as it is stored."""

    kind: str
    name: str
    size: int
    time: str
    octets: bytes


class Source(Protocol):
    """A log to be audited."""

    origin: str
    octets: bool  # whether octets are there to be compared with their digests

    def chain(self) -> bytes:
        """The certificates below the root, PEM."""
        ...

    def heads(self, first: int) -> Iterator[tuple[int, str]]:
        """Size and note of the tree heads of at least *first* entries, by size."""
        ...

    def own(self) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """Index, type and data of the D-Box's own events, where their octets can be read."""
        ...

    def chunks(self, first: int) -> Iterator[Chunk]:
        """All entries from *first* on. Raises TamperedError, after those before it."""
        ...

    def anchors(self) -> Iterator[Anchor]:
        """What third parties said."""
        ...

    def anchored(self, size: int) -> Sequence[Anchor]:
        """What they said of the tree head of *size*, once `heads` gave it."""
        ...


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: *index* is the first entry that is bad, or that cannot be believed."""

    kind: str  # certificate, entry, erased, head, tree, tail, seen, number, anchor
    index: int
    text: str
    proof: tuple[str, ...] = ()  # two notes of one size that convict the D-Box


@dataclass(frozen=True)
class Mark:
    """A tree head that is known from elsewhere: *what* says from where."""

    head: Head
    what: str
    note: Note

    @property
    def size(self) -> int:
        """How many entries it covers."""
        return self.head.size


@dataclass(frozen=True)
class Gap:
    """Numbers that a writer's stream lacks."""

    writer: str
    stream: str
    first: int
    last: int


class Frontier:
    """The tree of the leaves so far: one hash for each complete subtree that has no sibling yet."""

    def __init__(self, nodes: Iterable[bytes | None] = ()) -> None:
        self._nodes: list[bytes | None] = list(nodes)

    def extend(self, nodes: list[bytes]) -> None:
        """Append leaves, level by level: a list of thousands costs little more than its hashes."""
        sha256 = hashlib.sha256
        level = 0
        while nodes:
            if level == len(self._nodes):
                self._nodes.append(None)
            left = self._nodes[level]
            if left is not None:
                nodes = [left, *nodes]
            self._nodes[level] = nodes[-1] if len(nodes) & 1 else None
            pairs = iter(nodes)
            nodes = [sha256(b"\x01" + one + two).digest() for one, two in zip(pairs, pairs, strict=False)]
            level += 1

    def size(self) -> int:
        """How many leaves there are."""
        return sum(1 << level for level, node in enumerate(self._nodes) if node is not None)

    def root(self) -> bytes:
        """The root of the tree."""
        there = [node for node in self._nodes if node is not None]
        return functools.reduce(lambda value, node: evidence.node_hash(node, value), there) if there else EMPTY

    def nodes(self) -> list[bytes | None]:
        """What `Frontier` takes to go on from here."""
        return list(self._nodes)


class Numbers:
    """Which numbers of one writer's stream are there, as ranges."""

    def __init__(self, ranges: Iterable[Sequence[int]] = ()) -> None:
        self.ranges = [[first, last] for first, last in ranges]

    def add(self, first: int, last: int) -> bool:
        """Add a range; False when part of it is there already, or there is too much to remember."""
        at = bisect_left(self.ranges, [first])
        before = self.ranges[at - 1] if at else [0, -1]
        after = self.ranges[at] if at < len(self.ranges) else None
        if before[1] >= first or (after is not None and after[0] <= last):
            return False
        joins = after is not None and after[0] == last + 1
        if at and before[1] + 1 == first:
            before[1] = after[1] if joins and after is not None else last
            if joins:
                del self.ranges[at]
        elif joins and after is not None:
            after[0] = first
        elif len(self.ranges) < RANGES:
            self.ranges.insert(at, [first, last])
        return True

    def missing(self) -> Iterator[tuple[int, int]]:
        """The ranges that are not there, from 1 on."""
        last = 0
        for first, end in self.ranges:
            if first > last + 1:
                yield last + 1, first - 1
            last = end


@dataclass
class Memory:
    """Where an audit ended, so that the next one can demand that the log only grew, and go on from there."""

    origin: str
    note: str
    frontier: list[bytes | None]
    numbers: dict[Key, Numbers]
    retired: dict[str, int]

    @property
    def head(self) -> Head:
        """The tree head it ended with."""
        return evidence.parse_head(evidence.parse_note(self.note).text)

    def format(self) -> str:
        """The JSON text."""
        return (
            json.dumps(
                {
                    "format": MEMORY,
                    "origin": self.origin,
                    "note": self.note,
                    "frontier": [node.hex() if node else None for node in self.frontier],
                    "numbers": [[*key, numbers.ranges] for key, numbers in self.numbers.items()],
                    "retired": self.retired,
                }
            )
            + "\n"
        )


def parse_memory(text: str) -> Memory:
    """The memory in *text*. Raises FormatError."""
    try:
        fields = json.loads(text)
        if fields["format"] != MEMORY:
            raise ValueError(fields["format"])
        made = Memory(
            fields["origin"],
            fields["note"],
            [bytes.fromhex(node) if node else None for node in fields["frontier"]],
            {(writer, stream): Numbers(ranges) for writer, stream, ranges in fields["numbers"]},
            {str(key): int(size) for key, size in fields["retired"].items()},
        )
        frontier = Frontier(made.frontier)
        if (frontier.size(), frontier.root()) != (made.head.size, made.head.root):
            raise ValueError("its frontier is not that of its tree head")
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise evidence.FormatError(f"not the memory of an audit: {error}") from None
    return made


@dataclass
class Report:
    """What an audit found."""

    origin: str
    octets: bool
    begin: int = 0  # entries that were not looked at again, since an earlier audit did
    entries: int = 0
    heads: int = 0
    erased: int = 0
    head: Head | None = None
    findings: list[Finding] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    anchors: list[Anchor] = field(default_factory=list)
    anchored: Anchor | None = None  # the newest one that was checked and is right
    memory: Memory | None = None

    @property
    def first_bad(self) -> int | None:
        """The first bad index, None when there is none."""
        return min((finding.index for finding in self.findings), default=None)


class Reasons:
    """What the D-Box's own events say: which octets were erased, and from which size on a sign key is retired."""

    def __init__(self, events: Iterable[tuple[int, str, Mapping[str, Any]]]) -> None:
        self.erased: set[int] = set()
        self.expired: dict[str, list[tuple[int, int]]] = {}
        self.retired: dict[str, int] = {}
        for index, kind, data in events:
            if kind == "dbox.erased" and isinstance(data.get("entry"), int):
                self.erased.add(data["entry"])
            elif kind == "dbox.expired" and all(isinstance(data.get(key), int) for key in ("first", "last")):
                self.expired.setdefault(str(data.get("stream")), []).append((data["first"], data["last"]))
            elif kind == "dbox.key.rotated":
                self.retired.setdefault(str(data.get("old")), index + 1)
        for ranges in self.expired.values():
            ranges.sort()

    def why(self, index: int, stream: str) -> bool:
        """Whether an event says that the octets of an entry were erased."""
        ranges = self.expired.get(stream, [])
        at = bisect_right(ranges, (index, 1 << 62))
        return index in self.erased or any(first <= index <= last for first, last in ranges[max(0, at - 4) : at])


# Whether an anchor is right for the note of its tree head; None for one by somebody who is not known.
Judge = Callable[[Anchor, Note], bool | None]


class Auditor:
    """One audit. *marks* are tree heads known from elsewhere; *memory* is that of an earlier audit; *judge* anchors."""

    def __init__(
        self,
        source: Source,
        trust: Trust,
        marks: Sequence[Mark] = (),
        memory: Memory | None = None,
        judge: Judge = lambda anchor, note: None,
    ) -> None:
        self.source = source
        self.judge = judge
        self.trust = trust
        self.report = Report(source.origin, source.octets)
        self.frontier = Frontier(memory.frontier if memory else ())
        self.numbers = memory.numbers if memory else {}
        self.position = memory.head.size if memory else 0
        self.report.begin = self.position
        self.reasons = Reasons(source.own())
        self._over = dict(memory.retired) if memory else {}  # retired key → size of the head over its hand-over
        self.reasons.retired.update(self._over)
        self._marks = sorted((one for one in marks if one.size >= self.position), key=lambda mark: mark.size)
        self._good = self._agreed = self.position  # size up to which tree heads, and all that is known, agree
        self._time = memory.head.time if memory else ""
        self._entry_time = ""
        self._size = -1  # of the last tree head
        self._note: Note | None = None  # the last good one
        self._text = ""
        self._suspects: list[int] = []
        self._root_wrong = False

    def run(self) -> Report:
        """Look at everything."""
        report = self.report
        heads = self.source.heads(self.position)
        waiting = next(heads, None)
        self._reach_marks(self.position)
        while waiting is not None and waiting[0] <= self.position:  # of no entries, or the last one of the audit before
            self._head(*waiting, self._time)
            waiting = next(heads, None)
        try:
            for chunk in self.source.chunks(self.position):
                before, end = self._entry_time, chunk.first + len(chunk.leaves)
                self._look(chunk)
                while waiting is not None and waiting[0] <= end:
                    self._grow(chunk, waiting[0])
                    last = waiting[0] - 1 - chunk.first
                    self._head(*waiting, chunk.times[last] if last >= 0 else before)
                    waiting = next(heads, None)
                self._grow(chunk, end)
        except TamperedError as error:
            self._find("entry", error.index, error.reason)
        self._reach_marks(self.position)
        while waiting is not None:
            self._beyond(*waiting)
            waiting = next(heads, None)
        self._finish()
        report.entries = self.position - report.begin
        return report

    # --- Entries ---

    def _look(self, chunk: Chunk) -> None:
        """Times and numbers of entries, and the reasons of what was erased."""
        if chunk.times and (chunk.times[0] < self._entry_time or chunk.times != sorted(chunk.times)):
            times = [self._entry_time, *chunk.times]
            at = next(at for at in range(len(chunk.times)) if times[at] > times[at + 1])
            self._find("entry", chunk.first + at, "its time is before that of the entry before it")
        self._entry_time = chunk.times[-1] if chunk.times else self._entry_time
        count = len(chunk.seqs)
        if (
            count
            and chunk.keys.count(chunk.keys[0]) == count
            and chunk.seqs == [*range(chunk.seqs[0], chunk.seqs[0] + count)]
        ):
            self._number(chunk.first, chunk.keys[0], chunk.seqs[0], count)
        else:
            for at, key in enumerate(chunk.keys):
                self._number(chunk.first + at, key, chunk.seqs[at], 1)
        for index in chunk.gone:
            stream = chunk.keys[index - chunk.first][1]
            self.report.erased += 1
            if not self.reasons.why(index, stream):
                self._find("erased", index, "its octets are gone, and no entry of the log says why")

    def _number(self, index: int, key: Key, seq: int, count: int) -> None:
        numbers = self.numbers.get(key)
        if numbers is None:
            numbers = self.numbers[key] = Numbers()
        last = numbers.ranges[-1][1] if numbers.ranges else 0
        if seq != last + 1 and len(self._suspects) < SUSPECTS:
            self._suspects.append(index)
        if not numbers.add(seq, seq + count - 1):
            self._find("number", index, f"number {seq} of stream {key[1]} stands in the log twice")

    def _grow(self, chunk: Chunk, size: int) -> None:
        """Append the leaves of *chunk* to the tree until it has *size*, looking at marks on the way."""
        while self._marks and self._marks[0].size <= size and self._marks[0].size >= self.position:
            self._extend(chunk, self._marks[0].size)
            self._reach_marks(self._marks[0].size)
        self._extend(chunk, size)

    def _extend(self, chunk: Chunk, size: int) -> None:
        if size > self.position:
            begin, end = self.position - chunk.first, size - chunk.first
            self.frontier.extend(chunk.leaves if (begin, end) == (0, len(chunk.leaves)) else chunk.leaves[begin:end])
            self.position = size

    # --- Tree heads ---

    def _head(self, size: int, text: str, entry_time: str) -> None:
        """Compare a tree head with the tree; *entry_time* is that of the last entry it covers."""
        head = self._signed(size, text)
        if head is None or self._root_wrong:
            return
        if head.root != self.frontier.root():
            self._root_wrong = True
            text = f"the entries from {self._good} on do not lead to the root of the tree head of {size}"
            self._find("tree", self._suspect(size), text)
        elif entry_time > head.time:
            self._find("head", size - 1, f"the tree head of {size} is older than its last entry")
        else:
            self._good = size
            self._suspects = [index for index in self._suspects if index >= size]

    def _suspect(self, size: int) -> int:
        """The first bad index below a wrong tree head of *size*: where a number jumps, or else after the last good."""
        found = [index for index in self._suspects if self._good <= index < size]
        return found[0] if found else self._good

    def _signed(self, size: int, text: str) -> Head | None:
        """The tree head of a note after everything was checked that needs no entries; None when something is wrong."""
        covered, before = max(self._size, self.report.begin), (self._size, self._text)
        self.report.heads += 1
        self._size, self._text = size, text
        try:
            if size <= before[0]:
                raise VerifyError("there is another one of this size" if size == before[0] else "not in order")
            note = evidence.parse_note(text)
            head = self.trust.head(note)
            if head.origin != self.source.origin:
                raise VerifyError(f"wrong origin: log {head.origin}")
            if head.size != size:
                raise VerifyError(f"it is one of {head.size} entries")
            if head.time < self._time:
                raise VerifyError(f"its time {head.time} is before that of the one before it, {self._time}")
            self._retired(note, size)
        except DreError as error:
            self._find("head", covered, f"tree head of {size}: {error}", (before[1], text) if size == before[0] else ())
            return None
        self._time, self._note, self.report.head = head.time, note, head
        for anchor in self.source.anchored(size):
            self._anchor(anchor, note)
        return head

    def _anchor(self, anchor: Anchor, note: Note) -> None:
        """An anchor that does not fit its tree head: one of them is not what it was, as may be all before."""
        right = self.judge(anchor, note)
        if right:
            self.report.anchored = anchor
        elif right is not None:
            covered = self.report.anchored.size if self.report.anchored else self.report.begin
            self._find("anchor", covered, f"{anchor.name} confirmed another tree head of {anchor.size} than is here")

    def _retired(self, note: Note, size: int) -> None:
        """Raise VerifyError when a sign key was used after it had handed over to the next."""
        signers = self.trust.signers(note)
        for key, since in self.reasons.retired.items():
            # The old key signs the tree head over the entry that retires it, and nothing after that.
            if size >= since and self._over.setdefault(key, size) != size and key in signers:
                raise VerifyError(f"signed by a key that was retired with entry {since - 1}")

    def _beyond(self, size: int, text: str) -> None:
        """A tree head of more entries than there are."""
        self._signed(size, text)
        if not any(finding.kind in ("entry", "tail") for finding in self.report.findings):
            self._find("tail", self.position, f"entries from here on are gone: a tree head covers {size}")

    # --- What is known from elsewhere ---

    def _reach_marks(self, size: int) -> None:
        while self._marks and self._marks[0].size <= size:
            mark = self._marks.pop(0)
            if mark.head.origin != self.source.origin:
                self._find("seen", 0, f"wrong origin: {mark.what} is of log {mark.head.origin}", (mark.note.format(),))
            elif mark.head.root == self.frontier.root():
                self._agreed = mark.size
            else:
                self._fork(mark)

    def _fork(self, mark: Mark) -> None:
        """A tree head that is known does not fit: with the log's own of that size it proves misbehaviour."""
        text = f"this is not the log of {mark.what}, a tree head of {mark.size}"
        own = next((note for size, note in self.source.heads(mark.size) if size == mark.size), None)
        if own is None:
            return self._find("seen", self._agreed, text, (mark.note.format(),))
        try:
            self.trust.head(mark.note)
            text += ": two signed tree heads of one size prove misbehaviour"
        except DreError:
            text += ", whose signatures do not verify"
        return self._find("seen", self._agreed, text, (mark.note.format(), own))

    def _finish(self) -> None:
        report = self.report
        for mark in self._marks:
            text = f"the log has {self.position} entries, but {mark.what} is a tree head of {mark.size}"
            self._find("seen", self.position, text, (mark.note.format(),))
        broken = any(finding.kind == "entry" for finding in report.findings)
        if self._size < 0:
            self._find("head", report.begin, "there is no tree head: nothing here is signed")
        elif self.position > self._size and not broken:
            self._find("tail", self._size, f"{self.position - self._size} entries are covered by no tree head")
        for (writer, stream), numbers in self.numbers.items():
            report.gaps += [Gap(writer, stream, *ends) for ends in numbers.missing()]
        report.anchors = list(self.source.anchors())
        if not report.findings and self._note is not None:
            frontier = self.frontier.nodes()
            report.memory = Memory(report.origin, self._note.format(), frontier, self.numbers, self._over)

    def _find(self, kind: str, index: int, text: str, proof: tuple[str, ...] = ()) -> None:
        if len(self.report.findings) < 1000:
            self.report.findings.append(Finding(kind, index, text, proof))


def header_pattern(origin: str) -> "re.Pattern[bytes]":
    """What a header of this log matches: stream, writer, time, seq, length, digest. As strict as parse_header."""
    number = rb"(0|[1-9][0-9]{0,18})"
    return re.compile(
        rb"dre-entry/v1\nlog "
        + re.escape(origin.encode())
        + rb"\nstream ([a-z0-9][a-z0-9-]{0,30})\nwriter ([0-9a-f]{64})"
        + rb"\ntime ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z)\nseq "
        + number
        + rb"\nlength "
        + number
        + rb"\ndigest sha256 ([0-9a-f]{64})\n"
    )


def key_of(cache: dict[tuple[Hashable, Hashable], Key], writer: bytes, stream: bytes) -> Key:
    """Writer and stream as one pair that is the same object each time."""
    found = cache.get((writer, stream))
    if found is None:
        found = cache[writer, stream] = (writer.decode(), stream.decode())
    return found
