# SPDX-License-Identifier: Apache-2.0
"""The D-Box spool of one client: records that are durable before the D-Box has them, in order and chained by hash.

It knows files and frames, no network and no receipts. Directory `<state>/spool/dbox/<client>/`: `records-<n>`
(frames), `state` (how far they are delivered), `requests` (which request became which record), `lock`.

A frame is a line, the octets and a newline. The line ends in two SHA-256: `previous`, the sum of the frame before it
(64 zeros before the first of all), and `sum`, over everything else of this frame. Whoever changes, removes or swaps
waiting frames must rewrite all that follow; whoever may write here can do that, so this finds accidents and clumsy
hands, and what the D-Box acknowledged needs none of it. Frames of version 1 (without `previous`) are still read.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dre import files, units
from dre.errors import DreError, UsageError

LARGEST = 16 * 1024 * 1024  # octets of one entry
BATCH_RECORDS = 1000
BATCH_OCTETS = 1024 * 1024
NEW_FILE = 4 * 1024 * 1024  # octets after which a fully delivered records file is replaced
REQUESTS = 8 * 1024 * 1024  # octets of request ids kept, twice: at least some 70,000 of the last ones
MANY = 500_000  # requests in memory
FIRST = "0" * 64  # before the first frame
_FRAME = re.compile(
    rb"dre-record/(?:v1 (?P<name1>(?P<stream1>[a-z0-9-]{1,31}) (?P<seq1>[1-9][0-9]{0,18}) (?P<length1>[0-9]{1,8}))"
    rb"|v2 (?P<name>(?P<stream>[a-z0-9-]{1,31}) (?P<seq>[1-9][0-9]{0,18}) (?P<length>[0-9]{1,8})"
    rb" (?P<request>[!-~]{1,100}) (?P<previous>[0-9a-f]{64}))) (?P<sum>[0-9a-f]{64})\n"
)
_FRAME_LINE = 400  # more octets than the longest first line of a frame
_REQUEST = re.compile(r"[A-Za-z0-9._:@/=-]{1,100}")
_NOTHING = b"\0" * 512  # a block that never reached the disk


@dataclass(frozen=True)
class Record:
    """A record in the spool; *end* is the offset of what follows it, *sum* what the next frame carries on."""

    stream: str
    seq: int
    octets: bytes
    end: int
    sum: str
    request: str = ""


@dataclass(frozen=True)
class State:
    """Which records file is in use, how far it is delivered, the last delivered number of each stream, and the sum of
    the last delivered frame (None from before there was a chain)."""

    file: int
    offset: int
    acked: dict[str, int]
    chain: str | None = None


@dataclass(frozen=True)
class _Known:
    """What this process read last: a file up to its *end*."""

    file: int
    end: int
    last: dict[str, int]
    chain: str | None


class Spool:
    """Safe for threads and processes: each step holds a lock on a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = directory / "lock"
        self._known = _Known(0, 0, {}, None)
        self._requests = _Requests(directory / "requests")

    def append(
        self, stream: str, parts: Sequence[bytes], requests: Sequence[str] = (), *, durable: bool = True
    ) -> list[int]:
        """Make *parts* durable as the next records of *stream*; their numbers. Raises DreError.

        *requests* names what each came from, "-" nothing: one that is here already under its name keeps its number.
        What is not *durable* survives the death of this process, and that of the host only after `sync`.
        """
        units.name(stream)
        for octets in parts:
            if not 0 < len(octets) <= LARGEST:
                raise UsageError(f"a record of {len(octets)} octets; it has at least one, and at most {LARGEST}")
        for request in requests:
            if not _REQUEST.fullmatch(request):
                raise UsageError(f"{request[:100]!r}: a request id is 1 to 100 of letters, digits and ._:@/=-")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.lock(self._lock):
            if self._requests.many():
                self._requests.forget()  # a feed runs for months
            known = self._read(bool(requests))
            try:
                numbers, frames, chain = self._frames(known, stream, parts, requests)
                if frames:
                    end = _append(self._path(known.file), known.end, frames, durable)
                    self._known = _Known(known.file, end, {**known.last, stream: max(numbers)}, chain)
            except BaseException:
                self._requests.forget()  # what was remembered is not on the disk
                raise
            return numbers

    def sync(self) -> None:
        """Make durable what was appended without. Raises DreError."""
        if self.directory.exists():
            with files.lock(self._lock):
                _sync(self._path(self.state().file))

    def _frames(
        self, known: _Known, stream: str, parts: Sequence[bytes], requests: Sequence[str]
    ) -> tuple[list[int], list[bytes], str]:
        """The number of each of *parts*, the frames of those that are new, and the sum of the last."""
        numbers, frames = [], list[bytes]()
        seq, chain = known.last.get(stream, 0), known.chain or FIRST
        for octets, request in zip(parts, requests or ["-"] * len(parts), strict=True):
            number = self._requests.find(request, stream, octets) if request != "-" else None
            if number is None:
                seq += 1
                number = seq
                name = f"{stream} {seq} {len(octets)} {request} {chain}".encode()
                chain = _sum(name, octets)
                frames.append(b"dre-record/v2 %b %b\n%b\n" % (name, chain.encode(), octets))
                if request != "-":
                    self._requests.add(request, stream, seq, octets)
            numbers.append(number)
        return numbers, frames, chain

    def _read(self, requests: bool) -> _Known:
        """Catch up with what others recorded since; mostly nothing. The caller holds the lock."""
        state = self.state()
        path, known = self._path(state.file), self._known
        size = path.stat().st_size if path.exists() else 0
        if requests:
            self._requests.read()
        if known.file != state.file or known.end > size or (requests and not self._requests.complete):
            known = _Known(state.file, state.offset, state.acked, state.chain)
        end, last, chain = known.end, dict(known.last), known.chain
        for record in records(path, end, chain):
            end, chain, last[record.stream] = record.end, record.sum, record.seq
            if record.request:
                self._requests.add(record.request, record.stream, record.seq, record.octets)
        self._requests.complete |= requests
        self._known = _Known(state.file, end, last, chain)
        return self._known

    def pending(self) -> Iterator[Record]:
        """The records that wait for delivery, as they are now."""
        if not self.directory.exists():
            return
        with files.lock(self._lock):
            state = self.state()
            yield from records(self._path(state.file), state.offset, state.chain)

    def next(self) -> tuple[State, list[Record]]:
        """The next records that can go in one batch, durable by now, and the state to hand to `delivered`."""
        with files.lock(self._lock):
            state = self.state()
            path = self._path(state.file)
            run = _run(records(path, state.offset, state.chain))
            if run:
                _sync(path)  # the D-Box must not have what a power cut takes from here
            return state, run

    def delivered(self, state: State, run: Sequence[Record]) -> None:
        """Remember that *run* is in the D-Box. Only one process at a time delivers; records may come in meanwhile."""
        acked = {**state.acked, run[-1].stream: run[-1].seq}
        with files.lock(self._lock):
            self._requests.keep(run)
            path, offset, chain = self._path(state.file), run[-1].end, run[-1].sum
            if offset >= NEW_FILE and offset == path.stat().st_size:
                self._save(State(state.file + 1, 0, acked, chain))
                path.unlink()
            else:
                self._save(State(state.file, offset, acked, chain))

    def _path(self, number: int) -> Path:
        return self.directory / f"records-{number}"

    def state(self) -> State:
        """How far the spool is delivered. Raises DreError."""
        try:
            fields = json.loads((self.directory / "state").read_text())
            return State(fields["file"], fields["offset"], fields["acked"], fields.get("chain"))
        except FileNotFoundError:
            return State(1, 0, {}, FIRST)
        except (ValueError, KeyError, TypeError) as error:
            raise DreError(f"{self.directory / 'state'}: damaged: {error}") from None

    def _save(self, state: State) -> None:
        files.write_atomic(self.directory / "state", json.dumps(state.__dict__) + "\n", 0o600)


@dataclass
class _Requests:
    """Which request became which record: `ID STREAM SEQ SUM` of delivered ones, the waiting ones in memory."""

    path: Path
    complete: bool = False  # whether all waiting records were looked at
    _here: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    _file: int = 0
    _end: int = 0

    def find(self, request: str, stream: str, octets: bytes) -> int | None:
        """The number of the record that *request* became. Raises UsageError when it was another one."""
        found = self._here.get(request)
        if found is None:
            return None
        if found[0] != stream or found[2] != _short(octets):
            raise UsageError(f"request {request!r} was made before, with other octets or for another stream")
        return found[1]

    def add(self, request: str, stream: str, seq: int, octets: bytes) -> None:
        """Remember a request."""
        self._here[request] = (stream, seq, _short(octets))

    def many(self) -> bool:
        """Whether far more is in memory than is kept."""
        return len(self._here) > MANY

    def forget(self) -> None:
        """Read everything again next time."""
        self._here.clear()
        self._file = self._end = 0
        self.complete = False

    def read(self) -> None:
        """Catch up with the file."""
        try:
            with self.path.open("rb") as stream:
                made = os.fstat(stream.fileno())
                if made.st_ino != self._file or made.st_size < self._end:
                    old = self.path.with_name("requests.old")
                    self._take(old.read_bytes() if old.exists() else b"")
                    self._file, self._end = made.st_ino, 0
                stream.seek(self._end)
                self._end += self._take(stream.read())
        except FileNotFoundError:
            pass

    def _take(self, octets: bytes) -> int:
        lines = octets[: octets.rfind(b"\n") + 1]
        for line in lines.decode(errors="replace").splitlines():
            words = line.split(" ")
            if len(words) == 4 and words[2].isdecimal():
                self._here[words[0]] = (words[1], int(words[2]), words[3])
        return len(lines)

    def keep(self, run: Iterable[Record]) -> None:
        """Write down the requests of delivered records, durably, before their frames may go."""
        lines = "".join(f"{one.request} {one.stream} {one.seq} {_short(one.octets)}\n" for one in run if one.request)
        if not lines:
            return
        if self.path.exists() and self.path.stat().st_size > REQUESTS:
            self.path.rename(self.path.with_name("requests.old"))
        # A torn last line of a killed one must not swallow ours: it gets an end first.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(fd).st_size
            torn = size and os.pread(fd, 1, size - 1) != b"\n"
            os.write(fd, (b"\n" if torn else b"") + lines.encode())
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if not size:
            files.fsync_dir(self.path.parent)


def records(path: Path, offset: int, chain: str | None = None) -> Iterator[Record]:
    """The whole records from *offset* on; what a killed writer left unfinished at the end of the file is no record.

    *chain* is the sum of the frame before. Raises DreError for damage before the end.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        size = os.fstat(stream.fileno()).st_size
        if offset > size:
            raise DreError(f"{path}: ends at octet {size}, before what was delivered of it")
        while offset < size:
            stream.seek(offset)
            record = _frame(stream, chain)
            if isinstance(record, str):
                if _torn(stream, offset, size):
                    return
                raise DreError(f"{path}: {record} at octet {offset}")
            offset, chain = record.end, record.sum
            yield record


def _frame(stream: BinaryIO, chain: str | None) -> Record | str:
    """The record at this place of *stream*, or what is wrong there."""
    match = _FRAME.fullmatch(stream.readline(_FRAME_LINE))
    if not match:
        return "damaged"
    part = match.groupdict()
    old = part["name"] is None
    name, where, seq, length = (part[key + "1" * old] for key in ("name", "stream", "seq", "length"))
    octets = stream.read(int(length))
    if stream.read(1) != b"\n" or _sum(name, octets) != part["sum"].decode():
        return "damaged"
    if not old and chain is not None and part["previous"].decode() != chain:
        return "chain broken: what stood before was changed or removed,"
    request = "" if old or part["request"] == b"-" else part["request"].decode()
    end = stream.tell()
    return Record(where.decode(), int(seq), octets, end, part["sum"].decode(), request)


def _torn(stream: BinaryIO, offset: int, size: int) -> bool:
    """Whether a frame that does not hold is only what a killed writer, or a power cut, left at the end of the file.

    What was acknowledged was durable, so such a rest is the beginning of a frame, or has blocks that never reached the
    disk. A whole frame, or a whole first line, that does not hold was changed.
    """
    stream.seek(offset)
    line = stream.readline(_FRAME_LINE)
    if not line.strip(b"\0") or (len(line) < _FRAME_LINE and line[-1:] != b"\n"):
        return True
    match = _FRAME.fullmatch(line)
    if match is None:
        return False
    end = offset + len(line) + int(match["length"] or match["length1"]) + 1
    return end > size or (end == size and _NOTHING in stream.read())


def _sum(name: bytes, octets: bytes) -> str:
    return hashlib.sha256(name + b"\n" + octets).hexdigest()


def _short(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()[:32]


def _sync(path: Path) -> None:
    """Make durable what *path* holds, if it is there. Raises DreError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise DreError(f"{path}: cannot record: {error.strerror}") from None
    finally:
        os.close(fd)


def _append(path: Path, end: int, frames: Sequence[bytes], durable: bool) -> int:
    """Put *frames* at *end* of the file, cutting off a torn rest; the new end. On an error the file is as before."""
    new, octets = not path.exists(), b"".join(frames)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, end)
        try:
            view = memoryview(octets)
            while view:
                written = os.pwrite(fd, view, end + len(octets) - len(view))
                view = view[written:]
            if durable:
                os.fdatasync(fd)
        except OSError as error:
            os.ftruncate(fd, end)
            raise DreError(f"{path}: cannot record: {error.strerror}") from None
    finally:
        os.close(fd)
    if new:
        files.fsync_dir(path.parent)
    return end + len(octets)


def _run(found: Iterator[Record]) -> list[Record]:
    """The next records that can go in one batch: one stream, bounded, their numbers without a hole."""
    run: list[Record] = []
    octets = 0
    for record in found:
        octets += len(record.octets)
        if run and (record.stream != run[0].stream or len(run) == BATCH_RECORDS or octets > BATCH_OCTETS):
            break
        run.append(record)
    return run
