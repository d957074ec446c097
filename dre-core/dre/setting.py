# SPDX-License-Identifier: Apache-2.0
"""Changing what an app is after its create: all properties given are stored, and done to the running app, or none.

What each property is stands in dre.spec. Limits are dre.relimit's; wants the app's lock, as that does.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from dre import network
from dre import spec as specs
from dre.app import App
from dre.errors import DreError
from dre.properties import LATER, NOW, REFUSED, hook
from dre.spec import Spec

COMMAND = "command"  # no property: create and set take it after `--`


def change(app: App, fields: dict[str, Any]) -> list[str]:
    """Set *fields* of the Spec; returns the keys whose new value a running app gets at its next start.

    Raises DreError with nothing changed.
    """
    old = app.need()
    given = [key for key in (*specs.PROPERTIES, COMMAND) if specs.field_of(key) in fields]
    with network.reserved(app.conf):  # until what it takes is in the intent, where others look for it
        return _change(app, old, replace(old, **fields), given)


def _change(app: App, old: Spec, wanted: Spec, given: Sequence[str]) -> list[str]:
    new = specs.checked(app, wanted, given)
    keys = [key for key in given if _value(old, key) != _value(new, key)]
    if new == old:
        return []
    alive = app.state() in ("running", "frozen")
    refused = [key for key in keys if alive and _live(key) == REFUSED]
    if refused:
        raise DreError(f"{app.name}: {', '.join(refused)} cannot change while it runs; dre-app stop {app.name}")
    app.begin(verb="set", keys=keys, old=asdict(old), new=asdict(new))
    _become(app, old, new, keys)
    return [key for key in keys if alive and _live(key) == LATER]


def resume(app: App, intent: dict[str, Any]) -> None:
    """Do, or do again, a set whose intent is written."""
    old, new = (Spec.from_json(json.dumps(intent[which])) for which in ("old", "new"))
    _become(app, old, new, intent["keys"])


def _become(app: App, old: Spec, new: Spec, keys: Sequence[str]) -> None:
    """Store *new* and do it to the running app; when that fails put *old* back, and only a kill leaves the intent."""
    try:
        app.store(new)
        _act(app, old, new, keys)
    except Exception:
        try:
            if app.spec() != old:
                app.store(old)
                _act(app, new, old, keys)
        finally:
            app.done()
        raise
    app.done()
    app.emit("set", keys=list(keys))


def _act(app: App, old: Spec, new: Spec, keys: Sequence[str]) -> None:
    if app.state() not in ("running", "frozen"):
        return
    for key in keys:
        if _live(key) not in (LATER, REFUSED, NOW):
            hook(_live(key))(app, old, new)


def _live(key: str) -> str:
    return specs.PROPERTIES[key].live if key in specs.PROPERTIES else LATER


def _value(spec: Spec, key: str) -> Any:
    return getattr(spec, specs.field_of(key))
