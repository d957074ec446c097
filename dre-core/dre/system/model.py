# SPDX-License-Identifier: Apache-2.0
"""Systems, the system containers: where each keeps its things, what state it is in, what it uses.

Reading only. A system is an ordinary domain of libvirt; any domain whose name we allow is one, whoever made it. What
D-RE adds lies in one directory per system. Changes are made by dre.system.lifecycle and its neighbours.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import files, units
from dre import intent as intents
from dre.conf import Conf
from dre.errors import DreError, NotFoundError
from dre.system import hypervisor
from dre.system.spec import Spec

RUNNING = ("running", "frozen")
# virDomainState and its reasons, libvirt/libvirt-domain.h.
_SHUTOFF, _SHUTOFF_CRASHED, _SHUTOFF_FAILED = 5, 3, 6
_PAUSED, _PAUSED_STARTING, _PAUSED_CRASHED = 3, 11, 10
_STATES = {1: "running", 2: "running", 3: "frozen", 4: "stopping", 5: "stopped", 6: "crashed", 7: "frozen"}


@dataclass(frozen=True)
class System:
    """The system *name*, which may or may not exist; the lock is the caller's business."""

    conf: Conf
    name: str

    @property
    def home(self) -> Path:
        """Our directory: system.json, intent.json, disk.qcow2."""
        return state_dir(self.conf) / self.name

    @property
    def disk(self) -> Path:
        """The first disk: what the system changed of its image, and all saved states."""
        return self.home / "disk.qcow2"

    @property
    def log(self) -> Path:
        """What the system wrote to its serial console."""
        return self.conf.core_log_dir / "sys" / f"{self.name}.log"

    @property
    def wanted(self) -> Path:
        """A file in /run: the system was started by us, and not stopped since."""
        return self.conf.core_run_dir / "sys" / f"{self.name}.wanted"

    def find(self) -> Any:
        """libvirt's domain, or None."""
        import libvirt

        connection = hypervisor.connect(self.conf)
        try:
            return connection.lookupByName(self.name)
        except libvirt.libvirtError as error:
            if hypervisor.code(error) == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            with hypervisor.translated(self.name):
                raise
            raise

    def need(self) -> Any:
        """libvirt's domain. Raises NotFoundError when there is no such system."""
        found = self.find()
        if found is None:
            raise NotFoundError(f"{self.name}: no such system")
        return found

    def spec(self) -> Spec | None:
        """What we keep of it; None of a domain that others made. Raises DreError where it is damaged."""
        path = self.home / "system.json"
        try:
            return Spec.from_json(path.read_text())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DreError(f"{path}: damaged: {error}") from None

    def ours(self) -> Spec:
        """What we keep of it. Raises NotFoundError, or DreError when others made it."""
        found = self.spec()
        if found is None:
            self.need()
            raise DreError(f"{self.name}: not made by dre-sys; virsh can do it")
        return found

    def store(self, spec: Spec, durable: bool = True) -> None:
        """Make *spec* the system's."""
        files.write_atomic(self.home / "system.json", spec.to_json(), 0o600, durable)

    def intent(self) -> dict[str, Any] | None:
        """What a verb has begun and not ended, or None."""
        return intents.read(self.home)

    def begin(self, **fields: Any) -> None:
        """Write durably what is about to be done, so that the next verb can end it."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o711)  # QEMU's user must pass to the disk
        intents.begin(self.home, **fields)

    def done(self) -> None:
        """Forget the intent: the verb has ended."""
        intents.done(self.home)

    @contextlib.contextmanager
    def locked(self, timeout: float = 60.0) -> Iterator[None]:
        """Hold the system's lock."""
        with files.lock(self.conf.core_run_dir / "lock" / f"sys-{self.name}", timeout):
            yield

    def state(self) -> str:
        """running, stopped, frozen, starting, stopping, partial or crashed."""
        found = self.find()
        if found is None:
            return "partial"
        with hypervisor.translated(self.name):
            return self.named(*found.state())

    def named(self, state: int, reason: int) -> str:
        """libvirt's *state* and *reason* in our words."""
        half = self.home / "intent.json"
        if half.exists() and (intents.read(self.home) or {}).get("verb") in ("create", "destroy"):
            return "partial"
        if state == _SHUTOFF and reason in (_SHUTOFF_CRASHED, _SHUTOFF_FAILED) and self.wanted.exists():
            return "crashed"
        if state == _PAUSED and reason in (_PAUSED_STARTING, _PAUSED_CRASHED):
            return "starting" if reason == _PAUSED_STARTING else "crashed"
        return _STATES.get(state, "partial")

    def emit(self, what: str, sev: int = 6, **data: Any) -> None:
        """Tell the monitor that the system has changed."""
        from dre import event

        event.emit(self.conf, f"system.{what}", f"{event.host()}/sys:{self.name}", {"name": self.name, **data}, sev)


def state_dir(conf: Conf) -> Path:
    """Where one directory per system lies."""
    return conf.core_state_dir / "sys" / "state"


def kept(conf: Conf) -> set[str]:
    """The names of the systems that we keep something of."""
    place = state_dir(conf)
    return {entry.name for entry in place.iterdir() if units.is_name(entry.name)} if place.is_dir() else set()


def pid(conf: Conf, name: str) -> int | None:
    """The pid of the system's QEMU on this host, or None; libvirt writes it."""
    if not conf.sys_uri.startswith("qemu:///system"):
        return None
    try:
        return int(Path(f"/run/libvirt/qemu/{name}.pid").read_text())
    except (OSError, ValueError):
        return None
