# SPDX-License-Identifier: Apache-2.0
"""Snapshots at intervals: which apps are due, and what is done with one that is.

The interval and the number kept are properties of the app. A timer of systemd, or cron where that does not run, calls
`dre-app snapshot run` every five minutes; nothing here waits. Only snapshots made here are ever deleted here.
"""

import time

from dre import app as apps
from dre import event, snapshot
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError
from dre.snapshot import Snapshot

_EARLY = 30.0  # that a timer may be early: else an app would be due only the next time, and each interval longer


def due(conf: Conf) -> list[str]:
    """The apps that seem due. Reads without their locks, so that one which is held does not keep up the others."""
    found = []
    for name in apps.names(conf):
        try:
            if _due(App(conf, name)):
                found.append(name)
        except DreError:
            continue  # half made, or destroyed meanwhile; not a thing to report every five minutes
    return found


def run(app: App) -> Snapshot | None:
    """Save the app where it is due, frozen if it runs, and delete what is more than it keeps."""
    if not _due(app):
        return None
    saved = snapshot.save(app, None, description="scheduled", freeze=True, scheduled=True)
    snapshot.prune(app, app.spec().snapshot_keep, scheduled=True)
    return saved


def _due(app: App) -> bool:
    every = app.need().snapshot_every
    if every is None:
        return False
    last = [saved.created for saved in snapshot.every(app) if saved.scheduled][-1:]
    return not last or time.time() - event.seconds(last[0]) >= every - _EARLY
