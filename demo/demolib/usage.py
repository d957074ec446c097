# SPDX-License-Identifier: Apache-2.0
"""What the shop's apps use while it is played: the lines of `dre-app stat`, each with the moment at which it came."""

import json
import threading
import time
from collections.abc import Sequence

from demolib import programs
from demolib.places import CONF, HOME
from demolib.verdict import Usage

LOG = HOME / "usage.jsonl"
EVERY = "500ms"


def start(apps: Sequence[str]) -> list[Usage]:
    """Begin to sample *apps*; the list grows until the program `usage` is ended."""
    argv = ["dre-app", "--config", str(CONF), "stat", "--interval", EVERY, "--json", *apps]
    process = programs.start("usage", *argv, output=LOG)
    seen: list[Usage] = []
    threading.Thread(target=_follow, args=(process.pid, seen), daemon=True).start()
    return seen


def _follow(pid: int, seen: list[Usage]) -> None:
    half = ""
    with LOG.open() as lines:
        while programs.began(pid) is not None:
            *whole, half = (half + lines.read()).split("\n")
            now = time.time()
            for row in map(json.loads, whole):
                seen.append(Usage(now, *(row[key] for key in ("name", "cpu", "cpu_limit", "memory", "memory_limit"))))
            time.sleep(0.05)
