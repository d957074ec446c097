# SPDX-License-Identifier: Apache-2.0
"""Processors of the host that belong to one system alone: one for each virtual processor, QEMU's other work elsewhere.

What else runs on the host, and systems without such processors, may still use them; isolcpus of the kernel's command
line keeps those away.
"""

from xml.etree.ElementTree import Element, SubElement

from dre import limits as sets
from dre.conf import Conf
from dre.errors import MissingError
from dre.system import address, hypervisor


def choose(conf: Conf, name: str, count: int) -> tuple[int, ...]:
    """*count* processors that no other system has, the last ones of the host, which keeps one at least.

    Wants `network.reserved`, under which what systems share is given. Raises MissingError where there are too few.
    """
    with hypervisor.translated(name):
        there = hypervisor.connect(conf).getCPUMap()[1]
    taken = {cpu for spec in address.given(conf, name) for cpu in spec.dedicated}
    free = [cpu for cpu, online in enumerate(there) if online and cpu not in taken]
    if count > len(free) - 1:
        text = f"{count} processors of its own are wanted, and {max(len(free) - 1, 0)} can be given"
        raise MissingError(f"{name}: --dedicated-cpus: {text}: one stays with the host")
    return tuple(free[-count:])


def pin(top: Element, cpus: tuple[int, ...], online: list[bool]) -> None:
    """Have the definition *top* give each virtual processor one of *cpus*, and all else the rest of those *online*."""
    for old in top.findall("cputune"):
        for one in [*old.findall("vcpupin"), *old.findall("emulatorpin")]:
            old.remove(one)
    if not cpus:
        return
    found = top.find("cputune")
    tune = SubElement(top, "cputune") if found is None else found
    for number, cpu in enumerate(cpus):
        SubElement(tune, "vcpupin", vcpu=str(number), cpuset=str(cpu))
    rest = [cpu for cpu, there in enumerate(online) if there and cpu not in cpus]
    SubElement(tune, "emulatorpin", cpuset=sets.cpu_text(rest))
