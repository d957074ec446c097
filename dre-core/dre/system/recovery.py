# SPDX-License-Identifier: Apache-2.0
"""What a killed verb left is ended here, before the next verb on that system: the only way to get a system's lock.

Create and save are undone; destroy, load, undo, restart, isolate, limit and rename are done to their end.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from dre.conf import Conf
from dre.errors import DreError, TimedOutError
from dre.system import lifecycle, limits, model, saved
from dre.system.limits import Limits
from dre.system.model import System

# Verbs of modules that few commands need.
_LATE = {"rename": "dre.system.copying", "migrate": "dre.system.migrate", "set": "dre.system.setting"}


@contextlib.contextmanager
def held(conf: Conf, name: str, doomed: bool = False, timeout: float = 60.0) -> Iterator[System]:
    """The system *name*, locked, with nothing unfinished. With *doomed* it is about to be destroyed: do not undo."""
    system = System(conf, name)
    with system.locked(timeout):
        settle(system, doomed)
        yield system


def look(conf: Conf, name: str) -> System:
    """The system *name* for reading: what is unfinished is ended first, unless its verb is still at work."""
    system = System(conf, name)
    if system.home.exists() and system.intent() is not None:
        with contextlib.suppress(TimedOutError), system.locked(timeout=0):
            settle(system)
    return system


def settle(system: System, doomed: bool = False) -> str | None:
    """End what is unfinished, and return its verb."""
    try:
        intent = system.intent() if system.home.exists() else None
    except DreError:
        if not doomed:
            raise
        intent = None
    if intent is None:
        return _without_intent(system)
    verb = str(intent["verb"])
    if verb == "create":
        lifecycle.stop(system, 0.0) if system.find() is not None else None
        lifecycle.remove(system)
    elif verb == "destroy":
        lifecycle.remove(system)
        system.emit("destroyed")
    elif doomed:
        system.done()
    elif verb in _ENDS:
        _ENDS[verb](system, intent)
    elif verb in _LATE:
        importlib.import_module(_LATE[verb]).resume(system, intent)
    else:
        raise DreError(f"{system.name}: {system.home}/intent.json names no verb of this version: {verb}")
    return verb


def _limit(system: System, intent: dict[str, Any]) -> None:
    """A limit that was killed half-way is undone: what was asked for may be what cannot be had."""
    limits.put_back(system, Limits(**intent["before"]))
    system.done()


_ENDS = {
    "save": lambda system, intent: saved.resume_save(system, intent["tag"]),
    "load": lambda system, intent: saved.resume_load(system, intent["tag"]),
    "undo": saved.resume_undo,
    "restart": saved.resume_restart,
    "isolate": lambda system, intent: lifecycle.resume_isolate(system, intent["isolated"]),
    "limit": _limit,
}


def _without_intent(system: System) -> str | None:
    """A create killed before its intent, or a destroy after it, leaves an empty directory."""
    if system.home.exists() and not any(system.home.iterdir()):
        system.home.rmdir()
        return "destroy"
    return None


def unsettled(conf: Conf) -> list[str]:
    """The systems that may have something to be ended."""
    return sorted(
        name
        for name in model.kept(conf)
        if not (System(conf, name).home / "system.json").exists() or (System(conf, name).home / "intent.json").exists()
    )
