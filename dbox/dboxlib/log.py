# SPDX-License-Identifier: Apache-2.0
"""What front, page and tools may ask of the log's one writer, and how it refuses.

`Log` is met by `sequencer.Sequencer` in its own process and by `remote.Remote` over a Unix socket, with the same
exceptions. Reading what lies in the database is not asked here: see `store.open`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dre.batch import Run
from dre.errors import DreError
from dre.evidence import Head, Note, Receipt


class BusyError(DreError):
    """The queue is full, or the log did not write in time: ask again later."""


class ConflictError(DreError):
    """This (writer, stream, seq) is taken by other octets."""


class QuotaError(DreError):
    """A stream has used up what it may: *full* tells a quota or a full disk (HTTP 507) from a rate (HTTP 429)."""

    def __init__(self, message: str, full: bool, retry_after: int) -> None:
        super().__init__(message)
        self.full = full
        self.retry_after = retry_after  # seconds


@dataclass(frozen=True)
class Outcome:
    """Where the entries of a submission are, and a durable tree head over them.

    *last* is the receipt of the last one, so that the usual answer needs no second question. *first* is the path of
    the first one to the same tree head; it is there when the entries follow one another and have one time, which is
    when one receipt can stand for the run (see dre.batch). *salts* are those of an erasable stream.
    """

    numbers: list[int]
    head: Head
    note: Note
    last: Receipt | None = None
    first: tuple[bytes, ...] | None = None
    salts: tuple[bytes, ...] = ()

    def run(self) -> Run:
        """The one receipt for all of them, where *first* is there."""
        assert self.first is not None and self.last is not None
        return Run(self.numbers[0], self.first, self.last, self.salts)


class Log(Protocol):
    """One log that grows."""

    @property
    def clients_logged(self) -> int:
        """The number of the last registration that has its entry."""
        ...

    def submit(self, writer: str, stream: str, seq: int, parts: Sequence[bytes], timeout: float = 60.0) -> Outcome:
        """Append entries, all or none, and return when they are durable; the same again has the same answer.

        Raises BusyError, ConflictError, QuotaError, DreError.
        """
        ...

    def append(self, writer: str, stream: str, seq: int, octets: bytes) -> bytes:
        """Append one entry as `submit` does; its receipt as it travels (dre.evidence)."""
        ...

    def submit_own(self, kind: str, data: Mapping[str, object]) -> Outcome:
        """Append an event of the D-Box itself to stream `dbox`."""
        ...

    def log_clients(self) -> None:
        """Append an entry for each registration that has none yet."""
        ...

    def register(self, fingerprint: str, name: str, role: str, streams: str = "", local: str = "") -> None:
        """Give a client a role, or another one, by the rules of `clients.change`; it is in the log on return.

        Raises DreError, UsageError.
        """
        ...

    def newest(self) -> tuple[Head, Note]:
        """The newest tree head."""
        ...

    def inclusion(self, number: int, size: int) -> list[bytes]:
        """The path of entry *number* to the root of the first *size*. Raises IndexError."""
        ...

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of *old* entries begins the one of *new*. Raises IndexError."""
        ...

    def receipt(self, number: int, outcome: Outcome | None = None) -> Receipt:
        """The receipt of an entry under the tree head of *outcome*, or the newest. Raises IndexError, DreError."""
        ...

    def receipts(self, numbers: Sequence[int], outcome: Outcome | None = None) -> list[Receipt]:
        """The receipts of several entries."""
        ...

    def signature(self, number: int) -> tuple[str, str, bytes]:
        """The specification's signed digest: fingerprint of the sign key's certificate, time, value.

        Raises IndexError without such an entry, DreError where its stream has none or its octets are gone.
        """
        ...

    def md5_signature(self, number: int) -> tuple[str, bytes] | None:
        """Fingerprint of the sign key's certificate and signature over MD5, where DRE_DBOX_COMPAT_MD5 wants it.

        Raises IndexError, DreError as `signature`.
        """
        ...

    def erase(self, number: int, reason: str, first: str, second: str) -> Outcome:
        """Remove octets and salt of an entry, as two different admins (fingerprints) want; the proof stays.

        Returns where the entry `dbox.erased` is. Raises IndexError, DreError.
        """
        ...

    def rotate(self) -> None:
        """Replace the sign key now. Raises DreError."""
        ...

    def anchor(self, kind: str, octets: bytes, name: str = "", size: int | None = None) -> None:
        """Keep what a third party said of the tree head of *size* (the newest when None).

        *kind* is `witness` (octets: a cosignature line) or `rfc3161` (a token), *name* says whose. Raises DreError.
        """
        ...

    def tampered(self, number: int) -> None:
        """Somebody read an entry that is not what was logged: look, and if it is so, log and tell it."""
        ...

    def status(self) -> dict[str, Any]:
        """The state of the log; the keys are listed in dbox(7)."""
        ...
