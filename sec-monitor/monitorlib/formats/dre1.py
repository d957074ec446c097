# SPDX-License-Identifier: Apache-2.0
"""Event lines of the first D-RE: LogFormat=DRE1.0>Event=…>TagSource=…>EventSource=…>EventDiscoverer=…>Message=…

An event of ours has its line as the Message, each ">" in it as JSON's \\u003e. It was sent by syslog, facility local5,
so what syslog puts before a line may stand there, and tells the time and the severity.
"""

import contextlib
import re
from typing import Any

from dre import event
from dre.event import Event, EventError

from monitorlib.formats import Foreign, kind, path, syslog, text
from monitorlib.formats import filled as records

__all__ = ["read", "records", "write"]
START = "LogFormat=DRE1.0>"
_FORM = re.compile(
    r"LogFormat=DRE1\.0>Event=([^>]+)(?:>TagSource=([^>]*))?(?:>EventSource=([^>]*))?"
    r"(?:>EventDiscoverer=([^>]*))?(?:>Message=(.*))?",
    re.DOTALL,
)
_OLD_WORDS = {"Host": "host", "AppContainer": "app"}  # of a source, and what ours has for them
_NEW_WORDS = {new: old for old, new in _OLD_WORDS.items()}


def read(record: bytes) -> Event | Foreign:
    """The event of one line. Raises EventError."""
    line = text(record.rstrip(b"\r\0"))
    at = line.find(START)
    found = _FORM.fullmatch(line, at) if at >= 0 else None
    if not found:
        raise EventError(f"not {START}Event=…, and the other fields in their order")
    name, tag, source, discoverer, message = found.groups("")
    if message.startswith('{"time":"'):
        with contextlib.suppress(EventError):
            return event.parse(message)
    when, sev = event.stamp(), syslog.WITHOUT
    if at:
        before = syslog.read(line[:at].encode())
        when, sev = before.time, before.sev
        source = source or before.source
    kinds, place = kind(name, "dre1"), path(_words(source, _OLD_WORDS))
    data: dict[str, Any] = {"message": message} if message else {}
    for key, value, same in (
        ("event", name, kinds),
        ("source", source, _words(place, _NEW_WORDS)),
        ("discoverer", discoverer, source),
        ("tag", tag, source),
    ):
        if value and value != same:
            data[key] = value
    return Foreign(when, place, kinds, sev, data)


def _words(source: str, words: dict[str, str]) -> str:
    """*source* with the word before the ":" of each part changed as *words* says."""
    parts = [part.partition(":") for part in source.split("/")]
    return "/".join((words.get(word, word) if colon else word) + colon + rest for word, colon, rest in parts)


def write(made: Event) -> bytes:
    """The line of *made*."""
    source = _words(made.source, _NEW_WORDS)
    own = event.format(made).decode().rstrip("\n").replace(">", "\\u003e")
    fields = {
        "LogFormat": "DRE1.0",
        "Event": made.type,
        "TagSource": source,
        "EventSource": source,
        "EventDiscoverer": source,
        "Message": own,
    }
    return ">".join(f"{key}={value}" for key, value in fields.items()).encode() + b"\n"
