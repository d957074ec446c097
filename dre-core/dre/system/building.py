# SPDX-License-Identifier: Apache-2.0
"""New systems: a disk on an image, a definition, what the guest is to hear. Stopped; dre.system.lifecycle starts them.

Wants the system's lock. Killed at any moment, nothing of it stays once the next verb has looked.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dre import files, network
from dre.app import App
from dre.errors import DreError, UsageError
from dre.images import Image
from dre.run import run
from dre.system import address, hypervisor, identity, lifecycle, partition, virt
from dre.system import domain as definitions
from dre.system.domain import Extra, Hardware
from dre.system.model import System
from dre.system.spec import Spec


def need_free(system: System) -> None:
    """Raise DreError when there is such a system, whoever made it."""
    if system.find() is not None:
        raise DreError(f"{system.name}: there is such a system already")
    if (system.home / "system.json").exists():
        text = "holds a system that this libvirt does not know: of a host that shares it, or undefined by virsh"
        raise DreError(f"{system.name}: {system.home} {text}; it would be overwritten")
    if App(system.conf, system.name).exists():
        raise DreError(f"{system.name}: there is an app of that name, and on the bridge a name means one")


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
            lifecycle.remove(system)
            raise
        system.store(spec, durable=False)  # until the intent is gone a power failure undoes all of this
    try:
        _build(system, spec, wanted)
    except BaseException:
        lifecycle.remove(system)
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
        self.say: Callable[[str], object] = str  # is told why it takes long
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
        with virt.patience(system.name, wanted.virt, wanted.say):
            connection.defineXML(definitions.to_xml(top))


def _below(system: System, wanted: Wanted) -> Image | None:
    """What the first disk is layered on."""
    if wanted.warm is None or wanted.image is None:
        return wanted.image
    from dre.system import warm  # it needs this module

    return replace(wanted.image, disk=warm.find(system.conf, wanted.warm).disk)


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
