# SPDX-License-Identifier: Apache-2.0
"""Snapshots at intervals: which apps are due, and what is done with one that is.

The interval and the number kept are properties of the app. A timer of systemd, or cron where that does not run, calls
`dre-app snapshot run` every five minutes; nothing here waits. Only snapshots made here are ever deleted here.
"""

from dre import app as apps
from dre import interval, snapshot
from dre.app import App
from dre.conf import Conf
from dre.snapshot import Snapshot


def due(conf: Conf) -> list[str]:
    """The apps that seem due; see dre.interval."""
    return interval.those(apps.names(conf), lambda name: _due(App(conf, name)))


def run(app: App) -> Snapshot | None:
    """Save the app where it is due, frozen if it runs, and delete what is more than it keeps."""
    if not _due(app):
        return None
    saved = snapshot.save(app, None, description="scheduled", freeze=True, scheduled=True)
    snapshot.prune(app, app.spec().snapshot_keep, scheduled=True)
    return saved


def _due(app: App) -> bool:
    def stamps() -> list[str]:
        return [saved.created for saved in snapshot.every(app) if saved.scheduled]

    return interval.passed(app.need().snapshot_every, stamps)
