# SPDX-License-Identifier: Apache-2.0
"""Changing what a system is after its create: all properties given, or none. Wants the system's lock.

What each property is stands in dre.system.spec; limits are dre.system.limits'.
"""

import json
from dataclasses import asdict, replace
from typing import Any

from dre import network
from dre.errors import DreError
from dre.properties import REFUSED, hook
from dre.system import growing, identity
from dre.system.model import RUNNING, System
from dre.system.spec import PROPERTIES, Spec, field_of


def change(system: System, fields: dict[str, Any]) -> None:
    """Set *fields* of the Spec. Raises DreError with nothing changed."""
    old = system.ours()
    if "disk_size" in fields:
        old = replace(old, disk_size=growing.size(system))  # a way back may have made it smaller again
    with network.reserved(system.conf):  # until what it takes is in the intent, where others look for it
        new = replace(old, **fields)
        for key in PROPERTIES:
            if field_of(key) in fields and PROPERTIES[key].check:
                new = hook(PROPERTIES[key].check)(system, new)
        keys = [key for key in PROPERTIES if getattr(old, field_of(key)) != getattr(new, field_of(key))]
        if not keys:
            return
        refused = [key for key in keys if PROPERTIES[key].live == REFUSED] if system.state() in RUNNING else []
        if refused:
            what = ", ".join(refused)
            raise DreError(f"{system.name}: {what} cannot change while it runs; dre-sys stop {system.name}")
        if (old.ip is None) != (new.ip is None):
            raise DreError(f"{system.name}: ip: a link cannot be added or taken away by this version; make it anew")
        system.begin(verb="set", keys=keys, old=asdict(old), new=asdict(new))
    _become(system, old, new, keys)


def resume(system: System, intent: dict[str, Any]) -> None:
    """Do, or do again, a set whose intent is written."""
    old, new = (Spec.from_json(json.dumps(intent[which])) for which in ("old", "new"))
    _become(system, old, new, intent["keys"])


def _become(system: System, old: Spec, new: Spec, keys: list[str]) -> None:
    system.store(new)
    try:
        if {"ip", "ssh-key"} & set(keys):
            identity.redefine(system, new)
        if "disk-size" in keys and new.disk_size is not None:
            growing.grow(system, new.disk_size)
    except Exception:
        system.store(old)
        system.done()
        raise
    system.done()
    system.emit("set", keys=keys)
