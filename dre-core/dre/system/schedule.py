# SPDX-License-Identifier: Apache-2.0
"""Saved states at intervals: which systems are due, and what is done with one that is.

Interval and number are properties of the system. A timer of systemd, or cron where that does not run, calls
`dre-sys snapshot run` every five minutes; nothing here waits. Only what was saved here is ever deleted here.
"""

from dre import interval
from dre.conf import Conf
from dre.system import model, saved
from dre.system.model import RUNNING, System
from dre.system.saved import CHECKPOINT, SCHEDULED, SNAPSHOT, Saved


def due(conf: Conf) -> list[str]:
    """The systems that seem due; see dre.interval."""
    return interval.those(sorted(model.kept(conf)), lambda name: _due(System(conf, name)))


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
    if spec is None:
        return False

    def stamps() -> list[str]:
        return [made.created for made in saved.every(system) if made.description == SCHEDULED]

    return interval.passed(spec.snapshot_every, stamps)
