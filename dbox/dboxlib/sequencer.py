# SPDX-License-Identifier: Apache-2.0
"""The one writer of a log: a queue of submissions, the thread that takes them, and what else may be asked of it.

Request threads hand in submissions and wait; a single thread takes all that are there (group commit), so a slow disk
makes batches larger and not the queue longer. How the log grows is `dboxlib.appender`'s, what is due between batches
`dboxlib.duties`'.
"""

import contextlib
import functools
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dre import evidence, trust
from dre.errors import DreError, NotPermittedError
from dre.evidence import Head, Note, Receipt, TamperedError

from dboxlib import clients
from dboxlib.appender import Appender, Submission, own_event
from dboxlib.clients import Client
from dboxlib.duties import Duties
from dboxlib.log import BusyError, Outcome, QuotaError
from dboxlib.signer import Signer, period
from dboxlib.store import FullError, StorageError, Store
from dboxlib.streams import Streams

BATCH_ENTRIES = 20_000
BATCH_OCTETS = 16 * 1024 * 1024
PAUSE = 0.001  # seconds in which others may join a batch, for as long as some do
PAUSES = 8  # at most
QUEUE_OCTETS = 64 * 1024 * 1024
QUEUE_ENTRIES = 50_000
IDLE = 5.0  # seconds after which an idle log looks at the age of its sign key, and what else is due
CLIENTS = "client"  # stream of registrations; seq is the number of the registration


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


class Sequencer:
    """Owns the writing connection of one store; *eraser* opens it under the account that may erase, if another."""

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
        self.streams = streams or Streams()
        self.appender = Appender(store, signer, clock, self.streams)
        self.duties = Duties(self.appender, eraser)
        self.clients_logged = 0
        self.compat_md5 = False  # whether the first D-Box's signatures are given, too
        if store is not None:
            store.alarm = self._alarm
        self._queue: queue.SimpleQueue[Submission | Task | None] = queue.SimpleQueue()
        self._waiting_octets = self._waiting_entries = 0
        self._count = threading.Lock()
        self._logging = threading.Lock()
        self._crowd = 0  # submissions of the last batch
        self._tampered: dict[int, str] = {}
        self._thread = threading.Thread(target=self._work, name="sequencer")

    def start(self, own: str) -> None:
        """Take the log, read it back and begin; *own* is the fingerprint under which the D-Box itself writes."""
        self.appender.start(own, f"{socket.gethostname()} {os.getpid()}")
        self.duties.finish_erasing()
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
        outcome = self._do(lambda: self.appender.append_own(kind, data))
        assert isinstance(outcome, Outcome)
        return outcome

    def log_clients(self) -> None:
        """Append an entry for each registration that has none yet; nobody acts in a role the log does not tell of."""
        with self._logging:
            for client in self.store.clients(self.clients_logged):
                number, kind = client.number, "dbox.client.registered"
                self.submit(self.appender.own, CLIENTS, number, [own_event(client.time, kind, client.fields())])
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
        head, note = (outcome.head, outcome.note) if outcome else (self.appender.head, self.appender.note)
        found = self.store.provable(number) if 0 <= number < head.size else None
        if found is None:
            raise IndexError(number)
        if evidence.leaf_hash(found[0]) != self.appender.tree.leaf(number):
            self._alarm(TamperedError(number, "its header is not the one in the tree"))
        return Receipt(found[0], number, tuple(self.appender.tree.inclusion(number, head.size)), note, found[1])

    def receipts(self, numbers: Sequence[int], outcome: Outcome | None = None) -> list[Receipt]:
        """The receipts of several entries."""
        return [self.receipt(number, outcome) for number in numbers]

    def newest(self) -> tuple[Head, Note]:
        """The newest tree head."""
        return self.appender.head, self.appender.note

    def inclusion(self, number: int, size: int) -> list[bytes]:
        """The path of entry *number* to the root of the first *size*. Raises IndexError."""
        if not 0 <= number < size <= self.appender.head.size:
            raise IndexError(number)
        return self.appender.tree.inclusion(number, size)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of *old* entries begins the one of *new*. Raises IndexError."""
        if not 0 < old <= new <= self.appender.head.size:
            raise IndexError(old)
        return self.appender.tree.consistency(old, new)

    def signature(self, number: int) -> tuple[str, str, bytes]:
        """The specification's signed digest of an entry, made when it is first asked for and kept."""
        kept = self.store.signature(number)
        return kept or self._do(lambda: self._sign(number))

    def md5_signature(self, number: int) -> tuple[str, bytes] | None:
        """The signature of an entry over MD5 by the present sign key, as the first D-Box gave; None unless wanted."""
        if not self.compat_md5:
            return None
        found = self.store.payload(number)
        if found is None or number >= self.appender.head.size:
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
            client = self.store.client(fingerprint)
            if client is None or not client.holds(self.appender.now()) or client.role != "admin":
                raise NotPermittedError("octets are erased by two admins only")
        if first == second:
            raise NotPermittedError("octets are erased by two different admins")
        outcome = self._do(lambda: self.duties.erase(number, reason, first, second))
        assert isinstance(outcome, Outcome)
        return outcome

    def rotate(self) -> None:
        """Replace the sign key now. Raises DreError."""
        if not self._do(lambda: self.duties.replace_key(True)):
            raise DreError("the sign key was not replaced")

    def anchor(self, kind: str, octets: bytes, name: str = "", size: int | None = None) -> None:
        """Keep what a third party said of the tree head of *size* (the newest when None). Raises DreError."""
        if kind not in ("witness", "rfc3161"):
            raise DreError(f"{kind!r} is no kind of anchor")
        at = self.appender.head.size if size is None else size
        self._do(lambda: self.store.keep_anchor(kind, name, at, self.appender.now(), octets))

    def tampered(self, number: int) -> None:
        """Somebody found an entry that is not what was logged: look, and tell everybody if it is so."""
        with contextlib.suppress(TamperedError):
            if self.store.payload(number) is None and number < self.appender.head.size:
                self._alarm(TamperedError(number, "it is not there"))
            elif number < self.appender.head.size:
                self.receipt(number)

    def status(self) -> dict[str, Any]:
        """The state of the log."""
        begin, end = period(self.signer.sign.certificate)
        key = {"fingerprint": trust.fingerprint(self.signer.sign.certificate), "begin": begin, "end": end}
        disk = self.streams.disk()
        return {
            "origin": self.signer.origin,
            "size": self.appender.head.size,
            "head_time": self.appender.head.time,
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

    # --- The sequencer's own thread ---

    def _work(self) -> None:
        try:
            while self._round():
                self.duties.run()
            self.streams.urge()
            self.duties.report()
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

    def _gather(self, first: Submission) -> tuple[list[Submission], Task | None]:
        """All that wait, up to the bounds of a batch; and what comes after them.

        Where many write at once, those who come while the others are read in go with them: a signature and a
        commit cost as much for one as for all.
        """
        batch, entries, octets = [first], len(first.parts), first.size
        after: Task | None = Task(lambda: None)
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
                after = more
                break
            batch.append(more)
            entries, octets = entries + len(more.parts), octets + more.size
        self._crowd = len(batch)
        return batch, after

    def _settle(self, batch: Sequence[Submission]) -> None:
        """Append a batch and answer everyone in it, also when it failed."""
        try:
            for submission, outcome in zip(batch, self.appender.append(batch), strict=True):
                if outcome is not None:
                    submission.done.set_result(outcome)
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

    def _sign(self, number: int) -> tuple[str, str, bytes]:
        """Make the signed digest of an entry."""
        found = self.store.payload(number)
        if found is None or number >= self.appender.head.size:
            raise IndexError(number)
        header = evidence.parse_header(found[0])
        if self.streams.policy(header.stream).signature == "none":
            raise DreError(f"stream {header.stream} has no signed digests")
        if found[1] is None:
            raise DreError(f"the octets of entry {number} were erased")
        self.store.keep_signature(number, self.appender.now(), self.signer.digest(found[1]))
        kept = self.store.signature(number)
        assert kept is not None
        return kept

    def _alarm(self, error: TamperedError) -> None:
        """Tell once of an entry that is not what was logged."""
        if error.index in self._tampered or len(self._tampered) > 1000:
            return
        self._tampered[error.index] = error.reason
        data: dict[str, object] = {"entry": error.index, "reason": error.reason}
        self.duties.told("dbox.tampered", data)
        self._queue.put(Task(lambda: self.appender.append_own("dbox.tampered", data)))
