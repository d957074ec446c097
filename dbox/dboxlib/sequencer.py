# SPDX-License-Identifier: Apache-2.0
"""The one place where a log grows: batches of entries, each batch one transaction under one signed tree head.

Request threads hand in submissions and wait; a single thread takes all that are there (group commit), so a slow disk
makes batches larger and not the queue longer. No tree head leaves before its transaction is durable, and after a
commit of unknown outcome the database is read again before anything else is signed: the same size must never be
signed twice with different roots for others to see.
"""

import contextlib
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from dre import event, evidence, trust
from dre.errors import DreError
from dre.evidence import Head, Header, Note, Receipt, Tree

from dboxlib import pki
from dboxlib.clients import Client
from dboxlib.log import BusyError, ConflictError, Outcome
from dboxlib.signer import Signer
from dboxlib.store import Row, Store

BATCH_ENTRIES = 20_000
BATCH_OCTETS = 16 * 1024 * 1024
QUEUE_OCTETS = 64 * 1024 * 1024
QUEUE_ENTRIES = 50_000
IDLE = 30.0  # seconds after which an idle log looks at the age of its sign key
OWN = "dbox"  # stream of the D-Box's own entries: start of the log, change of sign key
CLIENTS = "client"  # stream of registrations; seq is the number of the registration


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


class Sequencer:
    """Owns the tree, the signer and the writing connection of one store."""

    def __init__(self, store: Store, signer: Signer, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.signer = signer
        self.clock = clock
        self.tree = Tree()
        self.head: Head
        self.note: Note
        self.rotate: Callable[[], tuple[pki.Issued, Callable[[], None]] | None] = lambda: None
        self.clients_logged = 0
        self._own = ""
        self._queue: queue.Queue[Submission | None] = queue.Queue()
        self._waiting_octets = self._waiting_entries = 0
        self._count = threading.Lock()
        self._logging = threading.Lock()
        self._doubt = False
        self._thread = threading.Thread(target=self._work, name="sequencer")

    def start(self, own: str) -> None:
        """Read the log back and begin; *own* is the fingerprint under which the D-Box itself writes."""
        self._own = own
        self._reload()
        self.clients_logged = self.store.last_seq(own, CLIENTS)
        self._thread.start()

    def stop(self) -> None:
        """Finish what was handed in, then end."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, writer: str, stream: str, seq: int, parts: Sequence[bytes], timeout: float = 60.0) -> Outcome:
        """Append entries and return when they are durable; the same ones again give the same answer.

        Raises BusyError, ConflictError, DreError.
        """
        submission = Submission(writer, stream, seq, parts)
        with self._count:
            octets, entries = self._waiting_octets + submission.size, self._waiting_entries + len(parts)
            if self._waiting_entries and (octets > QUEUE_OCTETS or entries > QUEUE_ENTRIES):
                raise BusyError("too many entries are waiting to be written")
            self._waiting_octets, self._waiting_entries = octets, entries
        self._queue.put(submission)
        try:
            return submission.done.result(timeout)
        except TimeoutError:
            raise BusyError(f"not written within {timeout:g} s; send the same again") from None

    def submit_own(self, kind: str, data: dict[str, object]) -> Outcome:
        """Append an event of the D-Box itself."""
        with self._logging:
            seq = self.store.last_seq(self._own, OWN) + 1
            return self.submit(self._own, OWN, seq, [own_event(self.now(), kind, data)])

    def log_clients(self) -> None:
        """Append an entry for each registration that has none yet; nobody acts in a role the log does not tell of."""
        with self._logging:
            for row in self.store.clients(self.clients_logged):
                client = Client(*row)
                number, kind = client.number, "dbox.client.registered"
                self.submit(self._own, CLIENTS, number, [own_event(client.time, kind, client.fields())])
                self.clients_logged = number

    def receipt(self, number: int, outcome: Outcome | None = None) -> Receipt:
        """The receipt of an entry under the tree head of *outcome*, or the newest one. Raises IndexError."""
        head, note = (outcome.head, outcome.note) if outcome else (self.head, self.note)
        found = self.store.payload(number) if number < head.size else None
        if found is None:
            raise IndexError(number)
        path = tuple(self.tree.inclusion(number, head.size))
        return Receipt(found[0], number, path, note, found[2])

    def receipts(self, numbers: Sequence[int], outcome: Outcome | None = None) -> list[Receipt]:
        """The receipts of several entries."""
        return [self.receipt(number, outcome) for number in numbers]

    def newest(self) -> tuple[Head, Note]:
        """The newest tree head."""
        return self.head, self.note

    def inclusion(self, number: int, size: int) -> list[bytes]:
        """The path of entry *number* to the root of the first *size*. Raises IndexError."""
        if not 0 <= number < size <= self.head.size:
            raise IndexError(number)
        return self.tree.inclusion(number, size)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of *old* entries begins the one of *new*. Raises IndexError."""
        if not 0 < old <= new <= self.head.size:
            raise IndexError(old)
        return self.tree.consistency(old, new)

    def now(self) -> str:
        """The time of the next entries: the clock's, but never before the last tree head."""
        stamp = event.stamp(self.clock())
        return max(stamp, self.head.time) if hasattr(self, "head") else stamp

    # --- The sequencer's own thread ---

    def _work(self) -> None:
        try:
            last = False
            while not last:
                with contextlib.suppress(queue.Empty):
                    first = self._queue.get(timeout=IDLE)
                    if first is None:
                        return
                    batch, last = self._gather(first)
                    self._settle(batch)
                self._rotate()
        finally:
            self.store.close()

    def _gather(self, first: Submission) -> tuple[list[Submission], bool]:
        """All that wait, up to the bounds of a batch; and whether to stop afterwards."""
        batch, entries, octets = [first], len(first.parts), first.size
        with contextlib.suppress(queue.Empty):
            while entries < BATCH_ENTRIES and octets < BATCH_OCTETS:
                more = self._queue.get_nowait()
                if more is None:
                    return batch, True
                batch.append(more)
                entries, octets = entries + len(more.parts), octets + more.size
        return batch, False

    def _settle(self, batch: Sequence[Submission]) -> None:
        """Append a batch and answer everyone in it, also when it failed."""
        try:
            if self._doubt:
                self._reload()
            numbers, rows, refused = self._place(batch)
            if rows:
                self._commit(rows)
            for submission in batch:
                if submission in refused:
                    continue
                submission.done.set_result(Outcome(numbers[id(submission)], self.head, self.note))
        except Exception as error:  # whatever it was, the waiting requests must hear of it
            sys.stderr.write(f"dboxd: batch not written: {error}\n")
            reason = error if isinstance(error, DreError) else DreError(f"not written: {error}")
            for submission in batch:
                if not submission.done.done():
                    submission.done.set_exception(reason)
        finally:
            with self._count:
                self._waiting_octets -= sum(submission.size for submission in batch)
                self._waiting_entries -= sum(len(submission.parts) for submission in batch)

    def _place(self, batch: Sequence[Submission]) -> tuple[dict[int, list[int]], list[Row], list[Submission]]:
        """Give each new entry its number; entries that are there already keep theirs; conflicts are refused."""
        now, rows = self.now(), list[Row]()
        fresh: dict[tuple[str, str, int], tuple[int, str]] = {}
        numbers: dict[int, list[int]] = {}
        refused = []
        for submission in batch:
            mine, new = [], list[Row]()
            try:
                for seq, octets in enumerate(submission.parts, submission.seq):
                    key, digest = (submission.writer, submission.stream, seq), evidence.digest(octets)
                    known = fresh.get(key) or self._stored(key)
                    if known is None:
                        number = len(self.tree) + len(rows) + len(new)
                        new.append(self._row(number, key, now, octets, digest))
                    elif known[1] != digest:
                        raise ConflictError(f"{submission.stream} {seq} holds other octets already (entry {known[0]})")
                    mine.append(known[0] if known else number)
            except ConflictError as error:
                submission.done.set_exception(error)
                refused.append(submission)
                continue
            rows += new
            fresh.update({(row.writer, row.stream, row.seq): (row.number, evidence.digest(row.octets)) for row in new})
            numbers[id(submission)] = mine
        return numbers, rows, refused

    def _stored(self, key: tuple[str, str, int]) -> tuple[int, str] | None:
        found = self.store.find(*key)
        return (found[0], evidence.parse_header(found[1]).digest) if found else None

    def _row(self, number: int, key: tuple[str, str, int], now: str, octets: bytes, digest: str) -> Row:
        writer, stream, seq = key
        header = Header(self.signer.origin, stream, writer, now, seq, len(octets), digest).octets()
        return Row(number, writer, stream, seq, now, header, octets, evidence.leaf_hash(header))

    def _commit(self, rows: Sequence[Row], certificate: tuple[str, str, str] | None = None) -> None:
        """Grow the tree by *rows*, sign it, and make all of it durable, or nothing."""
        old = len(self.tree)
        self.tree.append(row.leaf for row in rows)
        size = len(self.tree)
        try:
            head = Head(self.signer.origin, size, self.tree.root(size), self.now())
            note = self.signer.note(head)
            self.store.append(rows, size, note.format(), certificate)
        except sqlite3.Error:
            self._doubt = True  # COMMIT may have failed after it became durable
            self.tree.truncate(old)
            self._reload()
            if self.head.size != size:
                raise
        except BaseException:
            self.tree.truncate(old)
            raise
        else:
            self.head, self.note = head, note

    def _reload(self) -> None:
        """Rebuild the tree from the database and compare it with the newest tree head. Raises DreError."""
        tree = Tree()
        tree.append(self._leaves())
        text = self.store.head()
        if text is None:
            if len(tree):
                raise DreError(f"{self.store.path}: entries without a tree head")
            head = Head(self.signer.origin, 0, tree.root(0), self.now())
            note = self.signer.note(head)
            self.store.append([], 0, note.format())
        else:
            note = evidence.parse_note(text)
            head = evidence.parse_head(note.text)
        if head.origin != self.signer.origin or head.size != len(tree) or head.root != tree.root(head.size):
            found = f"{len(tree)} entries, the tree head of {head.origin} has {head.size}"
            raise DreError(f"{self.store.path}: does not match its newest tree head: {found}")
        self.tree, self.head, self.note, self._doubt = tree, head, note, False

    def _leaves(self) -> Iterator[bytes]:
        """The leaves as the headers make them; the stored ones only tell which entry was changed."""
        for number, header, leaf in self.store.headers():
            if evidence.leaf_hash(header) != leaf:
                raise DreError(f"{self.store.path}: entry {number} was changed: its header does not have its leaf hash")
            yield leaf

    def _rotate(self) -> None:
        """Replace the sign key when its time has come; the old key signs the entry that names the new one."""
        try:
            made = self.rotate()
            if made is None:
                return
            sign, finish = made
            old, new = (trust.fingerprint(one.certificate) for one in (self.signer.sign, sign))
            data: dict[str, object] = {"old": old, "new": new, "size": self.head.size + 1}
            now, seq = self.now(), self.store.last_seq(self._own, OWN) + 1
            octets = own_event(now, "dbox.key.rotated", data)
            row = self._row(len(self.tree), (self._own, OWN, seq), now, octets, evidence.digest(octets))
            self._commit([row], ("sign", new, pki.pem(sign.certificate).decode()))
            self.signer.replace(sign)
            finish()
        except (DreError, OSError, sqlite3.Error) as error:
            sys.stderr.write(f"dboxd: sign key not replaced, going on with the present one: {error}\n")


def own_event(when: str, kind: str, data: dict[str, object]) -> bytes:
    """The octets of an entry of the D-Box itself: one event line."""
    return event.format(event.Event(when, event.host() + "/dbox", kind, 5, data)).rstrip(b"\n")
