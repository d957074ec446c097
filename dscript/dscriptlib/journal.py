# SPDX-License-Identifier: Apache-2.0
"""The engine's memory: an append-only journal of records that are durable before what they announce is done.

One record is one line: eight hexadecimal digits of CRC-32, a space, a JSON object. A line cut off by a crash is
removed at the next start; a damaged one is passed over and counted. What the records mean is the engine's business.
"""

import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dre import files

LIMIT = 4 * 1024 * 1024  # octets of a file before the next one begins
Record = dict[str, Any]
_BEGIN = re.compile(rb'[0-9a-f]{8} \{"n":([0-9]+),')


class Journal:
    """The journal in one directory, open for appending. One process at a time; the engine's lock sees to that."""

    def __init__(self, directory: Path, limit: int = LIMIT) -> None:
        """Open it and cut off a torn end; `states` is then what the last records said about each script."""
        self.directory = directory
        self.limit = limit
        self.states: dict[str, Any] = {}
        self.damaged = 0
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.number = 0
        self._restore()
        names = paths(directory)
        self._open(names[-1] if names else directory / name(self.number + 1))

    def _restore(self) -> None:
        names = paths(self.directory)
        # Each file begins with all states, so the last one suffices, unless a crash left it empty.
        for path in names[-2:]:
            octets = path.read_bytes()
            whole = octets.rfind(b"\n") + 1
            if whole != len(octets):
                os.truncate(path, whole)
            for line in octets[:whole].splitlines():
                record = decode(line)
                if record is None:
                    self.damaged += 1
                    continue
                self.number = max(self.number, record["n"])
                self.states.update(record.get("states", {}))

    def _open(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        files.fsync_dir(self.directory)
        if os.fstat(self.fd).st_size == 0:
            self._write([{"kind": "state", "states": self.states}])

    def append(self, records: Sequence[Record]) -> list[Record]:
        """Number *records*, write them in one piece and return them once they are durable. Raises OSError."""
        if os.fstat(self.fd).st_size > self.limit:
            os.close(self.fd)
            self._open(self.directory / name(self.number + 1))
        return self._write(records)

    def _write(self, records: Sequence[Record]) -> list[Record]:
        numbered = []
        for record in records:
            self.number += 1
            numbered.append({"n": self.number, **record})
            self.states.update(record.get("states", {}))
        octets = b"".join(encode(record) for record in numbered)
        written = os.write(self.fd, octets)
        if written != len(octets):
            raise OSError(28, "could not write the whole record", str(self.directory))
        os.fdatasync(self.fd)
        return numbered

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def name(number: int) -> str:
    """The name of the file that begins with record *number*."""
    return f"{number:012d}.log"


def paths(directory: Path) -> list[Path]:
    """The files of the journal, the oldest first."""
    return sorted(directory.glob("[0-9]*.log"))


def encode(record: Mapping[str, Any]) -> bytes:
    """The line of *record*."""
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Record | None:
    """The record of *line* without its newline; None when it is damaged."""
    try:
        if len(line) < 10 or int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("n"), int) else None


def states(directory: Path) -> dict[str, Any]:
    """What the last records say about each script; safe while the engine appends."""
    found: dict[str, Any] = {}
    for path in paths(directory)[-2:]:  # as in `Journal`
        octets = path.read_bytes()
        for line in octets[: octets.rfind(b"\n") + 1].splitlines():
            found.update((decode(line) or {}).get("states", {}))
    return found


def records(directory: Path, after: int = 0) -> Iterator[Record]:
    """All whole records with a number above *after*, in order; safe while the engine appends."""
    names = paths(directory)
    for path, following in itertools.zip_longest(names, names[1:]):
        if following is not None and int(following.stem) <= after + 1:
            continue
        with path.open("rb") as stream:
            for line in stream:
                if (begin := _BEGIN.match(line)) and int(begin[1]) <= after:
                    continue  # most of them, at a start: to read them all would take long
                record = decode(line.rstrip(b"\n")) if line.endswith(b"\n") else None
                if record is not None and record["n"] > after:
                    yield record
