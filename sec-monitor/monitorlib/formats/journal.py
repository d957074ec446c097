# SPDX-License-Identifier: Apache-2.0
"""The journal: `journalctl -o json` and `-o export`, which is what systemd-journal-remote reads too.

An event of ours is an entry with the event line as DRE_EVENT; by DRE_TYPE and DRE_SOURCE journalctl finds it.
"""

import functools
import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

from dre import event
from dre.event import Event, EventError

from monitorlib.formats import LARGEST, Foreign, lines, names, number, place, said, strict, text
from monitorlib.formats.syslog import FACILITIES

END = 253402300800  # seconds from the epoch to the year 10000
# Fields told otherwise than under their own name.
_TOLD = frozenset({"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY"})
Fields = dict[str, Any]


def records(blocks: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Lines of JSON and entries of the export format, mixed as they come; a broken entry is an EventError."""
    numbered = lines(blocks)
    for first, line in numbered:
        if line is None or line[:1] == b"{":
            yield first, line
        elif line:
            yield first, _entry(line, numbered)


def _entry(line: bytes | None, numbered: Iterator[tuple[int, bytes | None]]) -> Fields | EventError | None:
    """The fields of the entry that begins with *line*, to its blank line; what is wrong, or None if too large."""
    fields: Fields = {}
    size, wrong, large = 0, "", False
    while line or line is None:
        if line is None or size > LARGEST:
            large = True
        elif not wrong:
            name, equals, value = line.partition(b"=")
            if not equals:
                value, wrong = _binary(numbered)
            size += len(line) + len(value)
            _add(fields, text(name), text(value))
        _, line = next(numbered, (0, b""))
    return None if large else EventError(wrong) if wrong else fields


def _binary(numbered: Iterator[tuple[int, bytes | None]]) -> tuple[bytes, str]:
    """The value that follows a line with a name alone: its length in 8 octets, itself, a newline. Or what is wrong."""
    parts: list[bytes] = []
    have, length = 0, -1
    for _, line in numbered:
        if line is None:
            return b"", "a field of the export format is too large"
        parts.append(line + b"\n")
        have += len(line) + 1
        if length < 0 and have >= 8:
            length = int.from_bytes(b"".join(parts)[:8], "little")
            if length > LARGEST:
                return b"", f"a field of the export format says it has {length} octets"
        if 0 <= length < have - 8:
            whole = b"".join(parts)
            return whole[8 : 8 + length], "" if have == length + 9 else "a field does not end where it says"
    return b"", "a field of the export format ends early, or has no ="


def _add(fields: Fields, name: str, value: str) -> None:
    if name not in fields:
        fields[name] = value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


def read(record: Any) -> Event | Foreign:
    """The event of one record. Raises EventError."""
    if isinstance(record, EventError):
        raise record
    fields = strict(record) if isinstance(record, bytes) else record
    if not isinstance(fields, dict):
        raise EventError("not an entry of the journal")
    if "DRE_EVENT" in fields:
        return event.parse(str(_plain(fields["DRE_EVENT"])))
    data: dict[str, Any] = {"message": _plain(fields.get("MESSAGE", ""))}
    for key, field in (("facility", "SYSLOG_FACILITY"), ("unit", "_SYSTEMD_UNIT"), ("pid", "_PID"), ("uid", "_UID")):
        if field in fields:
            value = _plain(fields[field])
            data[key] = number(value) if isinstance(value, str) else value
    facility = data.get("facility")
    if isinstance(facility, int) and facility < len(FACILITIES):
        data["facility"] = FACILITIES[facility]
    for key, value in fields.items():
        if key[:1] != "_" and key not in _TOLD:
            data[key] = value if type(value) is str else _plain(value)
    source, changed = place(_first(fields, "_HOSTNAME"), _first(fields, "SYSLOG_IDENTIFIER") or _first(fields, "_COMM"))
    if changed:
        data.update(changed)
    cursor = fields.get("__CURSOR")
    identity = hashlib.sha256(cursor.encode(errors="replace")).hexdigest()[:16] if isinstance(cursor, str) else ""
    return Foreign(_when(fields), source, "journal.message", _priority(fields), data, identity)


def _when(fields: Fields) -> str:
    micros = fields.get("__REALTIME_TIMESTAMP")
    if not (isinstance(micros, str) and micros.isascii() and micros.isdecimal() and len(micros) < 19):
        raise EventError("an entry of the journal needs __REALTIME_TIMESTAMP, microseconds")
    seconds, rest = divmod(int(micros), 1_000_000)
    if seconds >= END:
        raise EventError(f"__REALTIME_TIMESTAMP {micros} is after the year 9999")
    return f"{_second(seconds)}{rest // 1000:03d}Z"


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds))


def _priority(fields: Fields) -> int:
    said = _first(fields, "PRIORITY")
    if said in ("", "0", "1", "2", "3", "4", "5", "6", "7"):
        return int(said or 6)
    raise EventError(f"PRIORITY {said[:60]!r} is not one from 0 to 7")


def _first(fields: Fields, name: str) -> str:
    """The value of a field as text, the first of several; "" without one."""
    value = fields.get(name)
    if isinstance(value, str) or value is None:
        return value or ""
    plain = _plain(value)
    return str(plain[0] if isinstance(plain, list) and plain else plain or "")


def _plain(value: Any, inner: bool = False) -> Any:
    """Text; a list of texts when the field is there several times; None for one journalctl found too long to print."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, list) and value and all(type(one) is int for one in value):  # octets that do not print
        try:
            return text(bytes(value))
        except ValueError:
            raise EventError("a binary field of the journal has numbers from 0 to 255") from None
    if inner or not isinstance(value, list):
        raise EventError(f"a field of the journal is text or octets, once or several times, not {str(value)[:60]}")
    return [_plain(one, inner=True) for one in value]


def write(made: Event) -> bytes:
    """The entry of *made* in the export format."""
    host, program = names(made.source)
    fields = {
        "__REALTIME_TIMESTAMP": f"{round(event.seconds(made.time) * 1000)}000",
        "MESSAGE": said(made),
        "PRIORITY": str(made.sev),
        "SYSLOG_FACILITY": str(FACILITIES.index("local5")),
        "SYSLOG_IDENTIFIER": program or "dre-event",
        "_HOSTNAME": host or "localhost",
        "DRE_TYPE": made.type,
        "DRE_SOURCE": made.source,
        "DRE_EVENT": event.format(made).decode().rstrip("\n"),
    }
    return "".join(f"{key}={value}\n" for key, value in fields.items()).encode() + b"\n"
