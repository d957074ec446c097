# SPDX-License-Identifier: Apache-2.0
"""A full audit on the box itself, in a thread of its own: every entry and every tree head, in bounded memory.

It finds what was changed below the sequencer. What a box that lies as a whole would hide is for `dbox-audit` on
another host, which remembers the last tree head; the page says so.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dre import event, evidence, files, trust
from dre.errors import DreError, TimedOutError
from dre.evidence import FormatError, Head, TamperedError, VerifyError

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
        except (VerifyError, FormatError) as error:
            result.reason = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it was, an audit that ended early is no good result
            result.reason = f"could not be finished: {error}"
        result.end, result.seconds = event.stamp(), round(time.monotonic() - clock, 1)
        self._keep(result)
        if result.bad is not None:
            self.page.checker.tampered(result.bad)
        told: dict[str, object] = {"by": by, "size": result.size, "heads": result.heads, "bad": result.bad}
        with contextlib.suppress(DreError):
            self.page.log.submit_own("dbox.audit.done", told)

    def _check(self, result: Result) -> None:
        """Raises TamperedError with the first bad index."""
        store, trusted = self.page.store, self.page.checker.trust()
        newest, note = self.page.log.newest()
        trusted.head(note)
        result.size = newest.size
        heads: Iterator[tuple[int, str]] = store.heads()
        size, text = next(heads, (-1, ""))
        nodes: list[tuple[int, bytes]] = []  # complete subtrees from the left, the largest first
        told, good = time.monotonic(), 0  # good: up to here a signed root was right
        while size == 0:
            trusted.head(evidence.parse_note(text))
            size, text = next(heads, (-1, ""))
        for number, _, leaf, *_ in store.walk(0, newest.size):
            level, value = 0, leaf
            while nodes and nodes[-1][0] == level:
                level, value = level + 1, evidence.node_hash(nodes.pop()[1], value)
            nodes.append((level, value))
            result.done = number + 1
            if result.done == size:
                if (wrong := _root(trusted, text, nodes, size)) and size <= newest.size:
                    raise TamperedError(self._locate(good, size, newest), wrong)
                result.heads, good = result.heads + 1, size
                size, text = next(heads, (-1, ""))
            if time.monotonic() - told > TELL:
                told = time.monotonic()
                self._keep(result)
        if result.done != newest.size:
            raise TamperedError(result.done, f"it is not there; the newest tree head has {newest.size}")
        if good != newest.size:
            raise TamperedError(good, f"the tree head of {newest.size} is not in the database")

    def _locate(self, first: int, end: int, head: Head) -> int:
        """The first entry from *first* on whose leaf the tree in the sequencer's memory does not have."""
        for number, _, leaf, *_ in self.page.store.walk(first, end):
            path = self.page.log.inclusion(number, head.size)
            try:
                evidence.verify_inclusion(leaf, number, head.size, path, head.root)
            except VerifyError:
                return int(number)
        return first

    def _keep(self, result: Result) -> None:
        files.write_atomic(self.place / "audit.json", json.dumps(asdict(result)) + "\n", 0o600, durable=False)


def _root(trusted: trust.Trust, text: str, nodes: list[tuple[int, bytes]], size: int) -> str:
    """What is wrong with the tree head of *size* over these complete subtrees; empty when nothing."""
    try:
        head = trusted.head(evidence.parse_note(text))
    except (VerifyError, FormatError) as error:
        return f"tree head of {size}: {error}"
    value = b""
    for _, node in reversed(nodes):
        value = evidence.node_hash(node, value) if value else node
    if head.size != size or head.root != value:
        return f"the entries do not have the root of the tree head of {size}"
    return ""
