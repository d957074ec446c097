# SPDX-License-Identifier: Apache-2.0
"""The client's side of the D-Box: requests over mutual TLS, and the spool that keeps records while it is away.

A record is durable in the spool before `record` returns and needs no network; `drain` delivers in order and may be
repeated: the D-Box knows a record by (writer, stream, seq). Every receipt is checked before the record leaves the
spool, and every tree head must continue the last one this client saw. Trust comes from root.pem alone.

What a program needs is `Recorder.record` and `drain` (a writer), and `Client.get`, `search` and `verify` (a reader).

Beside the spool's files (see dre.spool) the directory `<state>/spool/dbox/<client>/` holds `receipts/`, `head` (the
last tree head seen) and `online.lock`. Receipts: `<stream>-<seq>.tlog-proof`, or of a delivery of several records
`<stream>-<first>-<last>.tlog-proofs.gz`, or of a stream that keeps only the last one `<stream>-last.tlog-proof`.
"""

import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from dre import batch, evidence, files, trust, units
from dre.conf import Conf
from dre.errors import DreError, MissingError, NotFoundError, NotPermittedError, UsageError
from dre.evidence import Header, Note, Receipt, VerifyError
from dre.spool import LARGEST, Record, Spool

__all__ = ["LARGEST", "Client", "Entry", "Record", "Recorder", "frame", "pack", "unframe", "unpack"]
_RUN = re.compile(r"([a-z0-9-]{1,31})-([1-9][0-9]*)-([1-9][0-9]*)\.tlog-proofs\.gz")
_ERRORS: dict[int, type[DreError]] = {
    400: UsageError,
    403: NotPermittedError,
    404: NotFoundError,
    413: UsageError,
    429: MissingError,  # with 503 and 507: not now, and the record may be sent again
    503: MissingError,
    507: MissingError,
}


@dataclass(frozen=True)
class Entry:
    """An entry that was verified; *octets* is None where they were erased."""

    index: int
    header: Header
    octets: bytes | None
    receipt: Receipt


def frame(parts: Sequence[bytes]) -> bytes:
    """Octet strings one after another, each after its length in 4 octets: the body of a batch and of its answer."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def unframe(body: bytes) -> list[bytes]:
    """What `frame` joined. Raises FormatError."""
    parts, at = [], 0
    while at < len(body):
        start = at + 4
        at = start + int.from_bytes(body[at:start], "big")
        if start > len(body) or at > len(body):
            raise evidence.FormatError("a batch that ends in the middle of an entry")
        parts.append(body[start:at])
    return parts


class _LocalConnection(http.client.HTTPConnection):
    """HTTP over the local socket of the D-Box."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Requests to the D-Box in the name of *client*; one connection, not to be shared by threads."""

    def __init__(self, conf: Conf, client: str, timeout: float = 10.0) -> None:
        self.conf = conf
        self.name = units.name(client)
        self.directory = conf.core_state_dir / "spool" / "dbox" / client
        self.timeout = timeout
        self._connection: http.client.HTTPConnection | None = None
        self._trust: trust.Trust | None = None
        self._checked: tuple[Note, evidence.Head] | None = None

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        """The body of a good answer. Raises a DreError for every other; nothing is retried here."""
        named = {f"X-DRE-{key.capitalize()}": value for key, value in headers.items()}
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.timeout = self.timeout
            if self._connection.sock is not None:
                self._connection.sock.settimeout(self.timeout)
            self._connection.request(method, path, body, named)
            response = self._connection.getresponse()
            status, answer, reason = response.status, response.read(), response.reason
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise MissingError(f"D-Box at {self.conf.dbox_url} cannot be reached: {_why(error)}") from None
        if status == 200:
            return answer
        said = answer.decode(errors="replace").strip().split("\n")[0][:300] or reason
        kind: type[DreError] = _ERRORS.get(status, DreError)
        if status == 500 and "tampered" in said:
            kind = VerifyError
        raise kind(f"D-Box at {self.conf.dbox_url}: {said}")

    def _connect(self) -> http.client.HTTPConnection:
        certificates, url = self.conf.dbox_certs_dir, urlsplit(self.conf.dbox_url)
        root = certificates / "root.pem"
        local = url.scheme == "unix"  # known by user and executable, and not by a certificate
        pair = [] if local else [certificates / "clients" / f"{self.name}.{ending}" for ending in ("crt", "key")]
        for path in (root, *pair):
            if not os.access(path, os.R_OK):
                if path.exists():
                    raise NotPermittedError(f"{path}: may not be read by this user")
                hint = f"dbox-init --client {self.name} --role …" if path != root else "dbox-init, or a copy of it"
                raise UsageError(f"{path}: no such file; it comes from: {hint}")
        if local:
            return _LocalConnection(url.path, self.timeout)
        context = ssl.create_default_context(cafile=str(root))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*map(str, pair))
        return http.client.HTTPSConnection(url.hostname or "", url.port or 443, timeout=self.timeout, context=context)

    def append(self, stream: str, seq: int, parts: Sequence[bytes]) -> list[Receipt]:
        """Send *parts* as entries seq, seq+1, … of *stream*, all or none; check and return their receipts."""
        answer = self.request("POST", "/v1/batch", frame(parts), stream=stream, seq=str(seq), receipts="run")
        if answer.startswith(batch.VERSION.encode()):
            receipts = batch.parse(answer).expand(parts)
        else:
            receipts = [evidence.parse_receipt(part) for part in unframe(answer)]
        if len(receipts) != len(parts):
            raise VerifyError(f"D-Box answered {len(parts)} entries with {len(receipts)} receipts")
        for number, (receipt, octets) in enumerate(zip(receipts, parts, strict=True), seq):
            header = self.check(receipt, octets)
            if (header.stream, header.seq) != (stream, number):
                raise VerifyError(f"D-Box answered with the receipt of {header.stream} {header.seq}")
        self.see(receipts[-1].note)
        return receipts

    def check(self, receipt: Receipt, octets: bytes) -> evidence.Header:
        """Check *receipt*, asking the D-Box once for its certificates when a key is new. Raises VerifyError."""
        header, _ = evidence.bind(receipt, octets)
        self.head(receipt.note)
        return header

    def verify(self, receipt: Receipt, octets: bytes) -> Header:
        """Check that *receipt* proves that *octets* are in the log; see `check`. Raises VerifyError."""
        return self.check(receipt, octets)

    def get(self, index: int) -> Entry:
        """Entry *index*, verified under a tree head that continues the last one seen here. Raises DreError."""
        with self.online():
            receipt = evidence.parse_receipt(self.request("GET", f"/v1/entries/{index}/proof"))
            self.see(receipt.note)
            try:
                octets = self.request("GET", f"/v1/entries/{index}/octets")
            except NotFoundError:  # erased, or gone: the header is proven all the same
                header = evidence.parse_header(receipt.header)
                evidence.bind_header(receipt, header)
                return Entry(index, header, None, receipt)
            return Entry(index, self.check(receipt, octets), octets, receipt)

    def search(self, **wanted: str | int) -> Iterator[dict[str, Any]]:
        """The fields of all entries whose stream, type or writer is as *wanted*, of index above *after*: not proven.

        The D-Box may leave out what it does not want to be found; `dbox-audit` sees that, a search does not.
        """
        while True:
            rows = [json.loads(row) for row in self.request("GET", f"/v1/search?{urlencode(wanted)}").splitlines()]
            yield from (row for row in rows if "more" not in row)
            if not rows or ("limit" in wanted and "more" not in rows[-1]):
                return
            wanted["after"] = int(rows[-1]["index"])

    def head(self, note: Note) -> evidence.Head:
        """The tree head of *note* after its signatures were checked. Raises VerifyError."""
        if self._checked is None or self._checked[0] != note:  # all receipts of a batch have the same
            self._checked = note, self._head(note)
        return self._checked[1]

    def _head(self, note: Note) -> evidence.Head:
        if self._trust is not None:
            try:
                return self._trust.head(note)
            except VerifyError:
                pass  # perhaps the sign key was rotated: look once more with fresh certificates
        self._trust = trust.load((self.conf.dbox_certs_dir / "root.pem").read_bytes(), self.request("GET", "/v1/keys"))
        return self._trust.head(note)

    def see(self, note: Note) -> evidence.Head:
        """Check that *note* continues the last tree head seen here, and remember it. Raises VerifyError.

        The caller holds `online`, so that two answers cannot overtake each other.
        """
        head, path = self.head(note), self.directory / "head"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            seen = evidence.parse_head(evidence.parse_note(path.read_text()).text)
        except FileNotFoundError:
            seen = None
        if seen is not None:
            if seen.origin != head.origin:
                raise VerifyError(f"wrong origin: log {head.origin}, but {path} is of log {seen.origin}")
            proof: list[bytes] = []
            if 0 < seen.size < head.size:
                answer = self.request("GET", f"/v1/consistency?old={seen.size}&new={head.size}")
                proof = unframe(answer)
            evidence.verify_consistency(seen.size, seen.root, head.size, head.root, proof)
        if seen is None or head.size > seen.size:
            files.write_atomic(path, note.format())
        return head

    def online(self, timeout: float = 60.0) -> contextlib.AbstractContextManager[None]:
        """The lock under which this client talks to the D-Box and compares tree heads."""
        return files.lock(self.directory / "online.lock", timeout)


class Recorder:
    """What a program calls to have its records in the D-Box, in the name of one certificate of a writer.

    Safe for threads and processes. Of *lean* streams only the last receipt is kept: feeds write more records than
    anybody asks receipts for, and with the last one a whole log must agree.
    """

    def __init__(self, conf: Conf, client: str, lean: Sequence[str] = ()) -> None:
        self.conf = conf
        self.client = units.name(client)
        self.directory = conf.core_state_dir / "spool" / "dbox" / client
        self.lean = lean
        self.spool = Spool(self.directory)
        self._run: dict[Path, list[bytes]] = {}  # the file of receipts that was read last
        self._swept = False  # what a killed one left of a receipt is removed, once

    def record(self, stream: str, octets: bytes, request: str = "") -> int:
        """Make *octets* durable as the next record of *stream* and return its number. Raises DreError.

        The same *request* again, also after a crash, records nothing and returns the first number.
        """
        return self.spool.append(stream, [octets], [request] if request else ())[0]

    def record_all(
        self, stream: str, parts: Sequence[bytes], requests: Sequence[str] = (), *, durable: bool = True
    ) -> list[int]:
        """Make several records durable at once, which is faster; see `record`, and for *durable* `Spool.append`."""
        return self.spool.append(stream, parts, requests, durable=durable)

    def sync(self) -> None:
        """Make durable what `record_all` recorded without. Raises DreError."""
        self.spool.sync()

    def pending(self) -> int:
        """How many records wait for delivery."""
        return sum(1 for _ in self.spool.pending())

    def receipt(self, stream: str, seq: int) -> bytes | None:
        """The receipt of a delivered record, or None."""
        directory = self.directory / "receipts"
        path = directory / f"{units.name(stream)}-{seq}.tlog-proof"
        if path.exists():
            return path.read_bytes()
        for run in [*self._run, *directory.glob(f"{stream}-*.tlog-proofs.gz")]:
            match = _RUN.fullmatch(run.name)
            if match and match[1] == stream and int(match[2]) <= seq <= int(match[3]):
                if run not in self._run:
                    self._run = {run: unpack(run.read_bytes())}
                return self._run[run][seq - int(match[2])]
        return None

    def drain(self, deadline: float = 5.0, told: Callable[[Record, Receipt], None] | None = None) -> int:
        """Deliver what is spooled, in order, for at most about *deadline* seconds; how many were acknowledged now.

        *told* is called for each, once its receipt is durable. Raises DreError when the D-Box cannot be reached or
        refuses; nothing is lost, and a record that was already delivered when we were killed is recognised.
        """
        until = time.monotonic() + deadline
        client, done = Client(self.conf, self.client), 0
        if not self.directory.exists():
            return 0
        try:
            with client.online(deadline):
                while time.monotonic() < until:
                    state, run = self.spool.next()
                    if not run:
                        break
                    client.timeout = max(until - time.monotonic(), 0.1)
                    receipts = client.append(run[0].stream, run[0].seq, [record.octets for record in run])
                    self._keep(run, receipts)
                    self.spool.delivered(state, run)
                    if told is not None:
                        for record, receipt in zip(run, receipts, strict=True):
                            told(record, receipt)
                    done += len(run)
        finally:
            client.close()
        return done

    def _keep(self, run: Sequence[Record], receipts: Sequence[Receipt]) -> None:
        """Make receipts durable: one file each delivery, since a thousand would need a thousand fsync(2).

        Under the lock `Client.online`.
        """
        directory = self.directory / "receipts"
        directory.mkdir(mode=0o700, exist_ok=True)
        if not self._swept:
            files.remove_halves(directory)
            self._swept = True
        first, last = run[0], run[-1]
        if first is last or last.stream in self.lean:
            number = "last" if last.stream in self.lean else last.seq
            files.write_atomic(directory / f"{last.stream}-{number}.tlog-proof", receipts[-1].format())
        else:
            name = f"{first.stream}-{first.seq}-{last.seq}.tlog-proofs.gz"
            files.write_atomic(directory / name, pack([receipt.format().encode() for receipt in receipts]))


def pack(receipts: Sequence[bytes]) -> bytes:
    """Receipts one after another, compressed: they have a tree head and most of their paths in common."""
    return gzip.compress(b"".join(receipts), 1, mtime=0)


def unpack(octets: bytes) -> list[bytes]:
    """The receipts that `pack` joined."""
    begin = evidence.PROOF.encode() + b"\n"
    return [begin + part for part in gzip.decompress(octets).split(begin)[1:]]


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
