# SPDX-License-Identifier: Apache-2.0
"""The definition of a system as libvirt has it: made from what is wanted, read and changed as XML.

See libvirt's documentation, formatdomain. Reads and writes text only; libvirt is called by others.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

MACHINE = "q35"
AGENT = "org.qemu.guest_agent.0"
DISKS = tuple(f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class Extra:
    """A second disk: a file and its format."""

    path: Path
    format: str


@dataclass(frozen=True)
class Hardware:
    """What a new system is made of; sizes in bytes."""

    name: str
    virt: str  # kvm or qemu
    memory: int
    vcpus: int
    disk: Path
    log: Path
    mac: str
    bridges: tuple[str, ...]  # one link on each; the first has *mac*
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    credentials: tuple[str, ...] = ()
    uefi: bool = False
    seed: Path | None = None
    iso: Path | None = None
    extras: tuple[Extra, ...] = ()


def link(bridge: str, name: str, number: int = 0) -> str:
    """The host's end of a system's link *number*. Derived, so that rules can be there before it is."""
    return "ds" + hashlib.sha256(f"{bridge} {name} {number}".encode()).hexdigest()[:10]


def render(wanted: Hardware) -> Element:
    """The definition."""
    top = Element("domain", type=wanted.virt)
    _text(top, "name", wanted.name)
    # Another one after each way back: the guest's kernel then makes its random numbers anew; see VMGENID.
    SubElement(top, "genid")
    _text(top, "memory", str(wanted.memory), unit="b")
    _text(top, "vcpu", str(wanted.vcpus), placement="static")
    # Shared with a file descriptor, so that memory can be looked at from outside (dre-lms); see memfd_create(2).
    backing = SubElement(top, "memoryBacking")
    SubElement(backing, "source", type="memfd")
    SubElement(backing, "access", mode="shared")
    if wanted.credentials:
        strings = SubElement(SubElement(top, "sysinfo", type="smbios"), "oemStrings")
        for string in wanted.credentials:
            _text(strings, "entry", string)
    _boot(top, wanted)
    features = SubElement(top, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    SubElement(features, "vmcoreinfo", state="on")
    if wanted.virt == "kvm":
        SubElement(top, "cpu", mode="host-model", check="partial")
    else:
        _text(SubElement(top, "cpu", mode="custom", match="exact"), "model", "qemu64", fallback="forbid")
    SubElement(top, "clock", offset="utc")
    for key, value in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(top, key, value)
    _devices(SubElement(top, "devices"), wanted)
    return top


def _boot(top: Element, wanted: Hardware) -> None:
    boot = SubElement(top, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine=MACHINE)
    if wanted.uefi:
        boot.set("firmware", "efi")
        # Keys of a vendor would refuse what the user's own image boots.
        SubElement(SubElement(boot, "firmware"), "feature", enabled="no", name="secure-boot")
    elif wanted.kernel is not None:
        _text(boot, "kernel", str(wanted.kernel))
        _text(boot, "initrd", str(wanted.initrd))
        _text(boot, "cmdline", wanted.command_line)
    if wanted.credentials:
        SubElement(boot, "smbios", mode="sysinfo")


def _devices(devices: Element, wanted: Hardware) -> None:
    first = disk_element(Extra(wanted.disk, "qcow2"), DISKS[0])
    devices.append(first)
    for extra, target in zip(wanted.extras, DISKS[1:], strict=False):
        devices.append(disk_element(extra, target))
    direct = wanted.kernel is not None and not wanted.uefi
    if not direct:
        SubElement(first, "boot", order="2" if wanted.iso else "1")
    if wanted.iso is not None:
        cdrom = _readonly(wanted.iso, "cdrom", "sda", "sata")
        if not direct:
            SubElement(cdrom, "boot", order="1")
        devices.append(cdrom)
    if wanted.seed is not None:
        # No CD: the kernels made for clouds know no SATA.
        devices.append(_readonly(wanted.seed, "disk", DISKS[-1], "virtio"))
    for number, bridge in enumerate(wanted.bridges):
        devices.append(interface(bridge, wanted.name, number, wanted.mac if number == 0 else None))
    serial = SubElement(devices, "serial", type="pty")
    SubElement(serial, "log", file=str(wanted.log), append="on")
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "target", type="virtio", name=AGENT)
    SubElement(
        SubElement(
            devices,
            "memballoon",
            model="virtio",
        ),
        "stats",
        period="2",
    )
    _text(SubElement(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    if wanted.iso:  # an installer wants a screen
        SubElement(devices, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")
        SubElement(SubElement(devices, "video"), "model", type="virtio")


def disk_element(extra: Extra, target: str) -> Element:
    """A disk of a virtio controller."""
    disk = Element("disk", type="file", device="disk")
    SubElement(disk, "driver", name="qemu", type=extra.format, discard="unmap", detect_zeroes="unmap")
    SubElement(disk, "source", file=str(extra.path))
    SubElement(disk, "target", dev=target, bus="virtio")
    return disk


def _readonly(path: Path, device: str, target: str, bus: str) -> Element:
    """A raw image that the system cannot write."""
    disk = Element("disk", type="file", device=device)
    SubElement(disk, "driver", name="qemu", type="raw")
    SubElement(disk, "source", file=str(path))
    SubElement(disk, "target", dev=target, bus=bus)
    SubElement(disk, "readonly")
    return disk


def interface(bridge: str, name: str, number: int, mac: str | None) -> Element:
    """A link to *bridge*; without *mac* libvirt gives one."""
    made = Element("interface", type="bridge")
    if mac:
        SubElement(made, "mac", address=mac)
    SubElement(made, "source", bridge=bridge)
    SubElement(made, "target", dev=link(bridge, name, number))
    SubElement(made, "model", type="virtio")
    return made


def parse(xml: str) -> Element:
    """The definition that *xml* is. It is libvirt's own, and knows no entities."""
    return ElementTree.fromstring(xml)  # noqa: S314 - see above


def to_xml(top: Element) -> str:
    """The XML of *top*."""
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="unicode")


def _text(parent: Element, tag: str, content: str, **attributes: str) -> None:
    SubElement(parent, tag, attributes).text = content


def disks(top: Element) -> Iterator[tuple[str, Path, str]]:
    """Target, file and format of each disk in a file that the system may write."""
    for disk in top.iterfind("devices/disk[@device='disk']"):
        source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
        if source is None or target is None or "file" not in source.attrib or disk.find("readonly") is not None:
            continue
        yield (
            target.get("dev", ""),
            Path(source.get("file", "")),
            driver.get("type", "raw") if driver is not None else "raw",
        )


def links(top: Element) -> Iterator[tuple[str | None, str | None, str | None]]:
    """Bridge, host's end and MAC of each interface, as far as they are known."""
    for made in top.iterfind("devices/interface"):
        source, target, mac = made.find("source"), made.find("target"), made.find("mac")
        yield (
            source.get("bridge") if source is not None else None,
            target.get("dev") if target is not None else None,
            mac.get("address") if mac is not None else None,
        )
