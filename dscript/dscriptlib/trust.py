# SPDX-License-Identifier: Apache-2.0
"""Whether an event is proven: every event it rests on lies in the intake's spool and is not merely claimed.

The intake marks what anybody could have written. A detection made by a rule lists the ids of its events in data.ids
and inherits the worst of them; an event without such a list must itself be in the spool. What cannot be found counts
as claimed.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from dre import event
from dre.conf import Conf
from dre.event import Event, EventError

MOST = 16  # events one detection may rest on, with those that they rest on themselves


class Spool:
    """`dre.event.find` for who asks again and again: a full spool need not be read each time.

    What is asked for is nearly always in the newest segment. Whether an older event with the same id is claimed tells a
    list of those ids that follows the spool as it grows.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.read: dict[str, int] = {}  # octets of each segment that were looked through
        self.claimed: dict[str, set[str]] = {}

    def find(self, identity: str) -> Event | None:
        """The newest event with that id; claimed, when any with that id is."""
        segments = sorted(self.directory.glob("*.jsonl"), reverse=True)
        self._follow(segments)
        for segment in segments:
            if (found := _newest(segment, identity)) is not None:
                if any(identity in ids for ids in self.claimed.values()):
                    found = dataclasses.replace(found, optional={**found.optional, "claimed": True})
                return found
        return None

    def _follow(self, segments: list[Path]) -> None:
        for name in self.read.keys() - {segment.name for segment in segments}:
            del self.read[name], self.claimed[name]
        for segment in segments:
            begin, ids = self.read.get(segment.name, 0), self.claimed.setdefault(segment.name, set())
            with contextlib.suppress(FileNotFoundError), segment.open("rb") as stream:  # the intake removes old ones
                stream.seek(begin)
                octets = stream.read()
                octets = octets[: octets.rfind(b"\n") + 1]
                found = _lines(octets, b'"claimed":true')
                ids.update(str(one.optional.get("id")) for one in found if one.optional.get("claimed"))
                begin += len(octets)
            self.read[segment.name] = begin


def _newest(segment: Path, identity: str) -> Event | None:
    """The last event of *segment* with that id."""
    needle = f'"id":{json.dumps(identity, ensure_ascii=False)}'.encode()
    try:
        octets = segment.read_bytes()
    except FileNotFoundError:
        return None
    found = _lines(octets[: octets.rfind(b"\n") + 1], needle)
    return next((one for one in found if one.optional.get("id") == identity), None)


def _lines(octets: bytes, needle: bytes) -> Iterator[Event]:
    """The events of the lines that hold *needle*, the last one first."""
    position = octets.rfind(needle)
    while position >= 0:
        start = octets.rfind(b"\n", 0, position) + 1
        with contextlib.suppress(EventError):
            yield event.parse(octets[start : octets.find(b"\n", position)])
        position = octets.rfind(needle, 0, start)


def rests_on(given: Event) -> tuple[str, ...]:
    """The ids that *given* rests on: those it lists, else its own."""
    listed = given.data.get("ids")
    words = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, list) else []
    ids = [str(word).strip() for word in words if str(word).strip()] or [str(given.optional.get("id", ""))]
    return tuple(dict.fromkeys(word for word in ids if word))


def doubt(conf: Conf, given: Event, find: Callable[[str], Event | None] | None = None) -> str | None:
    """Why *given* counts as claimed; None when it is proven. *find* looks an id up, in place of `dre.event.find`."""
    if given.optional.get("claimed"):
        return "it is claimed"
    own = given.optional.get("id")
    todo = list(rests_on(given))
    if not todo:
        return "it names no event id that it rests on"
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if len(seen) > MOST:
            return f"it rests on more than {MOST} events"
        found = find(name) if find else event.find(conf, name)
        if found is None:
            return f"event {name[:64]!r} is not in the intake's spool"
        if found.optional.get("claimed"):
            return f"event {name} is claimed"
        if name == own and (found.time, found.source, found.type) != (given.time, given.source, given.type):
            return f"event {name} is another one in the intake's spool"
        if "ids" in found.data:
            todo += rests_on(found)
    return None
