# SPDX-License-Identifier: Apache-2.0
"""Searching the log, the newest entry first, a page at a time, and for no longer than `PATIENCE`.

The store searches forwards; here it is asked for one step of the log after the other, from its end to its beginning.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Any

from dre import event, units
from dre.errors import UsageError

from dboxlib import searching

ROWS = 25  # of one page
STEP = 1_000  # entries of one step while there is something in them
WIDEST = 128_000  # entries of one step where nothing is found; the store looks through more at a time
PATIENCE = 2.0  # seconds for one page; the next one goes on from there
_HEX = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{3}))?)?Z?)?")


@dataclass(frozen=True)
class Wanted:
    """What is searched; empty fields are not asked for."""

    stream: str = ""
    type: str = ""
    writer: str = ""
    since: str = ""
    until: str = ""
    digest: str = ""
    text: str = ""


@dataclass
class Found:
    """One page of a search; *before* is where the next, older one goes on, None at the end."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    before: int | None = None
    cut: bool = False  # because it took too long


def wanted(given: dict[str, str]) -> Wanted:
    """What a form asks for. Raises UsageError."""
    fields = {key: given.get(key, "").strip() for key in Wanted.__dataclass_fields__}
    if fields["stream"]:
        units.name(fields["stream"])
    for key in ("writer", "digest"):
        fields[key] = fields[key].lower()
        if fields[key] and not _HEX.fullmatch(fields[key]):
            raise UsageError(f"{key}: expected 64 hex digits")
    for key, end in (("since", "00:00:00.000"), ("until", "23:59:59.999")):
        fields[key] = _time(key, fields[key], end)
    if len(fields["text"]) > 200 or len(fields["type"]) > 200:
        raise UsageError("at most 200 characters can be searched for")
    return Wanted(**fields)


def _time(key: str, text: str, end: str) -> str:
    """A time as entries have it; parts left out are the first or the last possible ones."""
    if not text:
        return ""
    match = _TIME.fullmatch(text)
    if not match:
        raise UsageError(f"{key}: expected a UTC time as 2026-01-31 or 2026-01-31T12:30")
    clock = (match[2] or end[:5]) + ":" + (match[3] or end[6:8]) + "." + (match[4] or end[9:])
    found = f"{match[1]}T{clock}Z"
    try:
        event.seconds(found)
    except ValueError:
        raise UsageError(f"{key}: there is no such time as {found}") from None
    return found


def find(store: Any, size: int, asked: Wanted, before: int | None, octets: bool) -> Found:
    """The newest entries below *before*; *octets*: whether the one who asks may read them."""
    if asked.text and not octets:
        raise UsageError("your role may not read octets, and so not search in them")
    high, width, until = size if before is None else min(before, size), STEP, time.monotonic() + PATIENCE
    terms = {key: value for key, value in asked.__dict__.items() if value}
    found = Found()
    while high > 0 and len(found.rows) < ROWS:
        if time.monotonic() > until:
            found.before, found.cut = high, True
            return found
        low = max(high - width, 0)
        rows = list(searching.find(store, {**terms, "after": low - 1, "before": high}, STEP))
        if any("more" in row for row in rows) or (len(rows) == STEP and width > STEP):
            width = STEP  # there may be more of them than we were given: look closer
            continue
        room = ROWS - len(found.rows)
        found.rows += rows[::-1][:room]
        high = rows[-room]["index"] if len(rows) > room else low
        width = STEP if rows else min(2 * width, WIDEST)
    found.before = high or None
    return found
