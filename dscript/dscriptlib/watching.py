# SPDX-License-Identifier: Apache-2.0
"""Monitors that look at events and not at samples: event, sequence, sysmon, evidence. Pure, as the core is.

What one remembers is its window, a list of [time, ids, role]. Whether it is raised follows from that and the time.
"""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dre.event import Event

from dscriptlib.model import Monitor

KINDS = ("event", "sequence", "sysmon", "evidence")
Window = list[list[Any]]
FIRST, LAST = "first", "last"  # roles: what began a sequence; what is counted, or ended it


def types(monitor: Monitor) -> tuple[str, ...]:
    """The types of the events that *monitor* looks at."""
    if monitor.watch == "sysmon":
        return (f"sysmon.{monitor.finding}",)
    named = (monitor.first, monitor.then, monitor.unless) if monitor.watch == "sequence" else (monitor.type,)
    return tuple(name for name in named if name is not None)


def concerns(monitor: Monitor, event: Event) -> bool:
    """Whether *event* is one that *monitor* looks at."""
    if monitor.watch not in KINDS or event.type not in types(monitor):
        return False
    if monitor.of is not None and not _about(event, "app", "of", monitor.of):
        return False
    if monitor.system is not None and not _about(event, "system", "system", monitor.system):
        return False
    if monitor.source is not None and not fnmatch.fnmatchcase(event.source, monitor.source):
        return False
    return all(_text(event.data.get(key)) == value for key, value in monitor.fields)


def _about(event: Event, part: str, key: str, name: str) -> bool:
    """Whether the event comes from a container, or its data name it."""
    return f"{part}:{name}" in event.source.split("/") or _text(event.data.get(key)) == name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def after(monitor: Monitor, window: Window, time: float, type: str, ids: Sequence[str], began: Window) -> Window:
    """The window once an event of *type* came; *began* is the window that may hold what began a sequence."""
    if monitor.watch != "sequence":
        kept = [*window, [time, list(ids), LAST]]
        kept.sort(key=lambda item: float(item[0]))
        return kept[-monitor.count :] if monitor.watch != "evidence" else kept[-1:]
    kept = list(window)
    if type == monitor.unless:
        kept = [item for item in kept if item[2] != FIRST]
    if type == monitor.then:
        first = next((item for item in began if item[2] == FIRST), None)
        if first is not None and 0 <= time - first[0] <= monitor.within:
            kept = [item for item in kept if item[2] == FIRST]
            kept.append([time, list(dict.fromkeys([*ids, *first[1]])), LAST])
    if type == monitor.first:
        kept = [[time, list(ids), FIRST], *(item for item in kept if item[2] != FIRST)]
    return kept


def raised(monitor: Monitor, window: Window, now: float) -> list[str] | None:
    """The ids of the events for which *monitor* is raised at *now*; None when it is clear."""
    ends = _ends(monitor, window)
    if ends is None or (now < ends) is (monitor.watch == "evidence"):
        return None
    ids = [name for time, names, role in reversed(window) if role == LAST for name in names]
    return list(dict.fromkeys(ids))


def due(monitor: Monitor, window: Window, now: float) -> float | None:
    """When time alone changes what *monitor* says; before anything was seen, evidence wants to know the time."""
    if monitor.watch == "evidence" and not window:
        return 0.0
    ends = _ends(monitor, window)
    return ends if ends is not None and now < ends else None


def _ends(monitor: Monitor, window: Window) -> float | None:
    """The end of what is now: of being raised, for evidence of being clear."""
    counted = [float(item[0]) for item in window if item[2] == LAST]
    if monitor.watch == "evidence":
        return counted[-1] + (monitor.missing or 0.0) if counted else None
    return counted[-monitor.count] + monitor.within if len(counted) >= monitor.count else None


def windows(monitor: Monitor, state: Mapping[str, Window], proven: bool) -> Window:
    """The window of *monitor* for proven events, or for claimed ones, which have one of their own."""
    return state.get(monitor.id if proven else f"{monitor.id}?", [])
