# SPDX-License-Identifier: Apache-2.0
"""Events: one line of JSON of at most 4096 octets, its form in both directions, and how a program of ours emits one.

The first three keys are time, source and type in this order, so that sort, grep, cut and SEC can work on the line
without a JSON parser. The names map one to one to CloudEvents 1.0.
"""

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dre import files
from dre.conf import Conf
from dre.errors import DreError, UsageError

LIMIT = 4096  # octets with the newline: one write(2) of PIPE_BUF is all or nothing (pipe(7))
ROOM = 128  # octets a new event leaves free for what the intake and the re-order filter add: seen, claimed, late, id
SPOOL_LIMIT = 64 * 1024 * 1024
ACK_WAIT = 0.2  # seconds an emitter waits for the intake before it spools by itself
# What may stand after data, in this order, and its type.
OPTIONAL: dict[str, Any] = {
    "id": str,
    "seen": str,
    "goal": str,
    "late": (int, float),
    "skew": (int, float),
    "claimed": bool,
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_TYPE = re.compile(r"[a-z][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+")
_KEY = re.compile(r"[^A-Z0-9]")  # what of the name of a datum cannot be in that of a variable
_SOURCE = re.compile(r"(/[A-Za-z0-9_.:@+-]+)+")


class EventError(UsageError):
    """A line that is not an event, or a value that cannot stand in one."""


@dataclass(frozen=True)
class Event:
    """One event; *time* is UTC with milliseconds, *sev* as in syslog (RFC 5424: 0 emergency … 7 debug)."""

    time: str
    source: str
    type: str
    sev: int = 6
    data: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, Any] = field(default_factory=dict)  # id, seen, goal, late, skew, claimed


def stamp(seconds: float | None = None) -> str:
    """The event time form of *seconds* since the epoch (default now): `2026-11-23T08:00:00.123Z`."""
    moment = time.time() if seconds is None else seconds
    whole, part = divmod(round(moment * 1e6), 1_000_000)  # as datetime rounds
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(whole)) + f"{part // 1000:03d}Z"


def seconds(text: str) -> float:
    """Seconds since the epoch of an event time. Raises EventError."""
    if not _TIME.fullmatch(text):
        raise EventError(f"{text!r} is not an event time such as 2026-11-23T08:00:00.123Z")
    import datetime  # slow, and not wanted by who only emits

    try:
        return datetime.datetime.fromisoformat(text[:-1] + "+00:00").timestamp()
    except ValueError as error:
        raise EventError(f"{text!r} is not an event time: {error}") from None


def new_id() -> str:
    """A fresh event id: 16 hexadecimal digits from the system's random source."""
    return os.urandom(8).hex()


def format(event: Event) -> bytes:
    """The line of *event* with its newline. Raises EventError when it breaks the form or is over 4096 octets."""
    seconds(event.time)
    if not _SOURCE.fullmatch(event.source):
        raise EventError(f"{event.source!r} is not a source such as /host:h7/app:web1/httpd")
    if not _TYPE.fullmatch(event.type):
        raise EventError(f"{event.type!r} is not an event type such as app.cpu")
    if isinstance(event.sev, bool) or not isinstance(event.sev, int) or not 0 <= event.sev <= 7:
        raise EventError(f"{event.sev!r} is not a severity from 0 to 7")
    fields = {"time": event.time, "source": event.source, "type": event.type, "sev": event.sev, "data": event.data}
    fields.update({key: event.optional[key] for key in OPTIONAL if key in event.optional})
    try:
        line = _encode(fields).encode() + b"\n"
    except (ValueError, TypeError, RecursionError) as error:  # NaN, a lone surrogate, an object, too deep
        raise EventError(f"event {event.type} cannot be written: {error}") from None
    if len(line) > LIMIT:
        raise EventError(f"event {event.type} has {len(line)} octets; {LIMIT} is the most")
    return line


def _typed(key: str, value: Any) -> Any:
    if not isinstance(value, OPTIONAL[key]) or (key != "claimed" and isinstance(value, bool)):
        raise EventError(f"{key} is of the wrong type: {str(value)[:60]!r}")
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key given twice is refused, because readers differ in which one they take."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


# Made once: json.dumps and json.loads would make theirs anew for each event.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_decode = json.JSONDecoder(object_pairs_hook=once).decode


def parse(line: bytes | str) -> Event:
    """The event of one *line*, with or without its newline. Raises EventError saying what is wrong."""
    octets = line.encode(errors="surrogatepass") if isinstance(line, str) else line
    if len(octets) > LIMIT:
        raise EventError(f"line of {len(octets)} octets; {LIMIT} is the most")
    try:
        # Decoded here: json.loads would take UTF-16 and UTF-32 too.
        fields = _decode(octets.decode())
    except (ValueError, RecursionError) as error:
        raise EventError(f"not JSON: {error}") from None
    if not isinstance(fields, dict) or list(fields)[:3] != ["time", "source", "type"]:
        raise EventError("an event is a JSON object whose first keys are time, source, type in this order")
    unknown = set(fields) - {"time", "source", "type", "sev", "data", *OPTIONAL}
    if unknown:
        raise EventError(f"unknown key {min(unknown)!r}")
    data = fields.get("data", {})
    if not isinstance(data, dict):
        raise EventError("data must be an object")
    for key in ("time", "source", "type"):
        if not isinstance(fields[key], str):
            raise EventError(f"{key} must be a string")
    event = Event(
        fields["time"],
        fields["source"],
        fields["type"],
        fields.get("sev", 6),
        data,
        {key: _typed(key, fields[key]) for key in OPTIONAL if key in fields},
    )
    format(event)
    return event


def environment(event: Event) -> dict[str, str]:
    """*event* as a program is told it: DRE_EVENT_TIME and so on, and DRE_EVENT_DATA_<KEY> for each of its data."""
    told = {
        "TIME": event.time,
        "SOURCE": event.source,
        "TYPE": event.type,
        "SEV": str(event.sev),
        "ID": str(event.optional.get("id", "")),
    }
    for key, value in event.data.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if "\0" not in text:  # none can be in an environment
            told.setdefault(f"DATA_{_KEY.sub('_', key.upper())}", text)
    return {f"DRE_EVENT_{key}": value for key, value in told.items()}


def host() -> str:
    """The source of this host: `/host:<name>`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", os.uname().nodename) or "localhost"
    return f"/host:{name}"


def new_line(event: Event) -> bytes:
    """The line of a new *event*, which has still to pass the intake. Raises EventError as format() does."""
    line = format(event)
    if len(line) > LIMIT - ROOM:
        raise EventError(f"event {event.type} has {len(line)} octets; {LIMIT - ROOM} is the most for a new one")
    return line


def emit(conf: Conf, type: str, source: str, data: Mapping[str, Any], sev: int = 6) -> str:
    """Hand an event to the monitor's intake and return its id; never waits longer than ACK_WAIT seconds.

    When nobody acknowledges it, it is appended to the spool for the intake to pick up; at 64 MiB it is dropped and
    counted there. Raises EventError only.
    """
    identity = new_id()
    line = new_line(Event(stamp(), source, type, sev, data, {"id": identity}))
    if not send(conf.monitor_sink, line):
        spool(conf.core_state_dir / "spool" / "event", line)
    return identity


def send(sink: Path, line: bytes, wait: float = ACK_WAIT) -> bool:
    """Send *line* to the intake's socket; True when the intake answered that it is spooled."""
    import select
    import socket  # slow, and a list emits nothing

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.connect(str(sink))
            connection.send(line)
            ready, _, _ = select.select([connection], [], [], wait)
            return bool(ready) and connection.recv(64) == b"ok"
        except OSError:
            return False  # nobody there, or its queue is full: the caller spools


def spool(directory: Path, line: bytes, counted: bool = True) -> bool:
    """Append *line* to the emitters' spool in *directory*; False when that is full or cannot be written.

    Then, unless not *counted* because the caller still has it, it is counted as dropped.

    Each user has files of its own, `emitted*.jsonl`, `lock*` and `dropped*` (root those without a number), so that
    the intake can tell from their owner who wrote them.
    """
    user = os.geteuid()
    own = f"-{user}" if user else ""
    try:
        with files.lock(directory / f"lock{own}", timeout=ACK_WAIT):
            size = sum(entry.stat().st_size for entry in os.scandir(directory) if entry.name.endswith(".jsonl"))
            if size + len(line) <= SPOOL_LIMIT:
                return _append(directory / f"emitted{own}.jsonl", line, user)
            if not counted:
                return False
            counter = directory / f"dropped{own}"
            dropped = int(counter.read_text()) if counter.exists() else 0
            files.write_atomic(counter, f"{dropped + 1}\n")
    except (OSError, DreError, ValueError):
        pass  # an event must never stop the work it tells of; the caller's own result is still reported
    return False


def _append(path: Path, line: bytes, user: int) -> bool:
    # The directory may be writable by a group: never follow a link, never write into a file that another user made.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        found = os.fstat(fd)
        if found.st_uid != user:
            return False
        if os.write(fd, line) < len(line):  # the disk is full
            os.ftruncate(fd, found.st_size)
            return False
        return True
    finally:
        os.close(fd)


def find(conf: Conf, identity: str) -> Event | None:
    """The event with this id in the intake's spool, or None when it is not there (any more).

    An id is the sender's to choose, so several events may carry it: the newest is returned, and it is `claimed` when
    any of them is. Reads only what the intake has already proven or marked.
    """
    needle = f'"id":{json.dumps(identity, ensure_ascii=False)}'.encode()
    newest = None
    claimed = False
    for segment in sorted((conf.core_state_dir / "spool" / "ingest").glob("*.jsonl"), reverse=True):
        for line in _lines_with(segment, needle):
            with contextlib.suppress(EventError):
                event = parse(line)
                if event.optional.get("id") == identity:
                    newest = newest or event
                    claimed = claimed or bool(event.optional.get("claimed"))
    if newest and claimed:
        return dataclasses.replace(newest, optional={**newest.optional, "claimed": True})
    return newest


def _lines_with(segment: Path, needle: bytes) -> Iterator[bytes]:
    """The whole lines of *segment* that hold *needle*, the last one first."""
    try:
        octets = segment.read_bytes()
    except FileNotFoundError:
        return  # the intake removes old segments
    position = octets.rfind(needle)
    while position >= 0:
        start = octets.rfind(b"\n", 0, position) + 1
        end = octets.find(b"\n", position)
        if end >= 0:  # else the intake is just writing it
            yield octets[start:end]
        position = octets.rfind(needle, 0, start)
