# SPDX-License-Identifier: Apache-2.0
"""The first disk of a system made larger, running or not. A guest of dre-base takes the new room at its next boot."""

import json

from dre.errors import DreError, UsageError
from dre.run import run
from dre.system import domain as definitions
from dre.system import hypervisor
from dre.system.model import RUNNING, System
from dre.system.spec import Spec


def size(system: System) -> int:
    """The size of the first disk in bytes, as the guest has it."""
    done = run(["qemu-img", "info", "-U", "--output=json", str(system.disk)], timeout=30)
    return int(json.loads(done.stdout)["virtual-size"])


def check(system: System, spec: Spec) -> Spec:
    """*spec* where its disk can have that size. A disk never becomes smaller: a file system would be cut off."""
    if system.disk.exists() and spec.disk_size is not None and spec.disk_size < (now := size(system)):
        raise UsageError(
            f"{system.name}: disk-size {spec.disk_size}: its disk has {now} bytes; it cannot become smaller"
        )
    return spec


def grow(system: System, wanted: int) -> None:
    """Have the disk be *wanted* bytes large; it may be already. Raises DreError and its children."""
    if size(system) >= wanted:
        return
    if system.state() not in RUNNING:
        run(["qemu-img", "resize", "-q", str(system.disk), str(wanted)], timeout=60)
        return
    import libvirt

    domain = system.need()
    with hypervisor.translated(f"{system.name}: disk-size"):
        first = next(definitions.disks(definitions.parse(domain.XMLDesc(0))), None)
        if first is None or first[1] != system.disk:
            raise DreError(f"{system.name}: its first disk is not dre-sys's")
        domain.blockResize(first[0], wanted, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
