# SPDX-License-Identifier: Apache-2.0
"""Saved states at intervals: which systems are due, and what is done with one that is.

Interval and number are properties of the system. A timer of systemd, or cron where that does not run, calls
`dre-sys snapshot run` every five minutes; nothing here waits. Only what was saved here is ever deleted here.
"""

import time

from dre import event
from dre.conf import Conf
from dre.errors import DreError
from dre.system import model, saved
from dre.system.model import RUNNING, System
from dre.system.saved import CHECKPOINT, SCHEDULED, SNAPSHOT, Saved

_EARLY = 30.0  # that a timer may be early: else a system would be due only the next time, and each interval longer


def due(conf: Conf) -> list[str]:
    """The systems that seem due. Reads without their locks, so that one which is held does not keep up the others."""
    found = []
    for name in sorted(model.kept(conf)):
        try:
            if _due(System(conf, name)):
                found.append(name)
        except DreError:
            continue  # half made, or destroyed meanwhile; not a thing to report every five minutes
    return found


def run(system: System) -> Saved | None:
    """Save the system where it is due, and delete what is more than it keeps."""
    if not _due(system):
        return None
    kind = CHECKPOINT if system.state() in RUNNING else SNAPSHOT
    made = saved.save(system, kind, None, SCHEDULED)
    saved.prune(system, system.ours().snapshot_keep, scheduled=True)
    return made


def _due(system: System) -> bool:
    spec = system.spec()
    if spec is None or spec.snapshot_every is None:
        return False
    last = [made.created for made in saved.every(system) if made.description == SCHEDULED][-1:]
    return not last or time.time() - event.seconds(last[0]) >= spec.snapshot_every - _EARLY
