# SPDX-License-Identifier: Apache-2.0
"""Changes to systems: create, start, stop, freeze, destroy, isolate.

Every function here wants the system's lock held and earlier intents ended: dre.system.recovery.held gives both. Each
may be killed at any moment; what it leaves is either ended or undone by the next one.
"""

import contextlib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from dre import bridge, dnsmasq, files, network
from dre.errors import DreError, TimedOutError, UsageError
from dre.images import Image
from dre.run import run
from dre.spec import DHCP
from dre.system import address, hypervisor, identity, limits, partition, virt
from dre.system import domain as definitions
from dre.system.agent import Agent
from dre.system.domain import Extra, Hardware
from dre.system.model import System
from dre.system.spec import Spec

_END = 10.0  # seconds for QEMU to end when it is killed
_PAUSE = 0.1  # seconds between two looks at a domain; libvirt's events want a loop of their own


def need_free(system: System) -> None:
    """Raise DreError when there is such a system, whoever made it."""
    if system.find() is not None:
        raise DreError(f"{system.name}: there is such a system already")
    if (system.home / "system.json").exists():
        text = "holds a system that this libvirt does not know: of a host that shares it, or undefined by virsh"
        raise DreError(f"{system.name}: {system.home} {text}; it would be overwritten")


def need_unused(system: System) -> None:
    """Raise DreError while a QEMU, on this host or on another that shares the disk, has it open."""
    if system.disk.exists():
        # QEMU holds locks on what it writes, and qemu-img without -U respects them.
        done = run(["qemu-img", "info", "--output=json", str(system.disk)], check=False, timeout=30)
        if done.returncode != 0 and b"lock" in done.stderr:
            raise DreError(f"{system.name}: {system.disk} is in use, perhaps by another host")


def create(system: System, spec: Spec, ip: str | None, wanted: "Wanted") -> Spec:
    """Define the system, stopped. *ip* is as address.choose wants it; the Spec with what it gives is returned."""
    need_free(system)
    with network.reserved(system.conf):
        system.begin(verb="create")
        try:
            spec = replace(
                spec,
                ip=address.choose(system.conf, system.name, ip),
                mac=address.mac(system.conf, spec.mac or None, system.name),
                dedicated=partition.choose(system.conf, system.name, wanted.vcpus) if wanted.dedicated else (),
            )
        except DreError:
            remove(system)
            raise
        system.store(spec, durable=False)  # until the intent is gone a power failure undoes all of this
    try:
        _build(system, spec, wanted)
    except BaseException:
        remove(system)
        raise
    files.fsync(system.home / "system.json")
    system.done()
    system.emit("created", base=spec.base, ip=spec.ip)
    return spec


class Wanted:
    """What create is asked for beside the Spec: image, sizes, and what else is plugged in."""

    def __init__(
        self,
        image: Image | None,
        virt_kind: str,
        memory: int,
        vcpus: int,
        size: int | None = None,
        extras: tuple[str, ...] = (),
        bridges: tuple[str, ...] = (),
        iso: Path | None = None,
        uefi: bool = False,
    ) -> None:
        self.image, self.virt, self.memory, self.vcpus, self.size = image, virt_kind, memory, vcpus, size
        self.extras, self.bridges, self.iso, self.uefi = extras, bridges, iso, uefi
        self.dedicated = False  # a processor of the host for each of its own
        self.warm: str | None = None  # a warm state, whose disk the first one is layered on
        # Brings the disks into the home of the system, in place of an empty one on the image; returns them.
        self.fill: Callable[[Path], list[Path]] | None = None


def _build(system: System, spec: Spec, wanted: Wanted) -> None:
    system.log.parent.mkdir(parents=True, exist_ok=True)
    if wanted.fill is not None:
        extras = tuple(Extra(path, "qcow2") for path in wanted.fill(system.home)[1:])
    else:
        _overlay(system.disk, _below(system, wanted), wanted.size)
        extras = tuple(_extra(system, number, word) for number, word in enumerate(wanted.extras, 2))
    seed = system.home / "seed.iso" if spec.cloud else None
    if seed is not None:
        identity.seed(system.conf, spec, seed)
    image = wanted.image
    direct = image is not None and image.kernel is not None and not wanted.uefi
    hardware = Hardware(
        name=system.name,
        virt=wanted.virt,
        memory=wanted.memory,
        vcpus=wanted.vcpus,
        disk=system.disk,
        log=system.log,
        mac=spec.mac,
        bridges=((system.conf.bridge_if,) if spec.ip is not None else ()) + wanted.bridges,
        kernel=image.kernel if direct and image else None,
        initrd=image.initrd if direct and image else None,
        command_line=identity.command_line(system.conf, spec, image.cmdline or "") if direct and image else "",
        credentials=() if spec.cloud else tuple(identity.credentials(spec)),
        uefi=wanted.uefi,
        seed=seed,
        iso=wanted.iso,
        extras=extras,
    )
    connection = hypervisor.connect(system.conf)
    with hypervisor.translated(f"{system.name}: cannot be defined"):
        top = definitions.render(hardware)
        partition.pin(top, spec.dedicated, connection.getCPUMap()[1])
        connection.defineXML(definitions.to_xml(top))


def _below(system: System, wanted: Wanted) -> Image | None:
    """What the first disk is layered on."""
    if wanted.warm is None or wanted.image is None:
        return wanted.image
    from dre.system import warm  # it needs this module

    return replace(wanted.image, disk=warm.find(system.conf, wanted.warm).disk)


def tell_guest(system: System, top: Element, spec: Spec) -> None:
    """Have the definition *top* tell the guest what *spec* says: command line and credentials, or the seed."""
    if spec.cloud:
        identity.seed(system.conf, spec, system.home / "seed.iso")
        return
    line = top.find("os/cmdline")
    if line is not None:
        kept = [word for word in (line.text or "").split() if not word.startswith(("ip=", "systemd.hostname="))]
        line.text = identity.command_line(system.conf, spec, " ".join(kept))
    strings = top.find("sysinfo/oemStrings")
    if strings is not None:
        strings.clear()
        for text in identity.credentials(spec):
            SubElement(strings, "entry").text = text


def _overlay(disk: Path, image: Image | None, size: int | None) -> None:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if image is not None:
        if size is not None and size < image.size:
            raise UsageError(f"--disk-size {size}: less than the {image.size} bytes of {image.name}")
        argv += ["-b", str(image.disk), "-F", image.format]
    argv += [str(disk), *([str(size)] if size is not None else [])]
    run(argv)
    disk.chmod(0o600)  # libvirt gives it to QEMU's user while that runs


def _extra(system: System, number: int, word: str) -> Extra:
    """A second disk: a size for a new one of ours, or the path of one that stays its owner's."""
    from dre import images, units

    if "/" in word:
        format, _ = images.inspect(Path(word))
        return Extra(Path(word).absolute(), format)
    path = system.home / f"disk{number}.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(units.size(word))])
    path.chmod(0o600)
    return Extra(path, "qcow2")


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
    """Start the system; False when it runs already. *say* is told where a warm start had to become a cold one."""
    domain = system.need()
    state = system.state()
    if state == "frozen":
        raise DreError(f"{system.name}: is frozen; dre-sys thaw {system.name}")
    if state == "running":
        complete(system)  # the start that made it run may have been killed before this
        return False
    prepare(system)
    if not _warmly(system, say):
        with hypervisor.translated(f"{system.name}: cannot start"):
            domain.create()
    try:
        complete(system)
    except DreError:
        stop(system, 0.0)
        raise
    system.emit("started", pid=_pid(system))
    return True


def _warmly(system: System, say: Callable[[str], object]) -> bool:
    """Start a system that is to go on from a warm state; False where it is none, or that failed: then it boots."""
    spec = system.spec()
    if spec is None or spec.warm is None:
        return False
    from dre.system import warm  # it needs this module

    try:
        warm.awake(system, spec)
        return True
    except DreError as error:
        say(f"{system.name}: boots, for it could not go on from its warm state: {error}")
        stop(system, 0.0)
        prepare(system)
        return False
    finally:
        system.store(replace(spec, warm=None))  # once: from now on its disk is another


def _pid(system: System) -> int | None:
    from dre.system import model

    return model.pid(system.conf, system.name)


def prepare(system: System) -> None:
    """What must be there before libvirt starts or restores the system."""
    spec = system.spec()
    system.wanted.parent.mkdir(parents=True, exist_ok=True)
    system.wanted.touch()
    if spec is None or spec.ip is None:
        return
    bridge.up(system.conf)
    _reserve(system, spec)
    if spec.isolated:
        _drop(system)


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
        dnsmasq.name(system.conf, system.name, address_only)


def _release(system: System) -> None:
    """Forget what `_reserve` told: the system has ended."""
    with contextlib.suppress(DreError):  # a damaged system.json tells no address
        spec = system.spec()
        if spec is not None and spec.ip is not None:
            dnsmasq.release(system.conf, spec.mac)
            dnsmasq.forget(system.conf, system.name)


def forget(system: System) -> None:
    """Have nothing in /run say that the system of that name runs."""
    system.wanted.unlink(missing_ok=True)
    dnsmasq.forget(system.conf, system.name)


def complete(system: System) -> None:
    """What has to follow once the system runs; may be repeated."""
    spec = system.spec()
    if spec is None:
        return
    if spec.isolated:
        apply_isolation(system, True)
    limits.apply_net(system, spec.net)
    if spec.fresh:
        # Its host keys go at this boot, and only at this one: what it is told next is without that.
        system.store(replace(spec, fresh=False))
        redefine(system, replace(spec, fresh=False))


def redefine(system: System, spec: Spec) -> None:
    """Have the guest told what *spec* says from its next start on."""
    import libvirt

    with hypervisor.translated(system.name):
        top = definitions.parse(system.need().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        tell_guest(system, top, spec)
        hypervisor.connect(system.conf).defineXML(definitions.to_xml(top))


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


def isolate(system: System, isolated: bool) -> bool:
    """Cut the system off, or connect it again, running or not; False when nothing was to do."""
    spec = system.ours()
    if spec.isolated == isolated:
        apply_isolation(system, isolated)  # somebody may have set a link up, or flushed the rules
        return False
    system.begin(verb="isolate", isolated=isolated)
    system.store(replace(spec, isolated=isolated))
    resume_isolate(system, isolated)
    return True


def resume_isolate(system: System, isolated: bool) -> None:
    """Do to its end an isolate or rejoin whose intent is written."""
    spec = system.ours()
    if spec.isolated != isolated:
        system.store(replace(spec, isolated=isolated))
    try:
        apply_isolation(system, isolated)
    except DreError:
        system.store(replace(spec, isolated=not isolated))
        system.done()
        raise
    system.emit("isolated" if isolated else "rejoined")
    system.done()


def apply_isolation(system: System, isolated: bool) -> None:
    """Make kernel and libvirt agree: the bridge drops what comes from and goes to its ports, and its links are down."""
    if isolated:
        _drop(system)
        _links(system, "down")
    else:
        _links(system, "up")
        for device in _devices(system):
            network.admit(system.conf, device)


def _drop(system: System) -> None:
    for device in _devices(system):
        network.drop(system.conf, device)


def _devices(system: System) -> list[str]:
    with hypervisor.translated(system.name):
        top = definitions.parse(system.need().XMLDesc(0))
    return [device for _, device, _ in definitions.links(top) if device is not None]


def _links(system: System, state: str) -> None:
    """The guest sees its cable pulled, or put back, now and at its next start."""
    import libvirt

    domain = system.need()
    with hypervisor.translated(system.name):
        kinds: list[tuple[int, int]] = [(libvirt.VIR_DOMAIN_XML_INACTIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG)]
        if domain.isActive():
            kinds.append((0, libvirt.VIR_DOMAIN_AFFECT_LIVE))
        for reading, changing in kinds:
            for made in definitions.parse(domain.XMLDesc(reading)).iterfind("devices/interface"):
                link = made.find("link")
                link = SubElement(made, "link") if link is None else link
                if link.get("state", "up") != state or state == "down":
                    link.set("state", state)
                    domain.updateDeviceFlags(definitions.to_xml(made), changing)


def kind_of_virt(system: System, image: Image | None, say: Callable[[str], None]) -> str:
    """libvirt's domain type for a new system; *say* is told once when that is the emulator."""
    chosen, why = virt.choose(system.conf, image.kernel if image else None)
    if chosen != "kvm":
        say(f"{system.name}: runs under QEMU's emulator (TCG), which is slow: {why}")
    return chosen
