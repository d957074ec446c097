# SPDX-License-Identifier: Apache-2.0
"""What an init would do here: services that die are started again, a second later; and it is told what is missing.

Those that start no apps have a clock of their own, by libfaketime; what an app inherits must be the host's.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable

from demolib import programs
from demolib.places import ADDRESSES, CONF

from soaklib import ground, processes
from soaklib.processes import Process, Table

PAUSE = 1.0  # seconds, as RestartSec= of the units
COMMANDS = {
    "dboxd": ("dboxd", "--config", str(CONF)),
    "dre-monitor": ("dre-monitor", "--config", str(CONF), "run"),
    "dscript": ("dscript", "--config", str(CONF), "run", "--user", "dscript"),
    "keep": ("dre-app", "--config", str(CONF), "keep"),
    "witness": ("dbox-witness", "--config", str(CONF), "--serve", str(ground.WITNESS / "logs"))
    + ("--key", str(ground.WITNESS / "key"), "--listen", f"127.0.0.1:{ground.WITNESS_PORT}")
    + ("--state", str(ground.WITNESS / "state")),
}
CLOCKED = ("dboxd", "dre-monitor", "dscript", "witness")
# What a service consists of, by words of its processes, and how many there are.
PARTS: dict[str, dict[str, int]] = {
    "dboxd": {"dboxd --config": 1, "(dbox-sequencer)": 2},
    "dre-monitor": {"dre-monitor --config": 1, "dre-monitor act": 1}
    | {"dre-ingest": 1, "dre-reorder": 1, "dre-watch": 1, "(sec)": 1},
    "dscript": {"dscript --config": 2},
    "keep": {"dre-app --config": 1},
    "witness": {"dbox-witness --config": 1},
}


class Services:
    """Starts the services and keeps them; `restarts` counts how often each had died."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.pids: dict[str, int] = {}
        self.restarts = dict.fromkeys(COMMANDS, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="services")

    def start(self) -> None:
        """Take over from the demonstration, which has started some of them for itself."""
        for name in ("dscript", "dre-monitor", "dboxd"):
            programs.end(name)
        for name in COMMANDS:
            self._start(name)
        self._thread.start()

    def stop(self) -> None:
        """No longer start what dies."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _start(self, name: str) -> None:
        more = ground.own_clock(name) if name in CLOCKED else {}
        self.pids[name] = programs.start(name, *COMMANDS[name], more=more).pid

    def _keep(self) -> None:
        due: dict[str, float] = {}
        while not self._ended.wait(0.1):
            for name, pid in list(self.pids.items()):
                if programs.began(pid) is not None:
                    continue
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
                if time.monotonic() >= due.setdefault(name, time.monotonic() + PAUSE):
                    del due[name]
                    self.restarts[name] += 1
                    self._start(name)

    def family(self, all_: Table, name: str) -> list[Process]:
        """The processes of a service, without those of the apps that it may have just started.

        A keeper that dre-app has called while there was none does the work until it ends, and so belongs to it.
        """
        apps = processes.of_apps(all_, ADDRESSES)
        tops = [self.pids[name]]
        if name == "keep":
            tops += [one.pid for one in all_.values() if str(CONF) in one.argv and "--while-needed" in one.argv]
        return [one for top in tops for one in processes.family(all_, top) if one.pid not in apps]

    def parts(self, all_: Table) -> dict[str, list[Process]]:
        """The processes that stay up, by what they are."""
        found: dict[str, list[Process]] = {}
        for name, parts in PARTS.items():
            ours = processes.family(all_, self.pids[name])
            for words, count in parts.items():
                found[f"{name}: {words}"] = [one for one in ours if words in one.words][:count]
        return found

    def lacking(self, all_: Table) -> set[str]:
        """What ought to live and does not: parts of services, and apps."""
        found = self.parts(all_)
        absent = {
            f"{name}: {words}"
            for name, parts in PARTS.items()
            for words, count in parts.items()
            if len(found[f"{name}: {words}"]) < count
        }
        return absent | {app for app in ADDRESSES if not processes.inside(all_, app)}
