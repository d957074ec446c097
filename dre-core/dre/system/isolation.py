# SPDX-License-Identifier: Apache-2.0
"""Systems cut off from the network, and connected again: at the host's end of their links, where no guest can reach.

Wants the system's lock. The packet filter itself is dre.network's.
"""

from dataclasses import replace
from xml.etree.ElementTree import SubElement

from dre import network
from dre.errors import DreError
from dre.system import domain as definitions
from dre.system import hypervisor
from dre.system.model import System


def isolate(system: System, isolated: bool) -> bool:
    """Cut the system off, or connect it again, running or not; False when nothing was to do."""
    spec = system.ours()
    if spec.isolated == isolated:
        apply(system, isolated)  # somebody may have set a link up, or flushed the rules
        return False
    system.begin(verb="isolate", isolated=isolated)
    system.store(replace(spec, isolated=isolated))
    resume(system, isolated)
    return True


def resume(system: System, isolated: bool) -> None:
    """Do to its end an isolate or rejoin whose intent is written."""
    spec = system.ours()
    if spec.isolated != isolated:
        system.store(replace(spec, isolated=isolated))
    try:
        apply(system, isolated)
    except DreError:
        system.store(replace(spec, isolated=not isolated))
        system.done()
        raise
    system.emit("isolated" if isolated else "rejoined")
    system.done()


def apply(system: System, isolated: bool) -> None:
    """Make kernel and libvirt agree: the bridge drops what comes from and goes to its ports, and its links are down."""
    if isolated:
        drop(system)
        _links(system, "down")
    else:
        _links(system, "up")
        for device in _devices(system):
            network.admit(system.conf, device)


def drop(system: System) -> None:
    """Have the bridge drop what comes from and goes to its ports, whether they are there yet or not."""
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
