# SPDX-License-Identifier: Apache-2.0
"""The one place where a log grows: batches of entries, each batch one transaction under one signed tree head.

Request threads hand in submissions and wait; a single thread takes all that are there (group commit), so a slow disk
makes batches larger and not the queue longer. No tree head leaves before its transaction is durable, and after a
commit of unknown outcome the database is read again before anything else is signed: the same size must never be
signed twice with different roots for others to see.
"""

import contextlib
import functools
import hashlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dre import event, evidence, trust
from dre.errors import DreError, NotPermittedError
from dre.evidence import Head, Note, Receipt, TamperedError, Tree

from dboxlib import clients, pki, store
from dboxlib.clients import Client
from dboxlib.log import BusyError, ConflictError, Outcome, QuotaError
from dboxlib.signer import Signer, SignKey, period
from dboxlib.store import Batch, FencedError, FullError, Known, Row, StorageError, Store
from dboxlib.streams import Streams

BATCH_ENTRIES = 20_000
BATCH_OCTETS = 16 * 1024 * 1024
PAUSE = 0.001  # seconds in which others may join a batch, for as long as some do
PAUSES = 8  # at most
QUEUE_OCTETS = 64 * 1024 * 1024
QUEUE_ENTRIES = 50_000
IDLE = 5.0  # seconds after which an idle log looks at the age of its sign key, and what else is due
EXPIRE = 60.0  # seconds between looks for octets whose time is over
EXPIRED = 5_000  # octets erased at once
OWN = "dbox"  # stream of the D-Box's own entries: start of the log, change of sign key, refusals
CLIENTS = "client"  # stream of registrations; seq is the number of the registration
Rotate = Callable[[bool], tuple[SignKey, Callable[[], None]] | None]


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


@dataclass
class Task:
    """Something else that only the sequencer's thread may do."""

    call: Callable[[], Any]
    done: "Future[Any]" = field(default_factory=Future)

    def run(self) -> None:
        """Do it and tell how it went."""
        try:
            self.done.set_result(self.call())
        except Exception as error:
            self.done.set_exception(error)


@dataclass(frozen=True)
class _Placed:
    """The entries of a submission: where they are, and the new ones among them."""

    numbers: list[int]
    rows: list[Row]


class Sequencer:
    """Owns the tree, the signer and the writing connection of one store."""

    def __init__(
        self,
        store: Store,
        signer: Signer,
        clock: Callable[[], float] = time.time,
        streams: Streams | None = None,
        eraser: Callable[[], Store] | None = None,
    ) -> None:
        self.store = store
        self.signer = signer
        self.clock = clock
        self.streams = streams or Streams()
        self.tree = Tree()
        self.head: Head
        self.note: Note
        self.rotation: Rotate = lambda _now: None
        self.told: Callable[[str, dict[str, object]], None] = lambda _kind, _data: None  # emits an event
        self.clients_logged = 0
        self.compat_md5 = False  # whether the first D-Box's signatures are given, too
        if store is not None:
            store.alarm = self._alarm
        self.over = threading.Event()  # another sequencer has taken over
        self._eraser = eraser  # the database under the account that may erase, where that is another one
        self._epoch = 0
        self._own = ""
        self._queue: queue.SimpleQueue[Submission | Task | None] = queue.SimpleQueue()
        self._waiting_octets = self._waiting_entries = 0
        self._count = threading.Lock()
        self._logging = threading.Lock()
        self._doubt = False
        self._crowd = 0  # submissions of the last batch
        self._top: dict[tuple[str, str], int] = {}  # the highest number of each source, as far as it was asked for
        self._expired: dict[str, int] = {}  # up to where octets of a stream have gone
        self._looked = float("-inf")
        self._tampered: dict[int, str] = {}
        self._thread = threading.Thread(target=self._work, name="sequencer")

    def start(self, own: str) -> None:
        """Take the log, read it back and begin; *own* is the fingerprint under which the D-Box itself writes."""
        self._own = own
        self._epoch = self.store.take(event.stamp(self.clock()), f"{socket.gethostname()} {os.getpid()}")
        self._reload()
        self._finish_erasing()
        self.clients_logged = self.store.last_seq(own, CLIENTS)
        self._thread.start()

    def stop(self) -> None:
        """Finish what was handed in, then end."""
        self._queue.put(None)
        self._thread.join()

    # --- What others ask: any thread ---

    def submit(self, writer: str, stream: str, seq: int, parts: Sequence[bytes], timeout: float = 60.0) -> Outcome:
        """Append entries and return when they are durable; the same ones again give the same answer.

        Raises BusyError, ConflictError, QuotaError, DreError.
        """
        done = self.hand_in(writer, stream, seq, parts)
        try:
            return done.result(timeout)
        except TimeoutError:
            raise BusyError(f"not written within {timeout:g} s; send the same again") from None

    def append(self, writer: str, stream: str, seq: int, octets: bytes) -> bytes:
        """Append one entry; its receipt as it travels."""
        return self.receipt_of(self.submit(writer, stream, seq, [octets]))

    def receipt_of(self, outcome: Outcome) -> bytes:
        """The receipt of the last entry of a submission, as it travels."""
        return (outcome.last or self.receipt(outcome.numbers[-1], outcome)).format().encode()

    def hand_in(self, writer: str, stream: str, seq: int, parts: Sequence[bytes]) -> "Future[Outcome]":
        """What `submit` does without waiting. Raises BusyError."""
        submission = Submission(writer, stream, seq, parts)
        with self._count:
            octets, entries = self._waiting_octets + submission.size, self._waiting_entries + len(parts)
            if self._waiting_entries and (octets > QUEUE_OCTETS or entries > QUEUE_ENTRIES):
                self.streams.count(stream, "queue", len(parts), submission.size)
                raise BusyError("too many entries are waiting to be written")
            self._waiting_octets, self._waiting_entries = octets, entries
        self._queue.put(submission)
        return submission.done

    def _do(self, call: Callable[[], Any], timeout: float = 60.0) -> Any:
        """Have the sequencer's thread do something between two batches."""
        task = Task(call)
        self._queue.put(task)
        try:
            return task.done.result(timeout)
        except TimeoutError:
            raise BusyError(f"not done within {timeout:g} s") from None

    def submit_own(self, kind: str, data: Mapping[str, object]) -> Outcome:
        """Append an event of the D-Box itself."""
        outcome = self._do(lambda: self._append_own(kind, data))
        assert isinstance(outcome, Outcome)
        return outcome

    def log_clients(self) -> None:
        """Append an entry for each registration that has none yet; nobody acts in a role the log does not tell of."""
        with self._logging:
            for row in self.store.clients(self.clients_logged):
                client = Client(*row)
                number, kind = client.number, "dbox.client.registered"
                self.submit(self._own, CLIENTS, number, [own_event(client.time, kind, client.fields())])
                self.clients_logged = number

    def register(self, fingerprint: str, name: str, role: str, streams: str = "", local: str = "") -> None:
        """Give a client a role, or another one; the last administrator stays. It is in the log on return."""
        client = Client(0, fingerprint, name, role, "", streams, local)
        self._do(lambda: clients.change(self.store, client))
        self.log_clients()

    def receipt(self, number: int, outcome: Outcome | None = None) -> Receipt:
        """The receipt of an entry under the tree head of *outcome*, or the newest one. Raises IndexError, DreError."""
        if outcome is not None and outcome.last is not None and outcome.last.index == number:
            return outcome.last
        head, note = (outcome.head, outcome.note) if outcome else (self.head, self.note)
        found = self.store.provable(number) if 0 <= number < head.size else None
        if found is None:
            raise IndexError(number)
        if evidence.leaf_hash(found[0]) != self.tree.leaf(number):
            self._alarm(TamperedError(number, "its header is not the one in the tree"))
        return Receipt(found[0], number, tuple(self.tree.inclusion(number, head.size)), note, found[1])

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

    def signature(self, number: int) -> tuple[str, str, bytes]:
        """The specification's signed digest of an entry, made when it is first asked for and kept."""
        kept = self.store.signature(number)
        return kept or self._do(lambda: self._sign(number))

    def md5_signature(self, number: int) -> tuple[str, bytes] | None:
        """The signature of an entry over MD5 by the present sign key, as the first D-Box gave; None unless wanted."""
        if not self.compat_md5:
            return None
        found = self.store.payload(number)
        if found is None or number >= self.head.size:
            raise IndexError(number)
        octets = found[1]
        if octets is None:
            raise DreError(f"the octets of entry {number} were erased")
        made: tuple[str, bytes] = self._do(functools.partial(self._sign_md5, octets))
        return made

    def _sign_md5(self, octets: bytes) -> tuple[str, bytes]:
        return trust.fingerprint(self.signer.sign.certificate), self.signer.md5(octets)

    def erase(self, number: int, reason: str, first: str, second: str) -> Outcome:
        """Remove octets and salt of an entry, as two admins want; the proof stays. Raises IndexError, DreError."""
        if not 0 < len(reason) <= 500 or not reason.isprintable():
            raise DreError("expected a reason of 1 to 500 printable characters")
        for fingerprint in (first, second):
            row = self.store.client(fingerprint)
            if row is None or not Client(*row).holds(self.now()) or Client(*row).role != "admin":
                raise NotPermittedError("octets are erased by two admins only")
        if first == second:
            raise NotPermittedError("octets are erased by two different admins")
        outcome = self._do(lambda: self._erase(number, reason, first, second))
        assert isinstance(outcome, Outcome)
        return outcome

    def rotate(self) -> None:
        """Replace the sign key now. Raises DreError."""
        if not self._do(lambda: self._replace_key(True)):
            raise DreError("the sign key was not replaced")

    def anchor(self, kind: str, octets: bytes, name: str = "", size: int | None = None) -> None:
        """Keep what a third party said of the tree head of *size* (the newest when None). Raises DreError."""
        if kind not in ("witness", "rfc3161"):
            raise DreError(f"{kind!r} is no kind of anchor")
        at = self.head.size if size is None else size
        self._do(lambda: self.store.keep_anchor(kind, name, at, self.now(), octets))

    def tampered(self, number: int) -> None:
        """Somebody found an entry that is not what was logged: look, and tell everybody if it is so."""
        with contextlib.suppress(TamperedError):
            if self.store.payload(number) is None and number < self.head.size:
                self._alarm(TamperedError(number, "it is not there"))
            elif number < self.head.size:
                self.receipt(number)

    def status(self) -> dict[str, Any]:
        """The state of the log."""
        begin, end = period(self.signer.sign.certificate)
        key = {"fingerprint": trust.fingerprint(self.signer.sign.certificate), "begin": begin, "end": end}
        disk = self.streams.disk()
        return {
            "origin": self.signer.origin,
            "size": self.head.size,
            "head_time": self.head.time,
            "key": key,
            "anchors": [
                {"kind": kind, "name": name, "size": size, "time": when}
                for kind, name, size, when, _ in self.store.anchors()[-100:]
            ],
            "streams": self.streams.status(),
            "queue": self._waiting_entries,
            "disk": {"free": disk[0], "total": disk[1]} if disk else None,
            "refused": self.streams.refused,
            "tampered": [{"index": number, "reason": reason} for number, reason in sorted(self._tampered.items())],
        }

    def now(self) -> str:
        """The time of the next entries: the clock's, but never before the last tree head."""
        stamp = event.stamp(self.clock())
        return max(stamp, self.head.time) if hasattr(self, "head") else stamp

    # --- The sequencer's own thread ---

    def _work(self) -> None:
        try:
            while self._round():
                self._due()
            self.streams.urge()
            self._report()
        finally:
            self.store.close()

    def _round(self) -> bool:
        """Do what waits, or nothing for a while; False when it is time to end."""
        try:
            item = self._queue.get(timeout=IDLE)
        except queue.Empty:
            return True
        while item is not None:
            if isinstance(item, Task):
                item.run()
                return True
            batch, item = self._gather(item)
            self._settle(batch)
        return False

    def _gather(self, first: Submission) -> tuple[list[Submission], Submission | Task | None]:
        """All that wait, up to the bounds of a batch; and what comes after them.

        Where many write at once, those who come while the others are read in go with them: a signature and a
        commit cost as much for one as for all.
        """
        batch, entries, octets = [first], len(first.parts), first.size
        pauses = PAUSES if self._crowd > 1 else 0
        while entries < BATCH_ENTRIES and octets < BATCH_OCTETS:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                if not pauses:
                    break
                pauses -= 1
                time.sleep(PAUSE)
                if self._queue.empty():
                    break
                continue
            if not isinstance(more, Submission):
                return batch, more
            batch.append(more)
            entries, octets = entries + len(more.parts), octets + more.size
        self._crowd = len(batch)
        return batch, Task(lambda: None)

    def _settle(self, batch: Sequence[Submission]) -> None:
        """Append a batch and answer everyone in it, also when it failed."""
        try:
            if self._doubt:
                self._reload()
            placed = self._place(batch)
            rows = [row for found in placed for row in (found.rows if found else ())]
            if rows:
                self._commit(rows)
            for submission, found in zip(batch, placed, strict=True):
                if found is not None:
                    submission.done.set_result(self._outcome(found))
        except Exception as error:  # whatever it was, the waiting requests must hear of it
            sys.stderr.write(f"dbox: batch not written: {error}\n")
            self._refuse(batch, error)
        finally:
            with self._count:
                self._waiting_octets -= sum(submission.size for submission in batch)
                self._waiting_entries -= sum(len(submission.parts) for submission in batch)

    def _refuse(self, batch: Sequence[Submission], error: Exception) -> None:
        reason: DreError = error if isinstance(error, DreError) else DreError(f"not written: {error}")
        if isinstance(error, StorageError):
            reason = DreError(f"not written: {error}")
        for submission in batch:
            if submission.done.done():
                continue
            if isinstance(error, FullError):
                self.streams.count(submission.stream, "disk", len(submission.parts), submission.size)
                submission.done.set_exception(QuotaError(f"not written: {error}", True, 60))
            else:
                submission.done.set_exception(reason)

    def _place(self, batch: Sequence[Submission]) -> list[_Placed | None]:
        """Give each new entry its number; what is there already keeps its own. Who is refused hears of it here."""
        now = max(int(self.clock() * 1000), store.milliseconds(self.head.time))
        stamp = store.text_time(now)
        fresh: dict[tuple[str, str, int], Row] = {}
        octets: dict[str, int] = {}
        placed: list[_Placed | None] = []
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
    ) -> _Placed:
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
        if rows and writer != self._own:
            self.streams.admit(stream, len(rows), sum(len(row.octets) for row in rows), more)
        for row in rows:
            fresh[writer, stream, row.seq] = row
        self._top[key] = max(self._top[key], last)
        return _Placed(numbers, rows)

    def _highest(self, key: tuple[str, str]) -> int:
        if key not in self._top:
            self._top[key] = self.store.last_seq(*key)
        return self._top[key]

    def _outcome(self, placed: _Placed) -> Outcome:
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
            self._reload()
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

    def _reload(self) -> None:
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

    # --- What is due between batches ---

    def _due(self) -> None:
        for duty in (lambda: self._replace_key(False), self._report, self._expire):
            try:
                duty()
            except FencedError:
                return
            except (DreError, OSError) as error:
                sys.stderr.write(f"dbox: {error}\n")

    def _append_own(self, kind: str, data: Mapping[str, object], **more: Any) -> Outcome:
        """An entry of the D-Box itself, in a batch of its own."""
        if self._doubt:
            self._reload()
        seq = self._highest((self._own, OWN)) + 1
        octets = own_event(self.now(), kind, data)
        submission = Submission(self._own, OWN, seq, [octets])
        (placed,) = self._place([submission])
        if placed is None:
            raise submission.done.exception() or DreError("not written")
        self._commit(placed.rows, **more)
        return self._outcome(placed)

    def _replace_key(self, now: bool) -> bool:
        """Replace the sign key when its time has come; the old key signs the entry that names the new one."""
        try:
            made = self.rotation(now)
            if made is None:
                return False
            sign, finish = made
            old, new = (trust.fingerprint(one.certificate) for one in (self.signer.sign, sign))
            data: dict[str, object] = {"old": old, "new": new, "size": self.head.size + 1}
            certificate = ("sign", new, pki.pem(sign.certificate).decode())
            self._append_own("dbox.key.rotated", data, certificate=certificate)
            self.signer.replace(sign)
            finish()
        except (DreError, OSError) as error:
            raise DreError(f"sign key not replaced, going on with the present one: {error}") from None
        return True

    def _report(self) -> None:
        """Make the refusals of the last minute entries of the log."""
        found = self.streams.report()
        for data in found:
            self._append_own("dbox.refused", data)
            self.told("dbox.refused", data)
        if found:
            self.streams.reported()

    def _sign(self, number: int) -> tuple[str, str, bytes]:
        """Make the signed digest of an entry."""
        found = self.store.payload(number)
        if found is None or number >= self.head.size:
            raise IndexError(number)
        header = evidence.parse_header(found[0])
        if self.streams.policy(header.stream).signature == "none":
            raise DreError(f"stream {header.stream} has no signed digests")
        if found[1] is None:
            raise DreError(f"the octets of entry {number} were erased")
        self.store.keep_signature(number, self.now(), self.signer.digest(found[1]))
        kept = self.store.signature(number)
        assert kept is not None
        return kept

    # --- Octets that go: the reason is in the log before they do ---

    def _erase(self, number: int, reason: str, first: str, second: str) -> Outcome:
        found = self.store.payload(number)
        if found is None or number >= self.head.size:
            raise IndexError(number)
        if found[1] is None:
            raise DreError(f"the octets of entry {number} were erased already")
        header = evidence.parse_header(found[0])
        data: dict[str, object] = {"entry": number, "reason": reason, "first": first, "second": second}
        row = (number, len(found[1]), self.now(), reason, first, second)
        outcome = self._append_own("dbox.erased", data, erased=[row])
        self._remove([number])
        self.streams.add(header.stream, 0, -len(found[1]))
        return outcome

    def _remove(self, numbers: Sequence[int]) -> None:
        if self._eraser is None:
            self.store.erase(numbers)
            return
        with contextlib.closing(self._eraser()) as other:
            other.erase(numbers)

    def _finish_erasing(self) -> None:
        """Remove octets that have a reason already: somebody was killed in between."""
        left = self.store.unfinished()
        if left:
            self._remove(left)
            self._reload()

    def _expire(self) -> None:
        """Erase octets that a stream keeps for a time only."""
        now = time.monotonic()
        if now - self._looked < EXPIRE or not self.streams.policies.any_keeps():
            return
        self._looked = now
        sources: dict[str, list[int]] = {}
        for number, (writer, stream) in self.store.sources().items():
            if writer != self._own:
                sources.setdefault(stream, []).append(number)
        for stream, numbers in sources.items():
            keep = self.streams.policy(stream).keep
            if keep is not None:
                self._expire_stream(stream, numbers, int((self.clock() - keep) * 1000))

    def _expire_stream(self, stream: str, sources: Sequence[int], before: int) -> None:
        end = self.store.first_at(before)
        found = self.store.old(sources, end, self._expired.get(stream, 0), EXPIRED)
        if not found:
            self._expired[stream] = end
            return
        numbers = [number for number, _ in found]
        data: dict[str, object] = {
            "stream": stream,
            "first": numbers[0],
            "last": numbers[-1],
            "entries": len(found),
        }
        when = self.now()
        rows = [(number, length, when, "retention", "", "") for number, length in found]
        self._append_own("dbox.expired", data, erased=rows)
        self._remove(numbers)
        self.streams.add(stream, 0, -sum(length for _, length in found))
        self._expired[stream] = numbers[-1] + 1
        if len(found) == EXPIRED:
            self._looked = float("-inf")  # there is more

    def _alarm(self, error: TamperedError) -> None:
        """Tell once of an entry that is not what was logged."""
        if error.index in self._tampered or len(self._tampered) > 1000:
            return
        self._tampered[error.index] = error.reason
        data: dict[str, object] = {"entry": error.index, "reason": error.reason}
        self.told("dbox.tampered", data)
        self._queue.put(Task(lambda: self._append_own("dbox.tampered", data)))


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
