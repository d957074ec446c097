# SPDX-License-Identifier: Apache-2.0
"""The log as it grows: entries get their numbers, the tree its leaves, and each batch one signed tree head.

One thread works here, the sequencer's. No tree head leaves before its transaction is durable, and after a commit of
unknown outcome the database is read again before anything else is signed: the same size must never be signed twice
with different roots for others to see. Who waits for what, and what is due when, is decided elsewhere.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dre import event, evidence
from dre.errors import DreError
from dre.evidence import Head, Note, Receipt, TamperedError, Tree

from dboxlib import store
from dboxlib.log import ConflictError, Outcome, QuotaError
from dboxlib.signer import Signer
from dboxlib.store import Batch, FencedError, Known, Row, StorageError, Store
from dboxlib.streams import Streams

OWN = "dbox"  # stream of the D-Box's own entries: start of the log, change of sign key, refusals


@dataclass
class Submission:
    """Consecutive entries of one writer's stream, to be appended all or none."""

    writer: str
    stream: str
    seq: int
    parts: Sequence[bytes]
    size: int = 0
    done: "Future[Outcome]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.parts))


@dataclass(frozen=True)
class Placed:
    """The entries of a submission: where they are, and the new ones among them."""

    numbers: list[int]
    rows: list[Row]


class Appender:
    """The tree, the newest tree head and what numbers are taken, of one store."""

    def __init__(self, store: Store, signer: Signer, clock: Callable[[], float], streams: Streams) -> None:
        self.store = store
        self.signer = signer
        self.clock = clock
        self.streams = streams
        self.tree = Tree()
        self.head: Head
        self.note: Note
        self.over = threading.Event()  # another sequencer has taken over
        self._epoch = 0
        self.own = ""
        self._doubt = False
        self._top: dict[tuple[str, str], int] = {}  # the highest number of each source, as far as it was asked for

    def start(self, own: str, holder: str) -> None:
        """Take the log in the name of *holder* and read it back; the D-Box itself writes as fingerprint *own*."""
        self.own = own
        self._epoch = self.store.take(event.stamp(self.clock()), holder)
        self.reload()

    def now(self) -> str:
        """The time of the next entries: the clock's, but never before the last tree head."""
        stamp = event.stamp(self.clock())
        return max(stamp, self.head.time) if hasattr(self, "head") else stamp

    def append(self, batch: Sequence[Submission]) -> list[Outcome | None]:
        """Append a batch; None for a submission that was refused and told so. Raises DreError when nothing is there."""
        self._sure()
        placed = self._place(batch)
        rows = [row for found in placed for row in (found.rows if found else ())]
        if rows:
            self._commit(rows)
        return [self._outcome(found) if found else None for found in placed]

    def append_own(self, kind: str, data: Mapping[str, object], **more: Any) -> Outcome:
        """An entry of the D-Box itself, in a batch of its own."""
        self._sure()
        seq = self._highest((self.own, OWN)) + 1
        octets = own_event(self.now(), kind, data)
        submission = Submission(self.own, OWN, seq, [octets])
        (placed,) = self._place([submission])
        if placed is None:
            raise submission.done.exception() or DreError("not written")
        self._commit(placed.rows, **more)
        return self._outcome(placed)

    def _sure(self) -> None:
        if self._doubt:
            self.reload()

    def _place(self, batch: Sequence[Submission]) -> list[Placed | None]:
        """Give each new entry its number; what is there already keeps its own. Who is refused hears of it here."""
        now = max(int(self.clock() * 1000), store.milliseconds(self.head.time))
        stamp = store.text_time(now)
        fresh: dict[tuple[str, str, int], Row] = {}
        octets: dict[str, int] = {}
        placed: list[Placed | None] = []
        number = len(self.tree)
        for submission in batch:
            try:
                found = self._place_one(submission, number, (now, stamp), fresh, octets.get(submission.stream, 0))
            except (ConflictError, QuotaError) as error:
                submission.done.set_exception(error)
                placed.append(None)
                continue
            placed.append(found)
            number += len(found.rows)
            octets[submission.stream] = octets.get(submission.stream, 0) + sum(len(row.octets) for row in found.rows)
        return placed

    def _place_one(
        self,
        submission: Submission,
        number: int,
        now: tuple[int, str],
        fresh: dict[tuple[str, str, int], Row],
        more: int,
    ) -> Placed:
        """Place one submission at *number* and on. Raises ConflictError, QuotaError."""
        writer, stream = key = (submission.writer, submission.stream)
        known: dict[int, Known | Row] = {}
        last = submission.seq + len(submission.parts) - 1
        if submission.seq <= self._highest(key):
            known = dict(self.store.known(writer, stream, submission.seq, last))
            for seq in range(submission.seq, last + 1):
                if (writer, stream, seq) in fresh:
                    known[seq] = fresh[writer, stream, seq]
        erasable = self.streams.policy(stream).erasable
        prefix = f"{evidence.VERSION}\nlog {self.signer.origin}\nstream {stream}\nwriter {writer}\ntime {now[1]}\nseq "
        numbers, rows = [], list[Row]()
        for seq, octets in enumerate(submission.parts, submission.seq):
            there = known.get(seq)
            if there is not None:
                _same(stream, seq, octets, there)
                numbers.append(there.number)
                continue
            salt = os.urandom(evidence.SALT) if erasable else b""
            digest = hashlib.sha256(salt + octets if salt else octets)
            header = f"{prefix}{seq}\nlength {len(octets)}\ndigest sha256 {digest.hexdigest()}\n".encode()
            leaf = evidence.leaf_hash(header)
            rows.append(Row(number, writer, stream, seq, now[0], digest.digest(), leaf, octets, salt, header))
            numbers.append(number)
            number += 1
        if rows and writer != self.own:
            self.streams.admit(stream, len(rows), sum(len(row.octets) for row in rows), more)
        for row in rows:
            fresh[writer, stream, row.seq] = row
        self._top[key] = max(self._top[key], last)
        return Placed(numbers, rows)

    def _highest(self, key: tuple[str, str]) -> int:
        if key not in self._top:
            self._top[key] = self.store.last_seq(*key)
        return self._top[key]

    def _outcome(self, placed: Placed) -> Outcome:
        rows, numbers = placed.rows, placed.numbers
        if not rows or numbers[-1] != rows[-1].number:
            return Outcome(numbers, self.head, self.note)
        size = self.head.size
        path = tuple(self.tree.inclusion(numbers[-1], size))
        last = Receipt(rows[-1].header, numbers[-1], path, self.note, rows[-1].salt)
        if len(rows) < len(numbers):
            return Outcome(numbers, self.head, self.note, last)
        first = path if len(rows) == 1 else tuple(self.tree.inclusion(numbers[0], size))
        salts = tuple(row.salt for row in rows) if rows[0].salt else ()
        return Outcome(numbers, self.head, self.note, last, first, salts)

    def _commit(
        self,
        rows: Sequence[Row],
        certificate: tuple[str, str, str] | None = None,
        erased: Sequence[tuple[int, int, str, str, str, str]] = (),
    ) -> None:
        """Grow the tree by *rows*, sign it, and make all of it durable, or nothing."""
        old = len(self.tree)
        self.tree.append(row.leaf for row in rows)
        size = len(self.tree)
        try:
            head = Head(self.signer.origin, size, self.tree.root(size), self.now())
            note = self.signer.note(head)
            signed = {name for name in {row.stream for row in rows} if self.streams.policy(name).signature == "each"}
            signatures = (
                [(row.number, head.time, self.signer.digest(row.octets)) for row in rows if row.stream in signed]
                if signed
                else []
            )
            self.store.append(Batch(rows, size, note.format(), certificate, signatures, erased), self._epoch)
        except FencedError:
            self.tree.truncate(old)
            self.over.set()
            raise
        except StorageError:
            self._doubt = True  # COMMIT may have failed after it became durable
            self.tree.truncate(old)
            self.reload()
            if self.note != note:
                raise
        except BaseException:
            self.tree.truncate(old)
            self._top = {}
            raise
        else:
            self.head, self.note = head, note
            for stream, entries, octets in _sums(rows):
                self.streams.add(stream, entries, octets)

    def reload(self) -> None:
        """Rebuild the tree from the database and compare it with the newest tree head. Raises DreError."""
        self._top = {}
        self.store.forget()
        if not self.store.holds(self._epoch):
            self.over.set()
            raise FencedError(f"{self.store.path}: another sequencer has taken over")
        tree, use = Tree(), dict[int, list[int]]()
        tree.append(self._leaves(use))
        text = self.store.head()
        if text is None:
            if len(tree):
                raise DreError(f"{self.store.path}: entries without a tree head")
            head = Head(self.signer.origin, 0, tree.root(0), self.now())
            note = self.signer.note(head)
            self.store.append(Batch([], 0, note.format()), self._epoch)
        else:
            note = evidence.parse_note(text)
            head = evidence.parse_head(note.text)
        if head.origin != self.signer.origin or head.size != len(tree) or head.root != tree.root(head.size):
            found = f"{len(tree)} entries, the tree head of {head.origin} has {head.size}"
            raise DreError(f"{self.store.path}: does not match its newest tree head: {found}")
        self.tree, self.head, self.note, self._doubt = tree, head, note, False
        self.streams.reset()
        for source, (entries, octets) in use.items():
            self.streams.add(self.store.source(source)[1], entries, octets)

    def _leaves(self, use: dict[int, list[int]]) -> Iterator[bytes]:
        """The leaves as the columns make them, and what each source has; kept octets are left for an audit."""
        try:
            for _, _, leaf, source, octets in self.store.walk(octets=False):
                found = use.get(source)
                if found is None:
                    found = use[source] = [0, 0]
                found[0] += 1
                found[1] += octets
                yield leaf
        except TamperedError as error:
            raise DreError(f"{self.store.path}: entry {error.index} was changed: {error.reason}") from None


def own_event(when: str, kind: str, data: Mapping[str, object]) -> bytes:
    """The octets of an entry of the D-Box itself: one event line."""
    return event.format(event.Event(when, event.host() + "/dbox", kind, 5, dict(data))).rstrip(b"\n")


def _same(stream: str, seq: int, octets: bytes, there: Known | Row) -> None:
    """Raise ConflictError unless *octets* are those that are there."""
    if there.erased:
        raise ConflictError(f"{stream} {seq} held octets that were erased (entry {there.number})")
    if hashlib.sha256((there.salt or b"") + octets).digest() != there.digest:
        raise ConflictError(f"{stream} {seq} holds other octets already (entry {there.number})")


def _sums(rows: Sequence[Row]) -> Iterator[tuple[str, int, int]]:
    """Entries and octets of each stream."""
    sums: dict[str, list[int]] = {}
    for row in rows:
        found = sums.setdefault(row.stream, [0, 0])
        found[0] += 1
        found[1] += len(row.octets)
    for stream, (entries, octets) in sums.items():
        yield stream, entries, octets
