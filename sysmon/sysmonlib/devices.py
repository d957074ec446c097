# SPDX-License-Identifier: Apache-2.0
"""What has passed through the devices of a running system, as QEMU, the kernel and libvirt count it on the host."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from dre.conf import Conf
from dre.errors import MissingError
from dre.system import domain as definitions
from dre.system import hypervisor
from dre.system.model import System

# Through what is of these elements of a definition, data leave a guest uncounted.
_UNCOUNTED = ("hostdev", "filesystem", "redirdev", "shmem", "memory", "smartcard")
_RUNNING, _PAUSED = 1, 3  # VIR_DOMAIN_RUNNING, VIR_DOMAIN_PAUSED
Figures = Mapping[str, Mapping[str, int]]


class Devices:
    """Those of the system *name*. Raises NotFoundError, and MissingError where it does not run."""

    def __init__(self, conf: Conf, name: str) -> None:
        self._conf, self._name = conf, name
        self.domain = System(conf, name).need()
        self.number = self._id()
        with hypervisor.translated(name):
            self._top = definitions.parse(self.domain.XMLDesc(0))
        self._logs = list(_logs(self._top))

    def _id(self) -> int:
        with hypervisor.translated(self._name):
            number = int(self.domain.ID()) if self.domain.isActive() else -1
        if number < 0:
            raise MissingError(f"{self._name}: it does not run")
        return number

    @property
    def taps(self) -> list[str]:
        """The host's ends of its links."""
        return [device for _, device, _ in definitions.links(self._top) if device is not None]

    def figures(self, resting: bool = False) -> tuple[Figures, Figures]:
        """Of each disk, and of each link, what libvirt counts; see virConnectGetAllDomainStats.

        Those of links are as the guest sees them: tx is what it sends. Raises MissingError where it does not run, or,
        unless *resting* is said, is paused.
        """
        import libvirt

        stats = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BLOCK | libvirt.VIR_DOMAIN_STATS_INTERFACE
        with hypervisor.translated(self._name):
            told = hypervisor.connect(self._conf).domainListGetStats([self.domain], stats, 0)
        figures = told[0][1] if told else {}
        if figures.get("state.state") not in ((_RUNNING, _PAUSED) if resting else (_RUNNING,)):
            raise MissingError(f"{self._name}: it does not run" + ("" if resting else ", or rests"))
        if self._id() != self.number:
            raise MissingError(f"{self._name}: it was stopped and started meanwhile")
        return grouped(figures, "block"), grouped(figures, "net")

    def output(self) -> dict[tuple[str, str], int]:
        """What the guest has put out, by device and counter."""
        disks, links = self.figures()
        found: dict[tuple[str, str], int] = {}
        for name, figures in disks.items():
            for key, word in (("wr.bytes", "octets"), ("wr.reqs", "writes"), ("fl.reqs", "flushes")):
                if key in figures:
                    found[name, word] = figures[key]
        for name, figures in links.items():
            for key, word in (("tx.bytes", "octets"), ("tx.pkts", "packets")):
                if key in figures:
                    found[name, word] = figures[key]
        for name, path in self._logs:
            try:
                found[name, "octets"] = path.stat().st_size
            except OSError as error:
                raise MissingError(f"{path}: {error.strerror}") from None
        return found

    def uncounted(self) -> list[str]:
        """The kinds of its devices by which data may leave it and are not counted."""
        found = {kind for kind in _UNCOUNTED if self._top.find(f"devices/{kind}") is not None}
        disks, links = self.figures()
        if len(list(self._top.iterfind("devices/interface"))) > len(links):
            found.add("interface")
        for disk in self._top.iterfind("devices/disk"):
            target = disk.find("target")
            name = target.get("dev") if target is not None else None
            if disk.find("readonly") is None and "wr.bytes" not in disks.get(name or "", {}):
                found.add("disk")
        return sorted(found)


def grouped(figures: Mapping[str, Any], kind: str) -> dict[str, dict[str, int]]:
    """The figures of each device of a *kind* (block, net), by its name; *figures* are libvirt's, `block.0.wr.bytes`."""
    found: dict[str, dict[str, int]] = {}
    for number in range(int(figures.get(f"{kind}.count", 0))):
        start = f"{kind}.{number}."
        name = figures.get(start + "name")
        if isinstance(name, str):
            found[name] = {
                key.removeprefix(start): value
                for key, value in figures.items()
                if key.startswith(start) and isinstance(value, int)
            }
    return found


def _logs(top: Element) -> Iterator[tuple[str, Path]]:
    """The serial ports whose output goes to a file, and that file."""
    for number, made in enumerate(top.iterfind("devices/serial")):
        log, source = made.find("log"), made.find("source")
        path = log.get("file") if log is not None else None
        if path is None and made.get("type") == "file" and source is not None:
            path = source.get("path")
        if path is not None and re.match(r"/", path):
            yield f"serial{number}", Path(path)
