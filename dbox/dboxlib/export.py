# SPDX-License-Identifier: Apache-2.0
"""A whole log as one tar file that can be verified where there is no D-Box, and what an audit reads of it.

Members, in this order, all texts and frames as `dre.dbox.frame` makes them:

    origin.txt          dre-export/v1, then the lines log, box, size
    certs.pem           the certificates below the root
    anchors.jsonl       kind, name, size, time and octets (base64) of what third parties said
    heads-<number>      notes of tree heads, by size
    entries-<index>     header, salt and octets of entries from <index> on; no octets where they were erased

Nothing of it is believed: an export is as good as the signatures in it. The same log gives the same file.
"""

import base64
import functools
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from dre import dbox, evidence
from dre.audit import Anchor, Chunk
from dre.evidence import FormatError, TamperedError

from dboxlib.sources import OWN, Splitter, by_size, event_of, own_writers

VERSION = "dre-export/v1"
HEADS = 1000  # in a member
ENTRIES = 4096
OCTETS = 16 * 1024 * 1024
MEMBER = 128 * 1024 * 1024  # octets of a member that is read
_ORIGIN = re.compile(rb"dre-export/v1\nlog (\S+)\nbox ([ -~]*)\nsize (0|[1-9][0-9]{0,18})\n")
_NAME = re.compile(r"(heads|entries)-(0|[1-9][0-9]{0,18})")


@dataclass(frozen=True)
class Title:
    """What an export says of itself."""

    origin: str
    box: str
    size: int

    def format(self) -> bytes:
        """The text of origin.txt."""
        return f"{VERSION}\nlog {self.origin}\nbox {self.box}\nsize {self.size}\n".encode()


class Writer:
    """Writes an export, one member after another."""

    def __init__(self, stream: IO[bytes], title: Title, chain: bytes, anchors: Iterator[Anchor]) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._member("origin.txt", title.format())
        self._member("certs.pem", chain)
        rows = [{**one.__dict__, "octets": base64.b64encode(one.octets).decode()} for one in anchors]
        self._member("anchors.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def _member(self, name: str, octets: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(octets), 0o444
        self._tar.addfile(member, BytesIO(octets))

    def heads(self, notes: Iterator[str]) -> None:
        """All tree heads."""
        number, part = 0, list[bytes]()
        for note in notes:
            part.append(note.encode())
            if len(part) == HEADS:
                self._member(f"heads-{number}", dbox.frame(part))
                number, part = number + HEADS, []
        if part:
            self._member(f"heads-{number}", dbox.frame(part))

    def entries(self, entries: Iterator[tuple[bytes, bytes, bytes | None]]) -> None:
        """All entries: header, salt, octets."""
        first, part, size, count = 0, list[bytes](), 0, 0
        for header, salt, octets in entries:
            part += [header, salt, octets or b""]
            size, count = size + len(octets or b""), count + 1
            if count == ENTRIES or size > OCTETS:
                self._member(f"entries-{first}", dbox.frame(part))
                first, part, size, count = first + count, [], 0, 0
        if part:
            self._member(f"entries-{first}", dbox.frame(part))

    def close(self) -> None:
        """Write the end."""
        self._tar.close()


class Export:
    """An export as the source of an audit. Raises FormatError for what is none."""

    octets = True

    def __init__(self, path: Path) -> None:
        self.path = path
        members = self._members()
        found = _ORIGIN.fullmatch(self._expect(members, "origin.txt"))
        if found is None:
            raise FormatError(f"{path}: not an export: origin.txt is not of {VERSION}")
        self.title = Title(evidence.origin(found[1].decode(errors="replace")), found[2].decode(), int(found[3]))
        self.origin = self.title.origin
        self._chain = self._expect(members, "certs.pem")
        self._anchors = self._expect(members, "anchors.jsonl")

    def _members(self) -> Iterator[tuple[str, bytes]]:
        """Name and octets of each member, one in memory at a time."""
        try:
            with tarfile.open(self.path, "r:") as tar:
                while (member := tar.next()) is not None:
                    if not member.isreg() or member.size > MEMBER:
                        raise FormatError(f"{self.path}: not an export: {member.name[:60]!r}")
                    stream = tar.extractfile(member)
                    octets = stream.read() if stream is not None else b""
                    if len(octets) != member.size:
                        raise FormatError(f"{self.path}: ends in the middle of {member.name}")
                    tar.members = []  # type: ignore[attr-defined]  # else it would keep a record of every member
                    yield member.name, octets
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
            raise FormatError(f"{self.path}: not an export: {error}") from None

    def _expect(self, members: Iterator[tuple[str, bytes]], name: str) -> bytes:
        found = next(members, ("the end", b""))
        if found[0] != name:
            raise FormatError(f"{self.path}: not an export: expected {name}, got {found[0][:60]!r}")
        return found[1]

    def _parts(self, kind: str) -> Iterator[tuple[int, list[bytes]]]:
        """Number and frames of the members of a kind, which stand in order and without a hole."""
        kinds, expected = ["origin.txt", "certs.pem", "anchors.jsonl", "heads", "entries"], 0
        at = 0
        for name, octets in self._members():
            match = _NAME.fullmatch(name)
            word = match[1] if match else name
            if word not in kinds[at:]:
                raise FormatError(f"{self.path}: not an export: {name[:60]!r} stands in the wrong place")
            at = kinds.index(word) + (match is None)
            if match and word == kind:
                if int(match[2]) != expected:
                    raise FormatError(f"{self.path}: not an export: expected {kind}-{expected}, got {name}")
                parts = dbox.unframe(octets)
                if kind == "entries" and len(parts) % 3:
                    raise FormatError(f"{self.path}: {name}: not header, salt and octets of each entry")
                yield expected, parts
                expected += len(parts) // (3 if kind == "entries" else 1)

    def chain(self) -> bytes:
        """The certificates below the root, PEM."""
        return self._chain

    def heads(self, first: int) -> Iterator[tuple[int, str]]:
        """Size and note of the tree heads of at least *first* entries, by size."""
        for _, parts in self._parts("heads"):
            for octets in parts:
                try:
                    note = octets.decode()
                    size = int(note.split("\n", 2)[1])
                except (UnicodeDecodeError, ValueError, IndexError):
                    raise FormatError(f"{self.path}: not a tree head: {octets[:40]!r}") from None
                if size >= first:
                    yield size, note

    def rows(self) -> Iterator[tuple[int, bytes, bytes, bytes | None]]:
        """Index, header, salt and octets of all entries."""
        for first, parts in self._parts("entries"):
            for at in range(0, len(parts), 3):
                yield first + at // 3, parts[at], parts[at + 1], parts[at + 2] or None

    def own(self) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """The D-Box's own events."""
        owners = own_writers(self._chain)
        for index, header, _, octets in self.rows():
            if b"\nstream dbox\n" in header:
                try:
                    fields = evidence.parse_header(header)
                except FormatError:
                    continue  # the audit will see it
                if fields.stream == OWN and fields.writer in owners:
                    yield from event_of(index, octets)

    def chunks(self, first: int) -> Iterator[Chunk]:
        """All entries from *first* on. Raises TamperedError, after those before it."""
        split = Splitter(self.origin)
        for start, parts in self._parts("entries"):
            count = len(parts) // 3
            if start + count <= first:
                continue
            skip = max(first - start, 0)
            gone: list[int] = []
            chunk = Chunk(start + skip, [], [], [], [], gone)
            try:
                for at in range(3 * skip, 3 * count, 3):
                    _entry(split, chunk, gone, *parts[at : at + 3])
            except TamperedError:
                yield chunk
                raise
            yield chunk

    def anchors(self) -> Iterator[Anchor]:
        """What third parties said."""
        try:
            for line in self._anchors.splitlines():
                row = json.loads(line)
                octets = base64.b64decode(row["octets"], validate=True)
                yield Anchor(str(row["kind"]), str(row["name"]), int(row["size"]), str(row["time"]), octets)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{self.path}: anchors.jsonl: {error}") from None

    @functools.cached_property
    def _by_size(self) -> dict[int, list[Anchor]]:
        return by_size(self.anchors())

    def anchored(self, size: int) -> Sequence[Anchor]:
        """What they said of the tree head of *size*."""
        return self._by_size.get(size, ())


def _entry(split: Splitter, chunk: Chunk, gone: list[int], header: bytes, salt: bytes, octets: bytes) -> None:
    """Append an entry to *chunk* when its octets have its digest. Raises TamperedError."""
    number = chunk.first + len(chunk.leaves)
    length, digest = split.add(chunk, header)
    if not octets:
        gone.append(number)
    elif length != len(octets) or hashlib.sha256(salt + octets).hexdigest().encode() != digest:
        del chunk.leaves[-1], chunk.keys[-1], chunk.seqs[-1], chunk.times[-1]
        raise TamperedError(number, "its octets do not match the digest in its header")
