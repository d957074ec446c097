# SPDX-License-Identifier: Apache-2.0
"""The part of a move in which libvirt has a running guest under way: it is watched, cancelled where that must be, and
held up by nothing that it does not need to wait for. Knows no checkpoints and no intents.
"""

import contextlib
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from dre.errors import DreError, TimedOutError
from dre.system import hypervisor, model
from dre.system.migrate import Move
from dre.system.model import System
from dre.system.remote import listening

LOOK = 0.1  # seconds between two looks at a migration
_SOON = 0.02  # and when it is about to end
END = 60.0  # for one that was cancelled to end
_GENTLE = 5.0  # for QEMU to end it by itself
_LATE, _CUT = "late", "cut"  # why it was cancelled


class Watch:
    """Watches the guest here while it moves: when its processors stopped, and libvirt's work.

    QEMU takes two seconds to end when it is asked to. The guest need not wait for that once it rests there: its QEMU
    here, whose disks are written and closed, is killed, and then it can run nowhere but there.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.stopped: float | None = None
        self.failure: list[Any] = []
        self.worker: threading.Thread | None = None
        self._qemu: int | None = None

    def __enter__(self) -> "Watch":
        import libvirt

        with hypervisor.translated(self.system.name):
            self._connection = listening(self.system.conf.sys_uri)
            kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
            domain = self._connection.lookupByName(self.system.name)
            self._callback = self._connection.domainEventRegisterAny(domain, kind, self._heard, None)
        with contextlib.suppress(OSError, TypeError):  # no pid: its libvirt is not this host's own
            self._qemu = os.pidfd_open(model.pid(self.system.conf, self.system.name))  # type: ignore[arg-type]
        return self

    def __exit__(self, *error: object) -> None:
        import libvirt

        with contextlib.suppress(libvirt.libvirtError):
            self._connection.domainEventDeregisterAny(self._callback)
            self._connection.close()
        if self._qemu is not None:
            os.close(self._qemu)
        self._qemu = None

    def _heard(self, _connection: Any, _domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        import libvirt

        if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
            self.stopped = time.monotonic()
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED:
            self.stopped = None

    def begin(self, work: Callable[[Any], object]) -> None:
        """Let libvirt do *work* with the guest, beside us and by a connection of its own.

        On one that two threads share libvirt 9.0 loses calls: it may see one only when the other's is answered, which
        is when the guest has moved, and so it is neither watched nor cancelled.
        """
        import libvirt

        def worker() -> None:
            try:
                with contextlib.closing(libvirt.open(self.system.conf.sys_uri)) as connection:
                    work(connection.lookupByName(self.system.name))
            except libvirt.libvirtError as error:
                self.failure.append(error)

        self.worker = threading.Thread(target=worker, daemon=True)
        self.worker.start()

    def kill(self) -> bool:
        """Kill QEMU here; whether it has ended. Not where its libvirt is another host's."""
        if self._qemu is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._qemu, signal.SIGKILL)
        return bool(select.select([self._qemu], [], [], END)[0])

    def ended(self, wait: float) -> bool:
        """Whether libvirt ends its work within *wait* seconds."""
        if self.worker is not None:
            self.worker.join(wait)
        return self.worker is None or not self.worker.is_alive()


def carry(
    move: Move, domain: Any, watch: Watch, params: dict[str, Any], flags: int, progress: Callable[[str], None]
) -> None:
    """Let libvirt move it; return once it rests there, ready to go on, and can run here no more."""
    watch.begin(lambda own: own.migrateToURI3(move.host.way.uri, params, flags))
    why = _watched(move, domain, watch, progress)
    with hypervisor.translated(f"{move.system.name}: cannot be moved to {move.host.way.host}"):
        if watch.failure and why == _LATE:
            raise TimedOutError(f"{move.system.name}: not moved within {move.wish.timeout:g} s; cancelled")
        if watch.failure and why == _CUT:
            raise DreError(f"{move.system.name}: {move.host.way.host} does not answer any more; cancelled")
        if watch.failure:
            raise watch.failure[0]


def _watched(move: Move, domain: Any, watch: Watch, progress: Callable[[str], None]) -> str | None:
    """Wait for the end of a migration, or until the guest may go on there, though libvirt still puts away what is here.

    Cancels one that is too late, or whose other end is gone, and returns why then, else None.
    """
    import libvirt

    wish, why, patient = move.wish, "", False
    deadline, cancelled = move.carrier.meter.deadline, float("inf")
    while time.monotonic() < cancelled + END:
        if watch.ended(LOOK if watch.stopped is None else _SOON) or (_rests(move, watch) and watch.kill()):
            return why or None
        with contextlib.suppress(libvirt.libvirtError):  # it has not begun, or has ended
            if wish.downtime is not None and not patient:
                domain.migrateSetMaxDowntime(max(round(wish.downtime * 1000), 1))
                patient = True
            told = domain.jobStats()
            if told.get("data_total"):
                sent = f"{told.get('data_processed', 0) >> 20} of {told['data_total'] >> 20} MiB"
                progress(f"{move.system.name}: {sent}, {told.get('data_remaining', 0) >> 20} to go")
        if not why and time.monotonic() > deadline:
            why = _LATE
        elif not why and not move.host.connection.isAlive():
            why = _CUT
        if why:
            cancelled = min(cancelled, time.monotonic())
            cancel(domain, why == _CUT or time.monotonic() > cancelled + _GENTLE)
    raise TimedOutError(f"{move.system.name}: its move does not end, though it was cancelled")


def _rests(move: Move, watch: Watch) -> bool:
    """Whether all of it is there, and libvirt there is done with it: then it is held as if by a user."""
    import libvirt

    if watch.stopped is None:
        return False
    with contextlib.suppress(DreError, libvirt.libvirtError):
        found = move.host.find(move.intent["uuid"])
        if found is not None:
            return bool(found.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER])
    return False


def cancel(domain: Any, hard: bool) -> None:
    """End a migration; *hard* also where QEMU waits for the network, which may take as long as TCP's patience.

    That it must not be asked to end first: QEMU 7.2 then waits with all that it does, its monitor and the guest too.
    """
    import libvirt

    if hard:
        found = asked(domain, "query-yank") or []
        named = [one for one in found if str(one.get("node-name", one["type"])).partition("-")[0] == "migration"]
        if named:
            asked(domain, "yank", {"instances": named})
    with contextlib.suppress(libvirt.libvirtError):
        domain.abortJob()


def asked(domain: Any, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """What QEMU answers to a command that libvirt has no call for; None where it, or libvirt, does not know it."""
    import libvirt

    with contextlib.suppress(libvirt.libvirtError, ImportError, ValueError):
        import libvirt_qemu

        words = {"execute": command, "arguments": arguments or {}}
        return json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(words), 0)).get("return")
    return None
