# SPDX-License-Identifier: Apache-2.0
"""Have a running dre-monitor take the rules that were put in force, and say whether its correlator lives with them."""

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from dre.conf import Conf

from monitorlib import rulebook, supervise

TAKEN = 15.0  # seconds for the correlator to begin anew; dre-monitor lets sec read the rules before it ends the old one
LIVES = 3.0  # seconds that it must not end in then
_LOOK = 0.05


def tried(conf: Conf, texts: Mapping[str, str]) -> None:
    """Let sec, where it is the correlator, read rules that were checked. Raises DreError with what it says."""
    if conf.monitor_correlator == "sec":
        with tempfile.TemporaryDirectory(prefix="dre-rules-") as place:
            rulebook.test(conf, rulebook.write(conf, Path(place), texts))


def take(conf: Conf) -> str:
    """Have a running monitor take the rules in force; "" when it lives with them, or none runs, else what is wrong."""
    before = _correlator(conf)
    if before is None:
        return ""
    os.kill(before[0], signal.SIGHUP)
    deadline = time.monotonic() + TAKEN
    while (now := _correlator(conf)) is None or now[1] in (None, before[1]):
        if time.monotonic() > deadline:
            return "the correlator did not begin anew with them"
        time.sleep(_LOOK)
    deadline = time.monotonic() + LIVES
    while now[2] == before[2]:  # else it has died before anybody looked, and this is the next one
        if time.monotonic() > deadline:
            return ""
        if _correlator(conf) != now:
            break
        time.sleep(_LOOK)
    return "the correlator ended with them"


def _correlator(conf: Conf) -> tuple[int, int | None, object] | None:
    """The pids of the monitor and of its correlator, and how often that died; None where one of them is missing."""
    rows = supervise.status(conf)
    name = supervise.CORRELATORS[conf.monitor_correlator]
    row = next((row for row in rows or () if row["stage"] == name), None)
    if row is None or row["state"] == "left-out":
        return None
    pid = row["pid"]
    assert pid is None or isinstance(pid, int)
    return supervise.pid(conf), pid if row["state"] == "running" else None, row["restarts"]
