# SPDX-License-Identifier: Apache-2.0
"""Changes to systems: start, stop, freeze, destroy.

Every function here wants the system's lock held and earlier intents ended: dre.system.recovery.held gives both. Each
may be killed at any moment; what it leaves is either ended or undone by the next one.
"""

import contextlib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dre import bridge, dnsmasq, network
from dre.errors import DreError, TimedOutError
from dre.spec import DHCP
from dre.system import domain as definitions
from dre.system import hypervisor, identity, isolation, limits, virt
from dre.system.agent import Agent
from dre.system.model import System
from dre.system.spec import Spec

_END = 10.0  # seconds for QEMU to end when it is killed
_SETTLE_WAIT = 60.0  # seconds for libvirt to end what a killed call has asked it for
_PAUSE = 0.1  # seconds between two looks at a domain; libvirt's events want a loop of their own


def remove(system: System) -> None:
    """Remove the system and all that is ours of it, as far as it is there."""
    import libvirt

    found = system.find()
    if found is not None:
        every = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with hypervisor.translated(system.name):
            top = definitions.parse(found.XMLDesc(0))
            for _, device, _ in definitions.links(top):
                if device is not None:
                    network.admit(system.conf, device)
            found.undefineFlags(every)
    system.wanted.unlink(missing_ok=True)
    _release(system)
    system.log.unlink(missing_ok=True)
    _remove_home(system)


def _remove_home(system: System) -> None:
    """The intent goes last: until then a kill leaves what says that the rest is to be removed."""
    import shutil

    if not system.home.exists():
        return
    for entry in sorted(system.home.iterdir(), key=lambda path: path.name == "intent.json"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    system.home.rmdir()


def destroy(system: System) -> list[str]:
    """Remove the stopped system; returns the disks of one that others made, which stay."""
    domain = system.need()
    with hypervisor.translated(system.name):
        top = definitions.parse(domain.XMLDesc(0))
    kept = [str(path) for _, path, _ in definitions.disks(top) if path.parent != system.home]
    system.begin(verb="destroy")
    remove(system)
    system.emit("destroyed")
    return kept


def start(system: System, say: Callable[[str], object] = str) -> bool:
    """Start the system; False when it runs already. *say* is told what makes it slow."""
    domain = system.need()
    state = system.state()
    if state == "frozen":
        raise DreError(f"{system.name}: is frozen; dre-sys thaw {system.name}")
    if state == "running":
        complete(system)  # the start that made it run may have been killed before this
        return False
    prepare(system)
    if not _warmly(system, say):
        _boot(system, domain, say)
    try:
        complete(system)
    except DreError:
        stop(system, 0.0)
        raise
    system.emit("started", pid=_pid(system))
    return True


def _boot(system: System, domain: Any, say: Callable[[str], object]) -> None:
    import libvirt

    with hypervisor.translated(f"{system.name}: cannot start"):
        kind = definitions.parse(domain.XMLDesc(0)).get("type", "")
        try:
            with virt.patience(system.name, kind, say):
                domain.create()
        except libvirt.libvirtError as error:
            # A start that was killed goes on in libvirt, which has let us in only now that it has ended.
            if hypervisor.code(error) != libvirt.VIR_ERR_OPERATION_INVALID or not domain.isActive():
                raise


def _warmly(system: System, say: Callable[[str], object]) -> bool:
    """Start a system that is to go on from a warm state; False where it is none, or that failed: then it boots."""
    spec = system.spec()
    if spec is None or spec.warm is None:
        return False
    from dre.system import warm  # it needs this module

    system.begin(verb="awake")
    try:
        warm.awake(system, spec)
        awoke = True
    except DreError as error:
        say(f"{system.name}: boots, for it could not go on from its warm state: {error}")
        stop(system, 0.0)
        prepare(system)
        awoke = False
    _never_again(system, spec)
    return awoke


def _never_again(system: System, spec: Spec) -> None:
    """It was warm once: from now on its disk is another, which the memory of the warm state would not fit."""
    system.store(replace(spec, warm=None))
    system.done()


def resume_awake(system: System) -> None:
    """End a warm start that was killed: what goes on is told who it is, or stopped. It never begins warm again."""
    from dre.system import warm

    spec = system.ours()
    try:
        if goes_on(system):
            warm.tell(system, spec)
            complete(system)
    except DreError:
        stop(system, 0.0)
    _never_again(system, system.ours())


def goes_on(system: System) -> bool:
    """Whether it runs, once libvirt has ended what a killed call asked it for: it does not stop at that."""
    domain = system.need()
    deadline = time.monotonic() + _SETTLE_WAIT
    with hypervisor.translated(system.name):
        while domain.isActive():
            if system.state() == "running" or time.monotonic() > deadline:  # it may have been frozen
                return True
            time.sleep(_PAUSE)
    return False


def _pid(system: System) -> int | None:
    from dre.system import model

    return model.pid(system.conf, system.name)


def prepare(system: System) -> None:
    """What must be there before libvirt starts or restores the system."""
    spec = system.spec()
    for place in (system.log.parent, system.wanted.parent):
        place.mkdir(parents=True, exist_ok=True)
    system.wanted.touch()
    if spec is None or spec.ip is None:
        return
    bridge.up(system.conf)
    _reserve(system, spec)
    if spec.isolated:
        isolation.drop(system)


def _reserve(system: System, spec: Spec) -> None:
    """Have DHCP give the system its address, and names found; for an image that cannot be told it in any other way."""
    if spec.ip in (None, DHCP) or bridge.foreign(system.conf.bridge_if):
        return
    if ipaddress.IPv4Interface(str(spec.ip)).network != system.conf.bridge_address.network:
        return
    address_only = str(spec.ip).partition("/")[0]
    if dnsmasq.dhcp_range(system.conf) is not None:
        with network.reserved(system.conf):
            dnsmasq.reserve(system.conf, spec.mac, address_only, system.name)
    elif dnsmasq.serves(system.conf):
        dnsmasq.name(system.conf, system.name, address_only, dnsmasq.SYSTEM)


def _release(system: System) -> None:
    """Forget what `_reserve` told: the system has ended."""
    with contextlib.suppress(DreError):  # a damaged system.json tells no address
        spec = system.spec()
        if spec is not None and spec.ip is not None:
            dnsmasq.release(system.conf, spec.mac)
            dnsmasq.forget(system.conf, system.name, dnsmasq.SYSTEM)


def forget(system: System) -> None:
    """Have nothing in /run say that the system of that name runs."""
    system.wanted.unlink(missing_ok=True)
    dnsmasq.forget(system.conf, system.name, dnsmasq.SYSTEM)


def complete(system: System) -> None:
    """What has to follow once the system runs; may be repeated."""
    spec = system.spec()
    if spec is None:
        return
    if spec.isolated:
        isolation.apply(system, True)
    limits.apply_net(system, spec.net)
    if spec.fresh:
        # Its host keys go at this boot, and only at this one: what it is told next is without that.
        system.store(replace(spec, fresh=False))
        identity.redefine(system, replace(spec, fresh=False))


def wait_usable(system: System, timeout: float) -> None:
    """Wait until the guest can be used: its agent answers. Raises TimedOutError."""
    deadline = time.monotonic() + timeout
    domain = system.need()
    agent = Agent(system.name, domain)
    while not agent.answers():
        with hypervisor.translated(system.name):
            if not domain.isActive():
                raise DreError(f"{system.name}: ended while it was waited for; see dre-sys log {system.name}")
        if time.monotonic() > deadline:
            raise TimedOutError(f"{system.name}: its guest agent does not answer after {timeout:g} s; it goes on")
        time.sleep(_PAUSE)


def stop(system: System, timeout: float) -> bool:
    """Stop the system: by ACPI, and after *timeout* seconds by ending QEMU; False when it did not run."""
    domain = system.need()
    with hypervisor.translated(system.name):
        if not domain.isActive():
            system.wanted.unlink(missing_ok=True)
            return False
        if timeout > 0:
            _ask_to_end(domain)
        if not _ended(domain, timeout):
            _kill(system, domain)
    system.wanted.unlink(missing_ok=True)
    _release(system)
    system.emit("stopped")
    return True


def _ask_to_end(domain: Any) -> None:
    """A frozen guest hears nothing; one without ACPI will not hear, and is killed in the end."""
    import libvirt

    if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    with contextlib.suppress(libvirt.libvirtError):
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def _ended(domain: Any, wait: float) -> bool:
    deadline = time.monotonic() + wait
    while domain.isActive():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _kill(system: System, domain: Any) -> None:
    import libvirt

    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise
    if not _ended(domain, _END):
        raise TimedOutError(f"{system.name}: its QEMU does not end")


def freeze(system: System) -> bool:
    """Hold all its processors; False when they were held."""
    state = system.state()
    if state == "frozen":
        return False
    if state != "running":
        raise DreError(f"{system.name}: is {state}; only a running system can be frozen")
    with hypervisor.translated(system.name):
        system.need().suspend()
    system.emit("frozen")
    return True


def thaw(system: System) -> bool:
    """Let it go on; False when it was running."""
    state = system.state()
    if state == "running":
        return False
    if state != "frozen":
        raise DreError(f"{system.name}: is {state}; only a frozen system can be thawed")
    with hypervisor.translated(system.name):
        system.need().resume()
    system.emit("thawed")
    return True
