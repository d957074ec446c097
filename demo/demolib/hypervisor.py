# SPDX-License-Identifier: Apache-2.0
"""The libvirt that scenario (4) stands on: the host's, or where none answers and no init keeps one, one of our own.

What our own brings up by itself, such as libvirt's default network, goes with it; what was there before stays.
"""

import shutil
from pathlib import Path

from demolib.places import HOME
from demolib.programs import Failed, call, dre, end, running, start, status, wait

DAEMONS = ("libvirtd", "virtlogd")  # in the order in which they end
LINKS = HOME / "links"  # the names of the network interfaces there were before
INITS = ("/run/systemd/system", "/etc/init.d/libvirtd")  # where one of these is, it is for them to start it


def need() -> None:
    """Have a libvirt that answers. Raises Failed, with the command to type, where there is none."""
    if _answers() or any(Path(path).exists() for path in INITS) or not all(map(shutil.which, DAEMONS)):
        dre("dre-sys", "list")  # says what would help
        return
    LINKS.write_text("\n".join(_links()))
    for name in reversed(DAEMONS):
        start(name, name)
    wait(_answers, 30, "libvirtd")


def leave() -> None:
    """End what need() has started, if it has. Raises Failed."""
    if DAEMONS[0] in running() and _answers():
        before = set(LINKS.read_text().split("\n"))
        for name in call("virsh", "net-list", "--name").decode().split():
            if set(call("virsh", "net-info", name).decode().split()) & (_links() - before):  # its bridge is new
                call("virsh", "net-destroy", name)
    for name in DAEMONS:
        end(name)


def _answers() -> bool:
    try:
        return status("virsh", "--connect", "qemu:///system", "version").returncode == 0
    except Failed:  # there is no virsh
        return False


def _links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}
