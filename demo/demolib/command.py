# SPDX-License-Identifier: Apache-2.0
"""What demo/run and soak/run have in common as commands: one at a time on a host, by root, and ended in order."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from demolib import stage
from demolib.places import LOCK
from demolib.programs import Failed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNDONE = 2  # the exit status when it could not be brought to its end


def alone(name: str, act: Callable[[], int]) -> int:
    """The exit status of *act*, the one that is at work on this host; UNDONE, and why, when it raises Failed.

    A signal that is to end it raises KeyboardInterrupt in it, until hold_out().
    """
    sys.stdout.reconfigure(line_buffering=True)
    # What is in sbin is not in everybody's PATH; it comes last, so that a chosen PATH stays chosen.
    os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    os.umask(0o022)
    for number in SIGNALS:
        signal.signal(number, _interrupted)
    try:
        stage.need_root()
        with LOCK.open("w") as lock:
            stage.only_one(lock.fileno())
            return act()
    except Failed as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return UNDONE


def hold_out() -> None:
    """From here on nothing interrupts: half a clean-up would only need another one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """Print *text* with the time of day before it."""
    print(f"{time.strftime('%H:%M:%S')}  {text}")


def cleared(name: str, troubles: Sequence[str]) -> int:
    """0, or UNDONE when there are *troubles*, each of which is told."""
    for trouble in troubles:
        print(f"{name}: cannot clear away: {trouble}", file=sys.stderr)
    return UNDONE if troubles else 0
