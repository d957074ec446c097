# SPDX-License-Identifier: Apache-2.0
"""A full audit on the box itself, that of `dre.audit`, in a thread of its own.

It finds what was changed below the sequencer. What a box that lies as a whole would hide is for `dbox-audit` on
another host, which remembers the last tree head; the page says so.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dre import audit, event, evidence, files
from dre.errors import DreError, TimedOutError
from dre.evidence import Head, TamperedError, VerifyError

from dboxlib.database import Database
from dboxlib.page import accounts

if TYPE_CHECKING:
    from dboxlib.page.app import Page

TELL = 1.0  # seconds between two notes of how far it is


@dataclass
class Result:
    """How far an audit is, or what it found."""

    begin: str
    by: str
    size: int = 0  # entries to look at
    done: int = 0
    heads: int = 0  # tree heads that were checked
    gaps: int = 0  # runs of numbers that writers left out
    end: str = ""
    bad: int | None = None  # the first bad index
    reason: str = ""
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """running, good or bad; lost: the process that ran it is gone."""
        return "running" if not self.end else "bad" if self.reason else "good"


class Audit:
    """The one audit of this box that runs, and the last result."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.place = accounts.directory(page.conf)
        self._told = 0.0

    def last(self) -> Result | None:
        """The result of the last audit, or how far the present one is."""
        try:
            return Result(**json.loads((self.place / "audit.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def running(self) -> bool:
        """Whether one runs, in any process."""
        try:
            with files.lock(self.place / "audit.lock", timeout=0):
                return False
        except TimedOutError:
            return True

    def start(self, by: str) -> None:
        """Begin one. Raises DreError while another one runs."""
        begun, failed = threading.Event(), list[DreError]()

        def work() -> None:
            try:
                with files.lock(self.place / "audit.lock", timeout=0):
                    self._keep(Result(event.stamp(), by, self.page.log.newest()[0].size))
                    begun.set()
                    self._run(by)
            except TimedOutError:
                failed.append(DreError("an audit is running already"))
            finally:
                begun.set()
                self.page.store.close()

        threading.Thread(target=work, name="audit", daemon=True).start()
        begun.wait(10)
        if failed:
            raise failed[0]

    def _run(self, by: str) -> None:
        result, clock = Result(event.stamp(), by), time.monotonic()
        try:
            self._check(result)
        except TamperedError as error:
            result.bad, result.reason = error.index, error.reason
        except Exception as error:  # whatever it was, an audit that ended early is no good result
            result.reason = f"could not be finished: {error}"
        result.end, result.seconds = event.stamp(), round(time.monotonic() - clock, 1)
        if result.bad is not None:
            self.page.checker.tampered(result.bad)
        told: dict[str, object] = {"by": by, "size": result.size, "heads": result.heads, "bad": result.bad}
        with contextlib.suppress(DreError):
            self.page.log.submit_own("dbox.audit.done", told)
        self._keep(result)

    def _check(self, result: Result) -> None:
        """Look at everything there is now; what comes in meanwhile is for the next audit."""
        store, keys = self.page.store, self.page.checker.trust()
        newest, note = self.page.log.newest()
        result.size = newest.size
        source = _Bounded(store, newest.size, lambda done: self._progress(result, done))
        report = audit.Auditor(source, keys, [audit.Mark(newest, "the sequencer's memory", note)]).run()
        result.done, result.heads, result.gaps = report.entries, report.heads, len(report.gaps)
        if report.findings:
            first = min(report.findings, key=lambda finding: finding.index)
            result.bad, result.reason = first.index, first.text
            if first.kind in ("tree", "seen"):  # an entry that agrees with itself was put in the place of another
                found = self._locate(first.index, newest)
                if found is not None:
                    result.bad, result.reason = found, "it is another one than the tree in the sequencer's memory has"

    def _locate(self, first: int, head: Head) -> int | None:
        """The first entry from *first* on whose leaf the tree in the sequencer's memory does not have."""
        for number, _, leaf in self.page.store.headers(first, head.size):
            path = self.page.log.inclusion(number, head.size)
            try:
                evidence.verify_inclusion(leaf, number, head.size, path, head.root)
            except VerifyError:
                return int(number)
        return None

    def _progress(self, result: Result, done: int) -> None:
        result.done = done
        if time.monotonic() - self._told > TELL:
            self._told = time.monotonic()
            self._keep(result)

    def _keep(self, result: Result) -> None:
        files.write_atomic(self.place / "audit.json", json.dumps(asdict(result)) + "\n", 0o600, durable=False)


class _Bounded(Database):
    """The database as far as one tree head goes."""

    def __init__(self, store: Any, size: int, told: Callable[[int], None]) -> None:
        super().__init__(store)
        self._size, self._progress = size, told

    def heads(self, first: int) -> Iterator[tuple[int, str]]:
        """Size and note of the tree heads of at least *first* entries, up to the one in question."""
        for size, note in super().heads(first):
            if size > self._size:
                return
            yield size, note

    def chunks(self, first: int) -> Iterator[audit.Chunk]:
        """The entries from *first* on. Raises TamperedError, after those before it."""
        for one in super().chunks(first):
            most = self._size - one.first
            if most <= 0:
                return
            gone = [number for number in one.gone if number < self._size]
            yield audit.Chunk(one.first, one.leaves[:most], one.keys[:most], one.seqs[:most], one.times[:most], gone)
            self._progress(one.first + len(one.leaves[:most]))
