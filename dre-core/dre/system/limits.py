# SPDX-License-Identifier: Apache-2.0
"""Limits of systems: processors, memory by the balloon, disk and network rate. Live and persistent, all or none.

libvirt keeps them, but for the network rate, which is a queue at the host's end of the link: libvirt's own wants a
scheduler that not every kernel has.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from dre import limits as sets
from dre import network
from dre.errors import DreError, UsageError
from dre.system import domain as definitions
from dre.system import hypervisor
from dre.system.model import RUNNING, System

PERIOD = 100000  # microseconds of one turn of a quota
_LEAST = 1000  # of them that the kernel takes
KEYS = ("cpu", "cpus", "memory", "io", "net")


@dataclass(frozen=True)
class Limits:
    """*cpu* in percent of one core, *cpus* a set of processors, *memory* in bytes, *io* and *net* in bytes a second."""

    cpu: float | None = None
    cpus: str | None = None
    memory: int | None = None
    io: int | None = None
    net: int | None = None


def read(system: System) -> Limits:
    """The limits that the system has, as libvirt tells. *memory* is never None: a system has what it was made with.

    It is what was asked for: a guest takes its time to give memory back, and may refuse.
    """
    import libvirt

    domain = system.need()
    spec = system.spec()
    with hypervisor.translated(system.name):
        top = definitions.parse(domain.XMLDesc(0))
        lasting = definitions.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if domain.isPersistent() else top
        return Limits(cpu(domain), _cpus(top), _memory(lasting), _io(domain, top), spec.net if spec else None)


def cpu(domain: Any) -> float | None:
    """The quota of all its virtual processors together, in percent of one core."""
    quota = domain.schedulerParameters().get("vcpu_quota", -1)
    count = _vcpus(domain)
    return round(quota * count * 100 / PERIOD, 2) if quota and quota > 0 else None


def _vcpus(domain: Any) -> int:
    import libvirt

    count = domain.vcpusFlags(libvirt.VIR_DOMAIN_AFFECT_CURRENT)
    return max(int(count), 1)


def _cpus(top: Any) -> str | None:
    vcpu = top.find("vcpu")
    pins = {pin.get("cpuset") for pin in top.iterfind("cputune/vcpupin")}
    if len(pins) == 1:
        return str(pins.pop())
    return vcpu.get("cpuset") if vcpu is not None else None


def _memory(top: Any) -> int:
    units = {"KiB": 1024, "b": 1, "bytes": 1, "MiB": 1 << 20, "GiB": 1 << 30}
    found = top.find("currentMemory")
    found = top.find("memory") if found is None else found
    return int(found.text) * units[found.get("unit", "KiB")]


def _io(domain: Any, top: Any) -> int | None:
    rates = {domain.blockIoTune(target).get("read_bytes_sec", 0) for target, _, _ in definitions.disks(top)}
    return min(rates) or None if rates else None


def change(system: System, changes: dict[str, Any]) -> Limits:
    """Set *changes*, None lifting a limit, and return what the system has then. All are done, or none.

    Raises UsageError for what can never be, MissingError for what this host cannot do.
    """
    before = read(system)
    wanted = replace(before, **changes)
    _check(system, wanted, changes)
    done: list[str] = []
    system.begin(verb="limit", before={field.name: getattr(before, field.name) for field in fields(before)})
    try:
        for key in KEYS:
            if key in changes:
                done.append(key)
                _SETTERS[key](system, getattr(wanted, key))
        found = read(system)
        for key in changes:
            if key != "memory" and not _same(getattr(found, key), getattr(wanted, key)):
                raise DreError(f"{system.name}: {key}: libvirt made {getattr(found, key)} of {getattr(wanted, key)}")
    except Exception:
        put_back(system, before, reversed(done))
        system.done()
        raise
    system.done()
    system.emit("limited", **{key: getattr(found, key) for key in changes})
    return found


def _same(found: Any, wanted: Any) -> bool:
    return found == wanted or (isinstance(found, float) and wanted is not None and abs(found - wanted) < 0.5)


def put_back(system: System, before: Limits, keys: Iterator[str] | None = None) -> None:
    """Have *before* again; the first failure is the one that is told."""
    for key in keys or iter(KEYS):
        with contextlib.suppress(DreError):
            _SETTERS[key](system, getattr(before, key))


def _check(system: System, wanted: Limits, changes: dict[str, Any]) -> None:
    domain = system.need()
    if "memory" in changes:
        with hypervisor.translated(system.name):
            most = domain.maxMemory() * 1024
            alive = bool(domain.isActive())
        if wanted.memory is None:
            raise UsageError("--memory none: a system always has a memory; give its size")
        if wanted.memory > most and alive:
            text = f"more than the {most} bytes it was started with; stop it first"
            raise UsageError(f"{system.name}: --memory {wanted.memory}: {text}")
    if wanted.cpu is not None and "cpu" in changes:
        with hypervisor.translated(system.name):
            least = _vcpus(domain) * _LEAST * 100 / PERIOD
        if wanted.cpu < least:
            raise UsageError(f"--cpu {wanted.cpu:g}: {least:g} is the least for its virtual processors")
    if "cpus" in changes:
        spec = system.spec()
        if spec is not None and spec.dedicated:
            raise DreError(
                f"{system.name}: --cpus: its processors are dedicated to it: {sets.cpu_text(spec.dedicated)}"
            )
    if wanted.cpus is not None and "cpus" in changes:
        with hypervisor.translated(system.name):
            there = system.need().connect().getCPUMap()[1]
        missing = [cpu for cpu in sets.cpu_set(wanted.cpus) if cpu >= len(there) or not there[cpu]]
        if missing:
            raise UsageError(f"--cpus {wanted.cpus}: this host has no processor {missing[0]}")
    if "net" in changes:
        system.ours()


def _flags(domain: Any) -> int:
    import libvirt

    live = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    lasting = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    return int(live | lasting)


def _each_flag(domain: Any) -> list[int]:
    """The flags one by one: libvirt's Python reads what there is before it sets, and cannot read both at once."""
    import libvirt

    both = (libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    return [flag for flag in both if _flags(domain) & flag]


def _set_cpu(system: System, percent: float | None) -> None:
    domain = system.need()
    with hypervisor.translated(f"{system.name}: cpu"):
        quota = -1 if percent is None else max(round(percent * PERIOD / 100 / _vcpus(domain)), _LEAST)
        for flag in _each_flag(domain):
            domain.setSchedulerParametersFlags({"vcpu_period": PERIOD, "vcpu_quota": quota}, flag)


def _set_cpus(system: System, text: str | None) -> None:
    domain = system.need()
    with hypervisor.translated(f"{system.name}: cpus"):
        count = len(domain.connect().getCPUMap()[1])
        wanted = sets.cpu_set(text) if text else set(range(count))
        where = tuple(number in wanted for number in range(count))
        flags = _flags(domain)
        for number in range(_vcpus(domain)):
            domain.pinVcpuFlags(number, where, flags)
        domain.pinEmulator(where, flags)


def _set_memory(system: System, size: int | None) -> None:
    import libvirt

    domain = system.need()
    kib = max((size or 0) // 1024, 1)
    with hypervisor.translated(f"{system.name}: memory"):
        if not domain.isActive():
            # What it is started with is its maximum; without this QEMU would be given the old size.
            domain.setMemoryFlags(kib, libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_MEM_MAXIMUM)
        domain.setMemoryFlags(kib, _flags(domain))


def _set_io(system: System, rate: int | None) -> None:
    domain = system.need()
    with hypervisor.translated(f"{system.name}: io"):
        top = definitions.parse(domain.XMLDesc(0))
        for target, _, _ in definitions.disks(top):
            for flag in _each_flag(domain):
                domain.setBlockIoTune(target, {"read_bytes_sec": rate or 0, "write_bytes_sec": rate or 0}, flag)


def _set_net(system: System, rate: int | None) -> None:
    spec = system.ours()
    apply_net(system, rate, spec.net)
    system.store(replace(spec, net=rate))


def apply_net(system: System, rate: int | None, before: int | None = None) -> None:
    """Limit each link of the running system to *rate*. Raises MissingError where the kernel cannot."""
    if system.state() not in RUNNING or (rate is None and before is None):
        return
    with hypervisor.translated(system.name):
        top = definitions.parse(system.need().XMLDesc(0))
    for _, device, _ in definitions.links(top):
        if device is not None and network.rates(system.conf, device) != (rate, rate):
            network.set_rate(system.conf, device, rate, rate)


_SETTERS: dict[str, Callable[[System, Any], None]] = {
    "cpu": _set_cpu,
    "cpus": _set_cpus,
    "memory": _set_memory,
    "io": _set_io,
    "net": _set_net,
}
