# SPDX-License-Identifier: Apache-2.0
"""Events that the demonstration looks at: in the intake's spool, in the script engine's journal, in the D-Box."""

import datetime
import json
from collections.abc import Iterable
from typing import Any

from demolib.places import STATE

Event = dict[str, Any]


def spooled() -> list[Event]:
    """What the intake has taken in so far."""
    lines = [
        line for path in sorted((STATE / "spool/ingest").glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines if line.endswith("}")]  # the last line may just be being written


def arrivals() -> list[tuple[float, Event]]:
    """What the script engine has read from /run/dre/script, each with the moment at which it read it."""
    lines = [
        line for path in sorted((STATE / "script/journal").glob("*.log")) for line in path.read_text().splitlines()
    ]
    records = [json.loads(line.partition(" ")[2]) for line in lines]  # the first word is a check sum
    return [(seconds(one["seen"]), json.loads(one["line"])) for one in records if one["kind"] == "event"]


def seconds(stamp: str) -> float:
    """Seconds since the epoch of an event time."""
    return datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def moment(event: Event) -> float:
    """The time of an event in seconds since the epoch."""
    return seconds(event["time"])


def first(events: Iterable[Event], type: str, after: float = 0.0, **data: Any) -> Event | None:
    """The earliest event of *type* not before *after* whose data has all of *data*."""
    found = [
        event
        for event in events
        if event["type"] == type and moment(event) >= after and data.items() <= event.get("data", {}).items()
    ]
    return min(found, key=moment, default=None)
