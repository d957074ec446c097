# SPDX-License-Identifier: Apache-2.0
"""What a killed verb left is ended here, before the next verb on that system: the only way to get a system's lock.

Create and save are undone; destroy, load, undo, restart, isolate, limit, rename and a warm start are done to their end.
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from dre import files
from dre.conf import Conf
from dre.errors import DreError, TimedOutError
from dre.system import copying, isolation, lifecycle, limits, model, saved
from dre.system.limits import Limits
from dre.system.model import System

# Verbs of modules that few commands need.
_LATE = {"migrate": "dre.system.migrate", "set": "dre.system.setting"}


@contextlib.contextmanager
def held(conf: Conf, name: str, doomed: bool = False, timeout: float = 60.0) -> Iterator[System]:
    """The system *name*, locked, with nothing unfinished. With *doomed* it is about to be destroyed: do not undo."""
    with held_all(conf, [name], doomed, timeout) as (system,):
        yield system


@contextlib.contextmanager
def held_all(conf: Conf, names: Sequence[str], doomed: bool = False, timeout: float = 60.0) -> Iterator[list[System]]:
    """As `held`, several systems at once, in the order of *names*."""
    found = [System(conf, name) for name in names]
    with _locked(found, timeout):
        for system in found:
            settle(system, doomed)
        yield found


def _locked(wanted: Sequence[System], timeout: float) -> AbstractContextManager[None]:
    """The locks of the systems, and of the other names of unfinished renames."""
    return files.locks(
        lambda: {name for system in wanted for name in (system.name, *copying.partners(system))},
        lambda name: System(wanted[0].conf, name).locked(timeout),
    )


def look(conf: Conf, name: str) -> System:
    """The system *name* for reading: what is unfinished is ended first, unless its verb is still at work."""
    system = System(conf, name)
    if not system.home.exists() or system.intent() is not None:
        with contextlib.suppress(TimedOutError), _locked([system], timeout=0):
            settle(system)
    return system


def settle(system: System, doomed: bool = False) -> str | None:
    """End what is unfinished, and return its verb."""
    for name in copying.partners(system):
        if name != system.name and System(system.conf, name).home.exists():
            system = System(system.conf, name)  # the intent has gone along with the directory
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
    elif doomed and verb not in ("rename", "migrate"):  # of these it must be known first what is whose
        system.done()
    elif verb in _ENDS:
        _ENDS[verb](system, intent)
    elif verb in _LATE:
        importlib.import_module(_LATE[verb]).resume(system, intent)
    else:
        raise DreError(f"{system.name}: {system.home}/intent.json names no verb of this version: {verb}")
    return verb


def _awake(system: System, _: dict[str, Any]) -> None:
    lifecycle.resume_awake(system)


def _limit(system: System, intent: dict[str, Any]) -> None:
    """A limit that was killed half-way is undone: what was asked for may be what cannot be had."""
    limits.put_back(system, Limits(**intent["before"]))
    system.done()


_ENDS = {
    "save": lambda system, intent: saved.resume_save(system, intent["tag"]),
    "load": lambda system, intent: saved.resume_load(system, intent["tag"]),
    "undo": saved.resume_undo,
    "restart": saved.resume_restart,
    "isolate": lambda system, intent: isolation.resume(system, intent["isolated"]),
    "limit": _limit,
    "rename": copying.resume,
    "awake": _awake,
}


def _without_intent(system: System) -> str | None:
    """A create killed before its intent, or a destroy after it, leaves an empty directory, or half an intent in it."""
    if not system.home.exists():
        return None
    left = list(system.home.iterdir())
    if not all(path.name.startswith(".intent.json.") for path in left):
        return None
    for path in left:
        path.unlink()
    system.home.rmdir()
    return "destroy"


def unsettled(conf: Conf) -> list[str]:
    """The systems that may have something to be ended."""
    return sorted(
        name
        for name in model.kept(conf)
        if not (System(conf, name).home / "system.json").exists() or (System(conf, name).home / "intent.json").exists()
    )
