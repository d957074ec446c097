# SPDX-License-Identifier: Apache-2.0
"""The client's side of the D-Box: requests over mutual TLS, and the spool that keeps records while it is away.

A record is durable in the spool before `record` returns and needs no network; `drain` delivers in order and may be
repeated: the D-Box knows a record by (writer, stream, seq). Every receipt is checked before the record leaves the
spool, and every tree head must continue the last one this client saw. Trust comes from root.pem alone.

Spool directory `<state>/spool/dbox/<client>/`: `records-<n>` (frames), `state` (how far they are delivered),
`receipts/<stream>-<seq>.tlog-proof`, `head` (the last tree head seen), `lock`, `online.lock`.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dre import evidence, files, trust, units
from dre.conf import Conf
from dre.errors import DreError, MissingError, NotFoundError, NotPermittedError, UsageError
from dre.evidence import Note, Receipt, VerifyError

LARGEST = 16 * 1024 * 1024  # octets of one entry
BATCH_RECORDS = 100
BATCH_OCTETS = 1024 * 1024
NEW_FILE = 4 * 1024 * 1024  # octets after which a fully delivered records file is replaced
_FRAME = re.compile(rb"dre-record/v1 (([a-z0-9-]{1,31}) ([1-9][0-9]*) ([0-9]+)) ([0-9a-f]{64})\n")
_FRAME_LINE = 200  # more octets than the longest first line of a frame


@dataclass(frozen=True)
class Record:
    """A record in the spool; *end* is the offset of what follows it."""

    stream: str
    seq: int
    octets: bytes
    end: int


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


class Client:
    """Requests to the D-Box in the name of *client*; one connection, not to be shared by threads."""

    def __init__(self, conf: Conf, client: str, timeout: float = 10.0) -> None:
        self.conf = conf
        self.name = units.name(client)
        self.directory = conf.core_state_dir / "spool" / "dbox" / client
        self.timeout = timeout
        self._connection: http.client.HTTPSConnection | None = None
        self._trust: trust.Trust | None = None

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
        kind = {403: NotPermittedError, 404: NotFoundError, 400: UsageError, 503: MissingError}.get(status, DreError)
        raise kind(f"D-Box at {self.conf.dbox_url}: {said}")

    def _connect(self) -> http.client.HTTPSConnection:
        certificates = self.conf.dbox_certs_dir
        root = certificates / "root.pem"
        pair = [certificates / "clients" / f"{self.name}.{ending}" for ending in ("crt", "key")]
        for path in (root, *pair):
            if not os.access(path, os.R_OK):
                if path.exists():
                    raise NotPermittedError(f"{path}: may not be read by this user")
                hint = f"dbox-init --client {self.name} --role …" if path != root else "dbox-init, or a copy of it"
                raise UsageError(f"{path}: no such file; it comes from: {hint}")
        context = ssl.create_default_context(cafile=str(root))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*map(str, pair))
        url = urlsplit(self.conf.dbox_url)
        return http.client.HTTPSConnection(url.hostname or "", url.port or 443, timeout=self.timeout, context=context)

    def append(self, stream: str, seq: int, parts: Sequence[bytes]) -> list[Receipt]:
        """Send *parts* as entries seq, seq+1, … of *stream*, all or none; check and return their receipts."""
        answer = self.request("POST", "/v1/batch", frame(parts), stream=stream, seq=str(seq))
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

    def head(self, note: Note) -> evidence.Head:
        """The tree head of *note* after its signatures were checked. Raises VerifyError."""
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
    """The spool of one writer certificate. Safe for threads and processes: each step holds a lock on a file."""

    def __init__(self, conf: Conf, client: str) -> None:
        self.conf = conf
        self.client = units.name(client)
        self.directory = conf.core_state_dir / "spool" / "dbox" / client
        self._lock = self.directory / "lock"
        self._known: tuple[int, int, dict[str, int]] = (0, 0, {})  # file, its end, last number of each stream

    def record(self, stream: str, octets: bytes) -> int:
        """Make *octets* durable as the next record of *stream* and return its number. Raises DreError."""
        units.name(stream)
        if not 0 < len(octets) <= LARGEST:
            raise UsageError(f"a record of {len(octets)} octets; it has at least one, and at most {LARGEST}")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.lock(self._lock):
            state = self._state()
            path, (file, end, last) = self._path(state.file), self._known
            size = path.stat().st_size if path.exists() else 0
            if file != state.file or end > size:
                end, last = state.offset, state.acked
            for record in _records(path, end):  # what others recorded since; mostly nothing
                end, last = record.end, {**last, record.stream: record.seq}
            seq = last.get(stream, 0) + 1
            name = f"{stream} {seq} {len(octets)}".encode()
            octets = b"dre-record/v1 %b %b\n%b\n" % (name, _sum(name, octets), octets)
            _append(path, end, octets)
            self._known = (state.file, end + len(octets), {**last, stream: seq})
            return seq

    def pending(self) -> int:
        """How many records wait for delivery."""
        if not self.directory.exists():
            return 0
        with files.lock(self._lock):
            state = self._state()
            return sum(1 for _ in _records(self._path(state.file), state.offset))

    def receipt(self, stream: str, seq: int) -> bytes | None:
        """The receipt of a delivered record, or None."""
        path = self.directory / "receipts" / f"{units.name(stream)}-{seq}.tlog-proof"
        return path.read_bytes() if path.exists() else None

    def drain(self, deadline: float = 5.0) -> int:
        """Deliver what is spooled, in order, for at most about *deadline* seconds; how many were acknowledged now.

        Raises DreError when the D-Box cannot be reached or refuses; nothing is lost, and a record that was already
        delivered when we were killed is recognised.
        """
        until = time.monotonic() + deadline
        client, done = Client(self.conf, self.client), 0
        if not self.directory.exists():
            return 0
        try:
            with client.online(deadline):
                while time.monotonic() < until:
                    state, run = self._next()
                    if not run:
                        break
                    client.timeout = max(until - time.monotonic(), 0.1)
                    self._deliver(client, state, run)
                    done += len(run)
        finally:
            client.close()
        return done

    def _next(self) -> tuple["_State", list[Record]]:
        with files.lock(self._lock):
            state = self._state()
            return state, _run(_records(self._path(state.file), state.offset))

    def _deliver(self, client: Client, state: "_State", run: Sequence[Record]) -> None:
        receipts = client.append(run[0].stream, run[0].seq, [record.octets for record in run])
        directory = self.directory / "receipts"
        directory.mkdir(mode=0o700, exist_ok=True)
        for record, receipt in zip(run, receipts, strict=True):
            files.write_atomic(directory / f"{record.stream}-{record.seq}.tlog-proof", receipt.format())
        acked = {**state.acked, run[-1].stream: run[-1].seq}
        with files.lock(self._lock):
            path, offset = self._path(state.file), run[-1].end
            # Only this process delivers (online.lock) and only under the lock do records come in.
            if offset >= NEW_FILE and offset == path.stat().st_size:
                self._save(_State(state.file + 1, 0, acked))
                path.unlink()
            else:
                self._save(_State(state.file, offset, acked))

    def _path(self, number: int) -> Path:
        return self.directory / f"records-{number}"

    def _state(self) -> "_State":
        try:
            fields = json.loads((self.directory / "state").read_text())
            return _State(fields["file"], fields["offset"], fields["acked"])
        except FileNotFoundError:
            return _State(1, 0, {})
        except (ValueError, KeyError, TypeError) as error:
            raise DreError(f"{self.directory / 'state'}: damaged: {error}") from None

    def _save(self, state: "_State") -> None:
        files.write_atomic(self.directory / "state", json.dumps(state.__dict__) + "\n", 0o600)


@dataclass(frozen=True)
class _State:
    """Which records file is in use, how far it is delivered, and the last delivered number of each stream."""

    file: int
    offset: int
    acked: dict[str, int]


def _records(path: Path, offset: int) -> Iterator[Record]:
    """The whole records from *offset* on; what a killed writer left unfinished at the end of the file is no record.

    Raises DreError for damage before the end.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        size = os.fstat(stream.fileno()).st_size
        while offset < size:
            stream.seek(offset)
            line = stream.readline(_FRAME_LINE)
            match = _FRAME.fullmatch(line)
            octets = stream.read(int(match[4])) if match else b""
            if not match or stream.read(1) != b"\n" or _sum(match[1], octets) != match[5]:
                # Each frame was durable before the next began, so only the last can be torn.
                if stream.tell() >= size or not line.strip(b"\0"):
                    return
                raise DreError(f"{path}: damaged at octet {offset}")
            offset = stream.tell()
            yield Record(match[2].decode(), int(match[3]), octets, offset)


def _sum(name: bytes, octets: bytes) -> bytes:
    return hashlib.sha256(name + b"\n" + octets).hexdigest().encode()


def _append(path: Path, end: int, octets: bytes) -> None:
    """Put *octets* at *end* of the file, cutting off a torn rest; durable on return, and on failure as before."""
    new = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, end)
        try:
            view = memoryview(octets)
            while view:
                written = os.pwrite(fd, view, end + len(octets) - len(view))
                view = view[written:]
            os.fdatasync(fd)
        except OSError as error:
            os.ftruncate(fd, end)
            raise DreError(f"{path}: cannot record: {error.strerror}") from None
    finally:
        os.close(fd)
    if new:
        files.fsync_dir(path.parent)


def _run(records: Iterator[Record]) -> list[Record]:
    """The next records that can go in one batch: one stream, bounded."""
    run: list[Record] = []
    octets = 0
    for record in records:
        octets += len(record.octets)
        if run and (record.stream != run[0].stream or len(run) == BATCH_RECORDS or octets > BATCH_OCTETS):
            break
        run.append(record)
    return run


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
