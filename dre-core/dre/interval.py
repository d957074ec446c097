# SPDX-License-Identifier: Apache-2.0
"""What is done at intervals to apps and to systems: which of them are due. Nothing here waits."""

import time
from collections.abc import Callable, Iterable

from dre import event
from dre.errors import DreError

_EARLY = 30.0  # that a timer may be early: else one would be due only the next time, and each interval longer


def those(names: Iterable[str], due: Callable[[str], bool]) -> list[str]:
    """The *names* that seem due. Read without their locks, so that one which is held does not keep up the others."""
    found = []
    for name in names:
        try:
            if due(name):
                found.append(name)
        except DreError:
            continue  # half made, or destroyed meanwhile; not a thing to report every five minutes
    return found


def passed(every: float | None, stamps: Callable[[], list[str]]) -> bool:
    """Whether *every* seconds have passed since the last of *stamps()*; never, and nothing is asked, if it is None."""
    if every is None:
        return False
    last = stamps()[-1:]
    return not last or time.time() - event.seconds(last[0]) >= every - _EARLY
