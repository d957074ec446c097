# SPDX-License-Identifier: Apache-2.0
"""The types of values in a script: functions from text to a value that raise UsageError."""

import re

from dre import units
from dre.errors import UsageError


def word(text: str) -> str:
    """A word of a person's or a document's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise UsageError(f"{text!r} is not a word of letters, digits, '.', '_' and '-'")
    return text


def event_type(text: str) -> str:
    """The type of an event."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+", text):
        raise UsageError(f"{text!r} is not an event type such as shop.overload")
    return text


def url(text: str) -> str:
    """An address that can be asked."""
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9_.~!$&'()*+,;=:@%/?-]*)?", text):
        raise UsageError(f"{text!r} is not an address such as http://10.231.0.11/")
    return text


def count(text: str) -> int:
    """A number from 1 to 9999."""
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise UsageError(f"expected a number from 1 to 9999, got {text!r}")
    return int(text)


def number(text: str) -> float:
    """A number from 0 on."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise UsageError(f"expected a number from 0 on, got {text!r}")
    return float(text)


PARAMETER = re.compile(r"\$([a-z0-9][a-z0-9-]{0,30})")  # a whole value; never a part of one
PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def argument(text: str) -> str:
    """One word of a command."""
    if "\0" in text or len(text) > 1000:
        raise UsageError("a word of a command has at most 1000 characters")
    return text


def path(text: str) -> str:
    """An absolute path."""
    if not text.startswith("/") or "\0" in text or len(text) > 1000:
        raise UsageError(f"{text[:60]!r} is not an absolute path")
    return text


def some_time(text: str) -> float:
    """Seconds above 0, at most thirty days."""
    seconds = units.duration(text)
    if not 0 < seconds <= 30 * 86400:
        raise UsageError(f"{text!r} must be above 0 and at most 30d")
    return seconds


def source(text: str) -> str:
    """The source of an event, or a pattern with `*` for any part of it."""
    if not re.fullmatch(r"/[A-Za-z0-9_.:@+/*-]{0,200}", text):
        raise UsageError(f"{text[:60]!r} is not a source such as /host:h7/app:web1 or /host:h7/*")
    return text


def field_value(text: str) -> str:
    """What a field of an event must be equal to."""
    if not 0 < len(text) <= 200 or not text.isprintable():
        raise UsageError("a field is compared with 1 to 200 printable characters")
    return text


def agreed_value(text: str) -> str:
    """What a parameter stands for; what it must be like is the business of where it stands."""
    if not 0 < len(text) <= 500 or not text.isprintable() or text.startswith("$"):
        raise UsageError("a parameter is 1 to 500 printable characters, and none stands for another one")
    return text
