# SPDX-License-Identifier: Apache-2.0
"""Whether an event is proven: every event it rests on lies in the intake's spool and is not merely claimed.

The intake marks what anybody could have written. A detection made by a rule lists the ids of its events in data.ids
and inherits the worst of them; an event without such a list must itself be in the spool. What cannot be found counts
as claimed.
"""

from dre import event
from dre.conf import Conf
from dre.event import Event

MOST = 16  # events one detection may rest on, with those that they rest on themselves


def rests_on(given: Event) -> tuple[str, ...]:
    """The ids that *given* rests on: those it lists, else its own."""
    listed = given.data.get("ids")
    words = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, list) else []
    ids = [str(word).strip() for word in words if str(word).strip()] or [str(given.optional.get("id", ""))]
    return tuple(dict.fromkeys(word for word in ids if word))


def doubt(conf: Conf, given: Event) -> str | None:
    """Why *given* counts as claimed; None when it is proven."""
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
        found = event.find(conf, name)
        if found is None:
            return f"event {name[:64]!r} is not in the intake's spool"
        if found.optional.get("claimed"):
            return f"event {name} is claimed"
        if name == own and (found.time, found.source, found.type) != (given.time, given.source, given.type):
            return f"event {name} is another one in the intake's spool"
        if "ids" in found.data:
            todo += rests_on(found)
    return None
