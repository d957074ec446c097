# SPDX-License-Identifier: Apache-2.0
"""Lines of syslog: RFC 5424; RFC 3164 and what rsyslog, logger and busybox make of it, also as they stand in files.

An event of ours is an RFC 5424 line whose element `dre-event@32473` has the event line as its parameter `event`; 32473
is the enterprise number for examples (RFC 5612). The other fields are for whoever reads it without knowing us.
"""

import functools
import re
import time
from typing import Any

from dre import event
from dre.event import Event, EventError

from monitorlib.formats import Foreign, moment, names, number, place, said, text
from monitorlib.formats import filled as records

__all__ = ["FACILITIES", "header", "read", "records", "write"]
ELEMENT = "dre-event@32473"
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "clock", *(f"local{number}" for number in range(8))),
)
LOCAL5 = FACILITIES.index("local5")  # that of the first D-RE
WITHOUT = 5  # severity where a line has none: RFC 3164, section 4.3.3
_SEVERITIES = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
_LEVELS = {**{name: level for level, name in enumerate(_SEVERITIES)}, "panic": 0, "error": 3, "warning": 4}
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_NEW = re.compile(r"<(\d{1,3})>1 (\S+) (\S+) (\S+) (\S+) (\S+) (?:-|(?=\[))", re.ASCII)
_NAME = r'[^\s=\]"\x00-\x20\x7f]{1,32}'
_VALUE = r'[^"\\\]]*(?:\\.[^"\\\]]*)*'
_ONE = re.compile(rf'\[({_NAME})((?: +{_NAME}="{_VALUE}")*) *\]', re.DOTALL)
_PARAMETER = re.compile(rf' +({_NAME})="({_VALUE})"', re.DOTALL)
_PRIORITY = re.compile(r"<(\d{1,3})>", re.ASCII)
_OLD = re.compile(
    r"(?:([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d)|(\d{4}-\d\d-\d\dT\S+))"  # when
    r"(?: (\S*[^\s:\]]))?"  # host: logger writes none
    rf"(?: ({'|'.join(FACILITIES)})\.({'|'.join(_LEVELS)}))?"  # busybox
    r"(?: ([^\s:\[]{1,128})(?:\[([^\s\]]{1,64})\])?:(?: |$)| )(.*)",
    re.DOTALL | re.ASCII,
)
_TAG = re.compile(r" ?([^\s:\[]{1,128})(?:\[([^\s\]]{1,64})\])?:(?: |$)", re.ASCII)


def read(record: bytes) -> Event | Foreign:
    """The event of one line. Raises EventError."""
    line = text(record.rstrip(b"\r\0"))
    found = _NEW.match(line)
    if found:
        return _modern(found, line)
    facility, sev, when, host, program, pid, message = header(line)
    source, changed = place(host, program)
    data: dict[str, Any] = {"message": message}
    if facility:
        data["facility"] = facility
    if pid:
        data["pid"] = number(pid)
    return Foreign(when, source, "syslog.message", sev, {**data, **changed})


def header(line: str) -> tuple[str, int, str, str, str, str, str]:
    """Facility, severity, event time, host, program, pid and message of a line that is not RFC 5424.

    "" is what it does not tell. Raises EventError when it tells neither a priority nor a time.
    """
    facility, sev, rest = "", WITHOUT, line
    priority = _PRIORITY.match(line)
    if priority:
        facility, sev = _priority(priority[1])
        rest = line[priority.end() :]
    found = _OLD.match(rest)
    if found:
        old, iso, host, named, level, program, pid, message = found.groups("")
        if named:
            facility, sev = named, _LEVELS[level]
        return facility, sev, _dated(old) if old else moment(iso), host, program, pid, message
    if not priority:
        raise EventError("neither RFC 5424 nor RFC 3164: it begins with no <priority> and no time")
    tag = _TAG.match(rest)
    program, pid = tag.groups("") if tag else ("", "")
    return facility, sev, event.stamp(), "", program, pid, rest[tag.end() :] if tag else rest


@functools.lru_cache(maxsize=192)
def _priority(digits: str) -> tuple[str, int]:
    facility, sev = divmod(int(digits), 8)
    if facility >= len(FACILITIES):
        raise EventError(f"<{digits}> is not a priority from 0 to 191")
    return FACILITIES[facility], sev


def _modern(found: re.Match[str], line: str) -> Event | Foreign:
    """The event of a line of RFC 5424 whose header is *found*."""
    digits, when, host, program, pid, msgid = found.groups()
    at = found.end()
    elements: dict[str, dict[str, Any]] = {}
    while line.startswith("[", at):
        one = _ONE.match(line, at)
        if not one or one[1] in elements:
            raise EventError("its structured data is not as in RFC 5424")
        elements[one[1]] = _parameters(one[2])
        at = one.end()
    if at < len(line) and line[at] != " ":
        raise EventError("its structured data is not as in RFC 5424")
    if isinstance(ours := elements.get(ELEMENT, {}).get("event"), str):
        return event.parse(ours)
    facility, sev = _priority(digits)
    data: dict[str, Any] = {"message": line[at + 1 :].removeprefix("\ufeff"), "facility": facility}
    if pid != "-":
        data["pid"] = number(pid)
    if msgid != "-":
        data["msgid"] = msgid
    if elements:
        data["sd"] = elements
    source, changed = place("" if host == "-" else host, "" if program == "-" else program)
    if changed:
        data.update(changed)
    return Foreign(event.stamp() if when == "-" else moment(when), source, "syslog.message", sev, data)


def _parameters(written: str) -> dict[str, Any]:
    """The parameters of an element; one that stands several times has a list of values."""
    found: dict[str, Any] = {}
    for name, value in _PARAMETER.findall(written):
        plain = _unescaped(value) if "\\" in value else value
        if name not in found:
            found[name] = plain
        elif isinstance(found[name], list):
            found[name].append(plain)
        else:
            found[name] = [found[name], plain]
    return found


def _unescaped(value: str) -> str:
    """*value* without the backslash before a quote, a backslash or a closing bracket."""
    return "\\".join(part.replace('\\"', '"').replace("\\]", "]") for part in value.split("\\\\"))


@functools.lru_cache(maxsize=4096)
def _dated(said: str) -> str:
    """The event time of `Nov 26 10:00:00`, local time here, in the newest year that is not over a day ahead."""
    import datetime  # only where a time has no year

    now = time.time()
    this = time.localtime(now).tm_year
    for year in range(this + 1, this - 9, -1):  # eight years, for 29 February
        try:
            day = datetime.datetime(year, _month(said[:3]), int(said[4:6]))
            seconds = day.replace(hour=int(said[7:9]), minute=int(said[10:12]), second=int(said[13:15])).timestamp()
        except ValueError:
            continue
        if seconds <= now + 86400:
            return event.stamp(seconds)
    raise EventError(f"{said!r} is not a time as in RFC 3164")


def _month(name: str) -> int:
    at = _MONTHS.index(name)
    if at % 3:
        raise ValueError(f"{name} is no month")
    return at // 3 + 1


def write(made: Event) -> bytes:
    """The line of RFC 5424 of *made*, facility local5."""
    own = event.format(made).decode().rstrip("\n")
    quoted = own.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
    host, program = names(made.source)
    msgid = made.type if len(made.type) <= 32 else "-"
    fields = f"{made.time} {host[:255] or '-'} {program[:48] or '-'} - {msgid}"
    return f'<{LOCAL5 * 8 + made.sev}>1 {fields} [{ELEMENT} event="{quoted}"] {said(made)}'.rstrip().encode() + b"\n"
