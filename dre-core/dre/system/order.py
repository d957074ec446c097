# SPDX-License-Identifier: Apache-2.0
"""In which order systems are started: each after those that its property `after` names. Starts nothing."""

import contextlib
from collections.abc import Iterable

from dre import order
from dre.conf import Conf
from dre.errors import DreError, NotFoundError
from dre.system import model
from dre.system.model import System
from dre.system.spec import Spec


def check(system: System, spec: Spec) -> Spec:
    """The check of property `after`: all it names exist, and none of them is after this system."""
    for name in spec.after:
        if name != system.name:
            System(system.conf, name).need()
    order.walk([system.name], lambda name: spec.after if name == system.name else after(system.conf, name))
    return spec


def after(conf: Conf, name: str) -> tuple[str, ...]:
    """What system *name* is after; nothing when it is unknown."""
    with contextlib.suppress(DreError, NotFoundError):
        spec = System(conf, name).spec()
        return spec.after if spec else ()
    return ()


def sequence(conf: Conf, names: Iterable[str]) -> list[str]:
    """The systems *names* and all that they are after, each behind those. Raises UsageError naming a circle."""
    return order.walk(names, lambda name: after(conf, name))


def dependents(conf: Conf, name: str) -> list[str]:
    """The systems that are directly after *name*."""
    return [other for other in sorted(model.kept(conf)) if name in after(conf, other)]
