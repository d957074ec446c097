# SPDX-License-Identifier: Apache-2.0
"""What a killed verb left is ended here, before the next verb on that app: the only way to get an app's lock.

Create is undone, and so are clone and save; adopt, destroy, load, undo, limit, set, isolate and rename are done to
their end. Reading verbs do it too, unless a verb is just at work.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from dre import app as apps
from dre import files
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, TimedOutError


@contextlib.contextmanager
def held(conf: Conf, name: str, doomed: bool = False, timeout: float = 60.0) -> Iterator[App]:
    """The app *name*, locked, with nothing unfinished. With *doomed* it is about to be destroyed: do not undo first."""
    with held_all(conf, [name], doomed, timeout) as (app,):
        yield app


@contextlib.contextmanager
def held_all(conf: Conf, names: Sequence[str], doomed: bool = False, timeout: float = 60.0) -> Iterator[list[App]]:
    """As `held`, several apps at once, in the order of *names*."""
    from dre import existence  # here and below: reading verbs call look, and seldom find anything to end

    found = [App(conf, name) for name in names]
    with _locked(found, timeout):
        for app in found:
            settle(app, doomed)
            existence.tidy(app)
        yield found


def _locked(wanted: Sequence[App], timeout: float = 60.0) -> AbstractContextManager[None]:
    """The locks of the apps, and of the other names of unfinished renames."""
    return files.locks(
        lambda: set().union(*map(_partners, wanted)), lambda name: App(wanted[0].conf, name).locked(timeout)
    )


def _partners(app: App) -> set[str]:
    intent = None
    with contextlib.suppress(DreError):  # damaged: whoever settles the app says so
        intent = app.intent()
    return {intent["old"], intent["new"]} if intent and intent["verb"] == "rename" else {app.name}


def look(conf: Conf, name: str) -> App:
    """The app *name* for reading: what is unfinished is ended first, unless its verb is still at work."""
    app = App(conf, name)
    intent = app.intent()
    if intent is not None and intent.get("stage") == "commit":
        return app  # only another host knows, and a look shall not wait for that
    if (intent is not None or not app.exists()) and app.home.exists():
        with contextlib.suppress(TimedOutError), _locked([app], timeout=0):
            settle(app)
    return app


def settle(app: App, doomed: bool = False) -> str | None:
    """End what is unfinished, and return its verb."""
    try:
        intent = app.intent() if app.home.exists() else None
    except DreError:
        if not doomed:
            raise
        intent = None
    if intent is None:
        return _without_intent(app, doomed)
    from dre import existence, network, relimit, setting, snapshot  # most find nothing to end

    verb = str(intent["verb"])
    if verb in _LATE:
        _late(verb).settled(app, intent)
    if verb == "adopt":  # although doomed: left half adopted, it would next be taken for half made
        importlib.import_module("dre.adopt").resume(app, intent)
    elif verb in ("create", "destroy"):
        existence.remove(app)
        if verb == "destroy":
            app.emit("destroyed")
    elif verb == "rename":
        importlib.import_module("dre.copying").resume_rename(*(App(app.conf, intent[key]) for key in ("old", "new")))
    elif doomed:
        app.done()
    elif verb == "save":
        snapshot.resume_save(app)
    elif verb == "load":
        snapshot.resume_load(app, intent["tag"])
    elif verb == "undo":
        snapshot.resume_undo(app, intent)
    elif verb == "isolate":
        network.resume(app, intent["isolated"])
    elif verb == "limit":
        relimit.resume(app, intent)
    elif verb == "set":
        setting.resume(app, intent)
    elif verb in _LATE:
        _late(verb).resume(app, intent)
    else:
        raise DreError(f"{app.name}: {app.home}/intent.json names no verb of this version: {verb}")
    return verb


# Verbs of modules that few commands need; what such a one may have left at work must have ended before all else.
_LATE = {"checkpoint": "dre.checkpoint", "checkpoint-restart": "dre.checkpoint", "migrate": "dre.migrate"}


def _late(verb: str) -> Any:
    return importlib.import_module(_LATE[verb])


def _without_intent(app: App, doomed: bool) -> str | None:
    """A create killed before its intent leaves an empty directory, a destroy killed at its end a hidden one.

    Anything else without app.json is an app that has lost it, and may hold all that somebody has.
    """
    from dre import existence

    gone = app.home.with_name(f".{app.name}.gone")
    lost = app.home.exists() and not (app.home / "app.json").exists()
    if lost and not doomed and not gone.exists():
        kept = [path for path in app.home.iterdir() if not path.name.startswith(".")]
        if kept or os.path.lexists(app.directory):
            raise DreError(f"{app.home}/app.json: missing; put it back, or dre-app destroy {app.name}")
    if lost or gone.exists():
        existence.remove(app)
        return "destroy"
    return None


def unsettled(conf: Conf) -> list[str]:
    """The names to give to `one`: all apps, and those whose destroy was killed at its end."""
    place = apps.state_dir(conf)
    hidden = [path.name[1:-5] for path in place.glob(".*.gone")] if place.exists() else []
    return sorted({*apps.names(conf), *hidden})


def one(conf: Conf, name: str) -> str | None:
    """Settle app *name* and sweep it where it is stopped; returns the verb that was ended."""
    from dre import existence, lifecycle

    app = App(conf, name)
    with _locked([app]):
        verb = settle(app)
        existence.tidy(app)
        state = app.state() if app.exists() else None
        if state == "starting" and lifecycle.unstick(app):
            state = app.state()
        if state in ("stopped", "partial"):
            existence.sweep(app)
        elif state == "crashed":
            existence.unmount(app)  # the rest waits for its next start, for it is to be seen that it crashed
    return verb
