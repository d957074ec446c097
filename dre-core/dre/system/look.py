# SPDX-License-Identifier: Apache-2.0
"""What systems are and use, as rows of list, status and stat: all systems by one call of libvirt, no guest asked.

Rates come from two looks. Nothing is changed here.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dre import units
from dre.conf import Conf
from dre.errors import DreError, NotFoundError
from dre.spec import DHCP
from dre.system import hypervisor, model
from dre.system.model import RUNNING, System
from dre.system.spec import Spec

ARP = Path("/proc/net/arp")
RENEWED = 10.0  # seconds that what a system seldom changes is taken for unchanged
RATES = ("io_read", "io_write", "net_rx", "net_tx")


def briefs(conf: Conf) -> list[dict[str, Any]]:
    """The fields that a person's list shows, of all systems."""
    import libvirt

    found = _told(conf, None, libvirt.VIR_DOMAIN_STATS_STATE)
    near = neighbours(conf)
    return [_brief(System(conf, name), found.get(name, (None, {}))[1], near) for name in _names(conf, found)]


def rows(conf: Conf, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """All fields, of all systems or of *names*. Raises NotFoundError naming one that there is not."""
    return [{**row, **_details(domain)} for row, _, domain in _looks(conf, names)]


def _names(conf: Conf, found: Mapping[str, Any]) -> list[str]:
    return sorted({*(name for name in found if units.is_name(name)), *model.kept(conf)})


def _told(conf: Conf, names: Iterable[str] | None, stats: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """libvirt's domain and figures of each system. It does not wait for one that is busy."""
    import libvirt

    connection = hypervisor.connect(conf)
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    with hypervisor.translated("libvirt"):
        if names is None:
            told = connection.getAllDomainStats(stats, flags)
        else:
            domains = [domain for domain in (System(conf, name).find() for name in names) if domain is not None]
            told = connection.domainListGetStats(domains, stats, flags) if domains else []
    return {domain.name(): (domain, figures) for domain, figures in told}


def _looks(conf: Conf, names: Iterable[str] | None) -> list[tuple[dict[str, Any], dict[str, Any], Any]]:
    """Row, figures and domain of each, by one call of libvirt."""
    import libvirt

    wanted = (
        libvirt.VIR_DOMAIN_STATS_STATE
        | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
        | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_VCPU
        | libvirt.VIR_DOMAIN_STATS_INTERFACE
        | libvirt.VIR_DOMAIN_STATS_BLOCK
    )
    listed = None if names is None else list(names)
    found = _told(conf, listed, wanted)
    near = neighbours(conf)
    made = []
    for name in _names(conf, found) if listed is None else listed:
        domain, figures = found.get(name, (None, {}))
        system = System(conf, name)
        if domain is None and not system.home.exists():
            raise NotFoundError(f"{name}: no such system")
        made.append((_row(system, figures, near), figures, domain))
    return made


def _spec(system: System) -> Spec | None:
    with contextlib.suppress(DreError):  # damaged: the verb that needs it says so
        return system.spec()
    return None


def _brief(system: System, figures: Mapping[str, Any], near: Mapping[str, str]) -> dict[str, Any]:
    state = "partial"
    if "state.state" in figures:
        state = system.named(figures["state.state"], figures.get("state.reason", 0))
    number = model.pid(system.conf, system.name) if state in RUNNING else None
    return {"name": system.name, "state": state, "ip": _addresses(_spec(system), near), "pid": number}


def _row(system: System, figures: Mapping[str, Any], near: Mapping[str, str]) -> dict[str, Any]:
    spec = _spec(system)
    brief = _brief(system, figures, near)
    alive = brief["state"] in RUNNING
    limit = figures.get("balloon.current")
    return {
        **brief,
        "cpu": None,
        "memory": _memory(figures) if alive else None,
        "memory_limit": limit * 1024 if limit is not None else None,
        "cpu_limit": None,
        "pids": None,
        "created": spec.created if spec else None,
        "base": spec.base if spec else None,
        "snapshots": [],
        "checkpoints": [],
        "isolated": spec.isolated if spec else None,
        "id": None,
        "uuid": None,
        "vcpus": figures.get("vcpu.current"),
        "memory_max": figures["balloon.maximum"] * 1024 if "balloon.maximum" in figures else None,
    }


def _details(domain: Any) -> dict[str, Any]:
    """What only the domain itself tells, by some calls for each; nothing where it has gone meanwhile."""
    if domain is None:
        return {}
    import libvirt

    from dre.system import limits, saved

    try:
        number = domain.ID()
        return {
            "id": number if number >= 0 else None,
            "uuid": domain.UUIDString(),
            "cpu_limit": limits.cpu(domain),
            **saved.tags(domain),
        }
    except libvirt.libvirtError:
        return {}


def _memory(figures: Mapping[str, Any]) -> int | None:
    """What the guest uses, as its balloon tells; else what QEMU has of the host's memory."""
    for all_key, free_key in (("balloon.available", "balloon.usable"), ("balloon.available", "balloon.unused")):
        if all_key in figures and free_key in figures:
            return max(int(figures[all_key]) - int(figures[free_key]), 0) * 1024
    return int(figures["balloon.rss"]) * 1024 if "balloon.rss" in figures else None


def neighbours(conf: Conf) -> dict[str, str]:
    """The addresses that hardware addresses have: what our DHCP gave, and what the host has talked to."""
    found = {}
    with contextlib.suppress(OSError):
        for line in ARP.read_text().splitlines()[1:]:
            words = line.split()
            if len(words) >= 6 and words[3] != "00:00:00:00:00:00":
                found[words[3]] = words[0]
    with contextlib.suppress(OSError):
        for line in (conf.core_run_dir / "bridge" / conf.bridge_if / "leases").read_text().splitlines():
            words = line.split()
            if len(words) >= 3:
                found[words[1]] = words[2]
    return found


def _addresses(spec: Spec | None, near: Mapping[str, str]) -> list[str]:
    if spec is None or spec.ip is None:
        return []
    if spec.ip != DHCP:
        return [spec.ip.partition("/")[0]]
    return [near[spec.mac]] if spec.mac in near else []


class Watch:
    """Looks at systems again and again; from the second one on with rates.

    Each look is one call of libvirt. With *details* what that does not tell is asked for, too, but seldom.
    """

    def __init__(self, conf: Conf, names: list[str], details: bool) -> None:
        self.conf, self.names, self.details = conf, names or None, details
        self._told: dict[str, tuple[float, dict[str, Any]]] = {}
        self._before: dict[str, tuple[float, dict[str, float]]] = {}

    def look(self) -> list[dict[str, Any]]:
        """A row for each: cpu in percent of one core, rates in octets per second."""
        now = time.monotonic()
        made = []
        for row, figures, domain in _looks(self.conf, self.names):
            name = row["name"]
            row |= self._detailed(name, domain, now)
            counters = _counters(figures) if row["state"] in RUNNING else None
            made.append({**row, **dict.fromkeys(RATES), **self._rates(name, now, counters)})
            if counters is None:
                self._before.pop(name, None)
            else:
                self._before[name] = now, counters
        return made

    def _detailed(self, name: str, domain: Any, now: float) -> dict[str, Any]:
        if not self.details:
            return {}
        moment, told = self._told.get(name, (0.0, {}))
        if not told or now - moment > RENEWED:
            told = _details(domain)
            self._told[name] = now, told
        return told

    def _rates(self, name: str, now: float, counters: dict[str, float] | None) -> dict[str, float]:
        if counters is None or name not in self._before:
            return {}
        moment, before = self._before[name]
        span = max(now - moment, 1e-6)
        # One may begin again: the system was started anew meanwhile.
        return {key: round(max(value - before.get(key, 0), 0) / span, 1) for key, value in counters.items()}


def _counters(figures: Mapping[str, Any]) -> dict[str, float]:
    def total(kind: str, what: str) -> float:
        return float(sum(figures.get(f"{kind}.{index}.{what}", 0) for index in range(figures.get(f"{kind}.count", 0))))

    return {
        "cpu": figures.get("cpu.time", 0) / 1e7,
        "io_read": total("block", "rd.bytes"),
        "io_write": total("block", "wr.bytes"),
        "net_rx": total("net", "rx.bytes"),
        "net_tx": total("net", "tx.bytes"),
    }
