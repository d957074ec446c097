# SPDX-License-Identifier: Apache-2.0
"""In which order apps are started and stopped: each after those that its property `after` names.

Reads what is stored; starts and stops nothing, and needs no lock.
"""

import contextlib
from collections.abc import Callable, Iterable

from dre import app as apps
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, UsageError
from dre.spec import Spec


def check(app: App, spec: Spec) -> Spec:
    """The check of property `after`: all it names exist, and none of them is after this app."""
    for name in spec.after:
        if name != app.name and not App(app.conf, name).exists():
            raise NotFoundError(f"after {name}: no such app")
    walk([app.name], lambda name: spec.after if name == app.name else after(app.conf, name))
    return spec


def after(conf: Conf, name: str) -> tuple[str, ...]:
    """What app *name* is after; nothing when it is unknown."""
    with contextlib.suppress(DreError):
        return App(conf, name).spec().after
    return ()


def sequence(conf: Conf, names: Iterable[str]) -> list[str]:
    """The apps *names* and all that they are after, each behind those. Raises UsageError naming a circle."""
    return walk(names, lambda name: after(conf, name))


def walk(names: Iterable[str], before: Callable[[str], Iterable[str]]) -> list[str]:
    """*names* and all that *before* gives for them, each behind those. Raises UsageError naming a circle."""
    done: dict[str, None] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in path:
            raise UsageError(f"{name}: is after itself: {' after '.join([*path[path.index(name) :], name])}")
        path.append(name)
        for other in before(name):
            visit(other)
        path.pop()
        done[name] = None

    for name in names:
        visit(name)
    return list(done)


def dependents(conf: Conf, name: str) -> list[str]:
    """The apps that are directly after *name*."""
    return [other for other in apps.names(conf) if name in after(conf, other)]


def waves(conf: Conf, names: Iterable[str]) -> list[list[str]]:
    """The apps *names* in groups to stop one after the other: an app is in an earlier one than those it is after."""
    wanted = set(names)
    depth: dict[str, int] = {}
    try:
        found = sequence(conf, sorted(wanted))
    except UsageError:  # a circle, which two calls of set at once can make: no reason not to stop them
        return [sorted(wanted)]
    for name in reversed(found):  # those that are after it come first
        depth.setdefault(name, 0)
        for other in after(conf, name):
            depth[other] = max(depth.get(other, 0), depth[name] + 1)
    groups: dict[int, list[str]] = {}
    for name in sorted(wanted):
        groups.setdefault(depth[name], []).append(name)
    return [groups[level] for level in sorted(groups)]
