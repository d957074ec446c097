# SPDX-License-Identifier: Apache-2.0
"""What lies about on this host that could be ours, so that what was there before and what is there after compare.

Other services may come and go on the host meanwhile; what cannot be told by name is looked at on our own ground only.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from demolib.places import ADDRESSES, BRIDGE, CONF, HOME, JOBS, RUN
from demolib.programs import call

from soaklib import ground, processes
from soaklib.faults import COPY

House = dict[str, list[str]]
PLACES = {str(RUN / name) for name in ("actions", "events", "ordered", "script")}  # of the monitor; they stay there
NAMES = re.compile("|".join(map(re.escape, (*ADDRESSES, *JOBS, COPY, BRIDGE, ground.NETWORK, str(HOME), "dscript-"))))
LXC = Path("/var/lib/lxc")
ELSEWHERE = {"user", "libvirt", "systemd", "dbus", "udev", "dre-vm"}  # below /run: nothing of ours is there


def look() -> House:
    """Everything by kind, each once for each time it is there."""
    return {
        "control groups": sorted(path for path in _directories("/sys/fs/cgroup") if NAMES.search(path)),
        # By what, where and which kind: an overlay's options say whether its delta is a new one.
        "mounts": sorted(" ".join(line.split()[:3]) for line in _lines("/proc/self/mounts") if NAMES.search(line)),
        "links": sorted(_links()),
        "networks": _ours(Path("/run/netns")),
        "FIFOs": sorted(path for top in ("/run", *_ours(LXC, Path("/tmp"), Path("/var/tmp"))) for path in _fifos(top)),
        "files of ours": _ours(LXC, RUN / "app", Path("/tmp"), Path("/var/tmp")),
        "loop devices": sorted(_disks()),
        "firewall tables": sorted(filter(NAMES.search, call("nft", "list", "tables").decode().splitlines())),
        "shared memory": sorted(path.name for path in ground.SHARED.glob("*faketime_*")),
        "processes": [re.sub(r"\d+", "0", one.words) for one in processes.given(str(CONF))],
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _directories(top: str) -> Iterator[str]:
    for place, _, _ in os.walk(top):
        yield place


def _ours(*places: Path) -> list[str]:
    return sorted(
        str(path) for place in places if place.is_dir() for path in place.iterdir() if NAMES.search(path.name)
    )


def _links() -> Iterator[str]:
    """The ports of our bridge, the ends of links into networks that it has or had, and the bridge."""
    for path in Path("/sys/class/net").iterdir():
        if path.name in (BRIDGE, ground.OUTSIDE) or path.name.startswith("dv"):
            yield path.name


def _fifos(top: str) -> Iterator[str]:
    for place, below, names in os.walk(top):
        below[:] = [name for name in below if name not in ELSEWHERE]
        for name in names:
            path = Path(place, name)
            try:
                if str(path) not in PLACES and stat.S_ISFIFO(path.lstat().st_mode):
                    yield str(path)
            except OSError:
                continue


def _disks() -> Iterator[str]:
    """Those that nobody takes away; one with `autoclear` goes with its last mount, in whatever namespace that is."""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing, clears = path.read_text().strip(), path.with_name("autoclear").read_text().strip()
        except OSError:
            continue
        if NAMES.search(backing) and clears != "1":
            yield backing
