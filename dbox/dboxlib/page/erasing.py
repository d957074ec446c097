# SPDX-License-Identifier: Apache-2.0
"""Erasures that one administrator asked for and that wait for a second: as the API has it, they are entries."""

from dataclasses import dataclass
from typing import Any

from dre import event, trust
from dre.errors import DreError

from dboxlib import clients, searching

ASKED = "dbox.erase.asked"
WAITS = 7 * 86_400  # seconds for the second administrator to agree, as in the API
MOST = 1_000


@dataclass(frozen=True)
class Wanted:
    """What one administrator wants to be erased."""

    index: int
    reason: str
    by: clients.Client


def waiting(store: Any) -> list[Wanted]:
    """Those that another administrator may agree to; who asked must still be one."""
    now = event.stamp()
    terms = {"stream": "dbox", "type": ASKED, "since": event.stamp(event.seconds(now) - WAITS)}
    own = trust.fingerprint(trust.certificates(store.certificate("owner").encode(), "owner")[0])
    found: dict[tuple[int, str], Wanted] = {}
    for row in searching.find(store, terms, MOST):
        wanted = _read(store, row["index"], now) if row.get("writer") == own else None
        if wanted is not None:
            found.setdefault((wanted.index, wanted.by.fingerprint), wanted)
    return list(found.values())


def _read(store: Any, number: int, now: str) -> Wanted | None:
    try:
        kept = store.payload(number)
        data = event.parse(kept[1]).data
        index, reason, by = data["index"], data["reason"], clients.find(store, data["by"])
        there = store.payload(index)
    except (DreError, KeyError, TypeError):
        return None  # tampered, or not what we write
    if by is None or by.role != "admin" or not by.holds(now) or there is None or there[1] is None:
        return None
    return Wanted(index, str(reason), by)
