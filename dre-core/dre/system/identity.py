# SPDX-License-Identifier: Apache-2.0
"""Who a system is, told to it from outside: host name, address, keys of root. Its image is never changed for that.

An image of dre-base hears it by the kernel's command line and by credentials of systemd in SMBIOS strings of type 11
(systemd.exec(5), smbios-type-11(7)); a cloud image by a NoCloud seed (cloud-init's documentation, DataSourceNoCloud).
"""

import base64
import ipaddress
import json
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from dre import files, sshd
from dre.conf import Conf
from dre.run import run
from dre.spec import DHCP
from dre.system import address, hypervisor
from dre.system import domain as definitions
from dre.system.model import System
from dre.system.spec import Spec


def keys(words: list[str]) -> tuple[str, ...]:
    """The lines for authorized_keys of what was given: files, or keys themselves. Raises UsageError."""
    return sshd.keys(words)


def command_line(conf: Conf, spec: Spec, given: str) -> str:
    """The kernel's command line: *given*, host name and address.

    `ip=` is as in the kernel's nfsroot.txt, read by systemd-network-generator(8).
    """
    words = [given, f"systemd.hostname={spec.name}"]
    if spec.ip not in (None, DHCP):
        own = ipaddress.IPv4Interface(str(spec.ip))
        servers = list(address.name_servers(conf))[:2]
        fields = [
            str(own.ip),
            "",
            address.gateway(conf, str(spec.ip)) or "",
            str(own.netmask),
            spec.name,
            "eth0",
            "off",
        ]
        words.append("ip=" + ":".join([*fields, *servers]))
    return " ".join(word for word in words if word)


def credentials(spec: Spec) -> list[str]:
    """The SMBIOS strings that make systemd-tmpfiles of an image of dre-base write host name and keys."""
    lines = [f"f+ /etc/hostname 0644 root root - {spec.name}"]
    if spec.ssh_keys:
        text = base64.b64encode("".join(f"{key}\n" for key in spec.ssh_keys).encode()).decode()
        lines += ["d /root/.ssh 0700 root root -", f"f+~ /root/.ssh/authorized_keys 0600 root root - {text}"]
    if spec.fresh:
        lines.append("r! /etc/ssh/ssh_host_*")  # before its services start, and make new ones
    octets = base64.b64encode("".join(f"{line}\n" for line in lines).encode()).decode()
    return [f"io.systemd.credential:dre.name={spec.name}", f"io.systemd.credential.binary:tmpfiles.extra={octets}"]


def seed(conf: Conf, spec: Spec, place: Path) -> None:
    """Make the NoCloud seed *place*, an ISO image labelled cidata. Raises MissingError without xorriso."""
    # JSON is YAML, and quotes what we do not control.
    user = {
        "hostname": spec.name,
        "disable_root": False,
        "users": [{"name": "root", "lock_passwd": True, "ssh_authorized_keys": list(spec.ssh_keys)}, "default"],
        "ssh_authorized_keys": list(spec.ssh_keys),
        "packages": ["qemu-guest-agent"],
    }
    parts = {
        "meta-data": json.dumps({"instance-id": f"{spec.mac}-{spec.created}", "local-hostname": spec.name}) + "\n",
        "user-data": "#cloud-config\n" + json.dumps(user) + "\n",
        "network-config": json.dumps({"version": 2, "ethernets": {"first": _ethernet(conf, spec)}}) + "\n",
    }
    work = place.with_name(f".{place.name}.d")
    work.mkdir(mode=0o700, exist_ok=True)
    for name, text in parts.items():
        (work / name).write_text(text)
    temporary = place.with_name(f".{place.name}.tmp")
    temporary.unlink(missing_ok=True)
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-output", str(temporary), "-volid", "cidata", "-joliet", "-rock"]
    run([*argv, *(str(work / name) for name in parts)], timeout=60)
    temporary.chmod(0o600)
    temporary.rename(place)
    files.fsync_dir(place.parent)
    for name in parts:
        (work / name).unlink()
    work.rmdir()


def _ethernet(conf: Conf, spec: Spec) -> dict[str, object]:
    found: dict[str, object] = {"match": {"macaddress": spec.mac}}
    if spec.ip in (None, DHCP):
        return {**found, "dhcp4": spec.ip == DHCP}
    way = address.gateway(conf, str(spec.ip))
    if way:
        found["gateway4"] = way
    return {**found, "addresses": [spec.ip], "nameservers": {"addresses": list(address.name_servers(conf))}}


def tell_guest(system: System, top: Element, spec: Spec) -> None:
    """Have the definition *top* tell the guest what *spec* says: command line and credentials, or the seed."""
    if spec.cloud:
        seed(system.conf, spec, system.home / "seed.iso")
        return
    line = top.find("os/cmdline")
    if line is not None:
        kept = [word for word in (line.text or "").split() if not word.startswith(("ip=", "systemd.hostname="))]
        line.text = command_line(system.conf, spec, " ".join(kept))
    strings = top.find("sysinfo/oemStrings")
    if strings is not None:
        strings.clear()
        for text in credentials(spec):
            SubElement(strings, "entry").text = text


def redefine(system: System, spec: Spec) -> None:
    """Have the guest told what *spec* says from its next start on."""
    import libvirt

    with hypervisor.translated(system.name):
        top = definitions.parse(system.need().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        tell_guest(system, top, spec)
        hypervisor.connect(system.conf).defineXML(definitions.to_xml(top))
