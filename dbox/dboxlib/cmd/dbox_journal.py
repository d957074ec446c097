# SPDX-License-Identifier: Apache-2.0
"""dbox-journal: every entry of the systemd journal becomes an entry of the D-Box, once, and what is missing too.

journalctl(1) reads the journal; this gives what it prints to the spool, in order. The cursor of the last entry that
has its receipt is kept; what was spooled after it is known by its cursor when it is read again.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import cli, event, files, run, units
from dre.dbox import LARGEST, Record, Recorder
from dre.errors import DreError, UsageError
from dre.evidence import Receipt

from dboxlib import feed

READ = 1024 * 1024  # octets at once
_CURSOR = re.compile(r"s=([0-9a-f]+);i=([0-9a-f]+);[ -~]{1,300}")


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-journal."""
    parser = cli.parser("dbox-journal", "Record the entries of the systemd journal in the D-Box.")
    parser.add_argument(
        "--client", metavar="N", type=units.name, default="journal", help="client certificate (journal)"
    )
    parser.add_argument("--stream", metavar="S", type=units.name, default="journal", help="stream (journal)")
    parser.add_argument("--follow", action="store_true", help="go on for ever, as a service; else to the journal's end")
    parser.add_argument(
        "--timeout", metavar="T", type=units.duration, default=10.0, help="how long to deliver at the end (10s)"
    )
    parser.add_argument("arguments", metavar="-- ARG", nargs="*", help="more arguments for journalctl, such as -u ssh")
    parser.set_defaults(function=_feed)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-journal."""
    return cli.main(make_parser(), argv)


def _feed(ctx: cli.Context) -> None:
    args = ctx.args
    program = run.need("journalctl")
    recorder = Recorder(ctx.conf, args.client, lean=[args.stream])
    place = _Place(recorder.directory / f"{args.stream}.cursor")
    reader = _Reader(recorder, args.stream, place, complete=not args.arguments)
    argv = [program, "--output=json", "--all", "--no-pager", "--quiet", *args.arguments]
    argv += ["--follow", "--no-tail"] if args.follow else []
    argv += [f"--after-cursor={place.cursor}"] if place.cursor else []
    signal.signal(signal.SIGTERM, _end)
    with (
        tempfile.TemporaryFile() as said,
        feed.delivering(ctx.prog, recorder, args.timeout, place.told) as work,
        run.talk(argv, said) as child,
    ):
        with contextlib.suppress(_Ended):
            assert child.stdout is not None
            for lines in _lines(child.stdout.fileno()):
                reader.take(lines)
                work.set()
            status = child.wait(30)
            said.seek(0)
            why = said.read(300).decode(errors="replace").strip().partition("\n")[0]
            if status or args.follow:
                raise DreError(f"journalctl ended with {status}: {why or 'it should not have'}")
        child.kill()


class _Ended(SystemExit):
    """SIGTERM came: what was read is in the spool, and the rest can be read again."""


def _end(number: int, frame: Any) -> None:
    raise _Ended


def _lines(fd: int) -> Iterator[list[bytes]]:
    rest = b""
    while octets := os.read(fd, READ):
        *lines, rest = (rest + octets).split(b"\n")
        if lines:
            yield lines


@dataclass
class _Place:
    """Up to where the journal is in the D-Box, and receipts are here."""

    path: Path

    def __post_init__(self) -> None:
        self.cursor = self.path.read_text().strip() if self.path.exists() else ""
        if self.cursor and not _CURSOR.fullmatch(self.cursor):
            raise DreError(f"{self.path}: not a cursor of the journal")
        self.waiting: dict[str, str] = {}  # request → cursor, of the last one of each batch

    def told(self, record: Record, receipt: Receipt) -> None:
        """*record* is in the D-Box."""
        cursor = self.waiting.pop(record.request, "")
        if cursor:
            files.write_atomic(self.path, cursor + "\n", 0o600)


class _Reader:
    """Lines of journalctl into the spool."""

    def __init__(self, recorder: Recorder, stream: str, place: _Place, complete: bool) -> None:
        self.recorder = recorder
        self.stream = stream
        self.place = place
        self.complete = complete  # nothing was filtered, so numbers follow each other
        self.last = _CURSOR.fullmatch(place.cursor)

    def take(self, lines: Sequence[bytes]) -> None:
        """Spool *lines*, each with its cursor's hash as its request."""
        parts, requests, cursor = [], [], ""
        for line in filter(None, lines):
            line, found = _entry(line)
            cursor = found.group() if found else cursor
            if found and self.complete:
                lost = self._lost(found)
                if lost:
                    parts.append(
                        _event("dbox.feed.lost", {"feed": "journal", "entries": lost, "before": found.group()})
                    )
                    requests.append(self._request(b"lost " + found.group().encode()))
            if len(line) > LARGEST:
                fields = {"feed": "journal", "entries": 1, "octets": len(line), "cursor": cursor}
                line = _event("dbox.feed.lost", fields)
            parts.append(line)
            requests.append(self._request(found.group().encode() if found else line))
            self.last = found or self.last
        if parts:
            self.place.waiting[requests[-1]] = cursor
            try:
                self.recorder.record_all(self.stream, parts, requests)
            except UsageError:
                self._rest(parts, requests)

    def _rest(self, parts: Sequence[bytes], requests: Sequence[str]) -> None:
        """Spool what is new of a batch in which an entry comes again in other words, as after an upgrade of systemd."""
        for octets, request in zip(parts, requests, strict=True):
            with contextlib.suppress(UsageError):
                self.recorder.record(self.stream, octets, request)

    def _request(self, what: bytes) -> str:
        """The same for the same entry in the same stream."""
        return hashlib.sha256(self.stream.encode() + b" " + what).hexdigest()[:32]

    def _lost(self, found: "re.Match[str]") -> int:
        """How many numbers of the journal are missing before this entry."""
        if self.last is None or self.last[1] != found[1]:
            return 0
        return max(int(found[2], 16) - int(self.last[2], 16) - 1, 0)


def _entry(line: bytes) -> "tuple[bytes, re.Match[str] | None]":
    """A line of journalctl with its keys in order, and its cursor: their order changes from one call to the next."""
    try:
        fields = json.loads(line)
        cursor = fields.get("__CURSOR")
        line = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, AttributeError, RecursionError):
        return line, None  # whatever it is, it was printed, and is kept
    return line, _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None


def _event(kind: str, data: dict[str, Any]) -> bytes:
    made = event.Event(event.stamp(), event.host() + "/dbox-journal", kind, 4, data)
    return event.format(made).rstrip(b"\n")
