# SPDX-License-Identifier: Apache-2.0
"""What a new correlator is told of what came before it, from the spool: sec forgets all when it dies.

First come, quietly, the events that its rules may remember: while they do, nothing is written and no program runs, for
that was done when they came. Then come those that the old one may not have answered, as if they came just now.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dre import event
from dre.conf import Conf

from monitorlib import spool

QUIET, LIVE = b"#quiet\n", b"#live\n"  # lines that the rules of rulebook know; no event looks so
HISTORY = 512 * 1024  # octets that are told quietly: sec needs some seconds for them where rules are many
RECENT = 10.0  # seconds; and the last
BLOCK = 16384  # octets in front of what stands in the FIFO: sec reads 8192 at once, and may hold half a line before


@dataclass
class Told:
    """Lines to tell, each part in the order of time; and how many events within the window are too many for that."""

    quiet: list[bytes] = field(default_factory=list)
    live: list[bytes] = field(default_factory=list)
    lost: int = 0


def again(
    conf: Conf,
    now: float,
    unread: bytes,
    remembered: dict[str, int],
    window: float,
    recent: float = RECENT,
    room: int = BLOCK,
) -> Told:
    """What a new correlator must be told when *unread* stood in its FIFO. What the re-order filter holds is left to it.

    Quietly: all of the last *window* seconds, and, by *remembered*, events of some types for as many seconds. Live: the
    last *room* octets of the last *recent* seconds. Some of it comes a second time, then; an event is the same when its
    id is.
    """
    directory = conf.core_state_dir / "spool" / "ingest"
    passed = _passed(directory / "reorder.resume")
    waiting = [line for line in unread.split(b"\n") if line.startswith(b'{"time":"') and line.endswith(b"}")]
    since = event.stamp(now - recent).encode()
    until = min([passed, *map(_stamp, waiting)])
    live: dict[bytes, None] = {}
    for line in sorted(spool.tail(directory, 1 << 20).split(b"\n"), key=_stamp, reverse=True):
        if since <= _stamp(line) <= until and room > 0:
            room -= len(line) + 1
            live[line] = None
    live.update(dict.fromkeys(waiting))
    quiet: set[bytes] = set()
    for type, seconds in remembered.items():
        since = event.stamp(now - seconds).encode()
        quiet.update(line for line in _of_type(directory, type) if since <= _stamp(line) <= passed)
    more, lost = _last(directory, now - window, until, quiet | live.keys()) if window else ([], 0)
    return Told(sorted(quiet.union(more) - live.keys(), key=_stamp), sorted(live, key=_stamp), lost)


def pieces(lines: list[bytes], before: bytes = b"", after: bytes = b"") -> Iterator[bytes]:
    """*lines* in writes that a pipe takes whole or not at all, each with *before* and *after* around it.

    So nobody else's line can come between these, and no kill leaves the one without the other.
    """
    most = event.LIMIT - len(before) - len(after)
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if len(line) + 1 > most:
            continue  # with the words around it there is no way; dre-event makes none so long
        if size + len(line) + 1 > most:
            yield before + b"".join(piece) + after
            piece, size = [], 0
        piece.append(line + b"\n")
        size += len(line) + 1
    if piece:
        yield before + b"".join(piece) + after


def _stamp(line: bytes) -> bytes:
    return line[9:33]


def _of_type(directory: Path, type: str) -> Iterator[bytes]:
    """All lines of the spool that hold this type."""
    needle = b'"type":"%s"' % type.encode()
    for octets in _segments(directory, 0.0):
        if needle in octets:
            yield from (line for line in octets.split(b"\n") if needle in line)


def _last(directory: Path, since: float, until: bytes, told: Container[bytes]) -> tuple[list[bytes], int]:
    """The newest lines from the time *since* to *until*, but for what is *told* anyway; how many more there are."""
    first, room = event.stamp(since).encode(), HISTORY
    lines, lost = [], 0
    for octets in _segments(directory, since):
        for line in reversed(octets.split(b"\n")):
            if first <= _stamp(line) <= until and line not in told:
                room -= len(line) + 1
                if room < 0:
                    lost += 1
                else:
                    lines.append(line)
    return lines, lost


def _segments(directory: Path, since: float) -> Iterator[bytes]:
    """The segments of the spool that were written to after *since*, the newest first."""
    for _, path in reversed(spool.segments(directory)):
        try:
            if path.stat().st_mtime < since:
                return
            octets = path.read_bytes()
        except FileNotFoundError:
            return  # just removed, and all before it
        yield octets


def _passed(note: Path) -> bytes:
    """Up to when the re-order filter has released, from its note; nothing when there is none."""
    try:
        return note.read_bytes().split()[2]
    except (OSError, IndexError):
        return b""
