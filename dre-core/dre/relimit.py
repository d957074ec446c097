# SPDX-License-Identifier: Apache-2.0
"""Changing the limits of an app: in the kernel while it runs, and stored for later starts; all that is given, or none.

What a limit is in the kernel stands in dre.limits. Wants the app's lock held, as dre.lifecycle does.
"""

import contextlib
from dataclasses import asdict, replace
from typing import Any

from dre import cgroup, limits
from dre.app import App
from dre.cgroup import Limits
from dre.errors import DreError, UsageError
from dre.spec import Spec


def check(app: App, wanted: Limits) -> None:
    """Raise UsageError or MissingError where this host cannot do *wanted*."""
    try:
        limits.check(wanted, limits.device_for(wanted, app.conf.app_lxc_path))
    except UsageError as error:
        raise UsageError(f"{app.name}: {error}") from None
    except DreError as error:
        raise type(error)(f"{app.name}: {error}") from None


def merged(old: Limits, changes: dict[str, Any]) -> Limits:
    """*old* with *changes*; swap counts only beyond a memory limit, so it ends with that."""
    new = replace(old, **changes)
    return replace(new, swap=Limits.swap) if new.memory is None and "swap" not in changes else new


def limit(app: App, changes: dict[str, Any]) -> Limits:
    """Set limits; returns them all, as the kernel took them. Raises DreError with nothing changed."""
    spec = app.need()
    new = merged(spec.limits, changes)
    check(app, new)
    app.begin(verb="limit", old=asdict(spec.limits), new=asdict(new))
    return _become(app, spec, new)


def resume(app: App, intent: dict[str, Any]) -> None:
    """Do a limit that was killed to its end; where it cannot be done any more, put back what it found."""
    old, new = Limits(**intent["old"]), Limits(**intent["new"])
    if not app.exists():
        app.done()
        return
    spec = replace(app.spec(), limits=old)
    try:
        _become(app, spec, new)
    except DreError:
        app.begin(**intent)
        _become(app, replace(spec, limits=new), old)


def _become(app: App, spec: Spec, new: Limits) -> Limits:
    """From *spec*.limits to *new*, in the kernel and in the file; back again when one fails."""
    pid = app.init_pid()
    device = limits.device_for(new, app.conf.app_lxc_path)
    try:
        with contextlib.ExitStack() as undo:
            if pid is not None:
                group = cgroup.Group.of(pid)
                new = limits.apply(group, spec.limits, new, device)
                undo.callback(limits.apply, group, new, spec.limits, device)
                if new.net != spec.limits.net:
                    from dre import network  # late: it imports what knows of limits

                    undo.callback(network.limit, app, spec, spec.limits.net)
                    network.limit(app, spec, new.net)
            app.store(replace(spec, limits=new))
            undo.pop_all()
    except DreError as error:
        raise type(error)(f"{app.name}: {error}") from None
    finally:
        app.done()
    app.emit("limited", **asdict(new))
    return new
