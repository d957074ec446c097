# SPDX-License-Identifier: Apache-2.0
"""The processes of this host, read from /proc: whose children they are, what they use, which belong to an app."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One that lives."""

    pid: int
    parent: int
    began: int  # ticks since boot
    name: str  # its short one
    argv: tuple[str, ...]

    @property
    def words(self) -> str:
        """Name and command line, to look for words in."""
        return f"({self.name}) {' '.join(self.argv)}"


Table = Mapping[int, Process]


def table() -> Table:
    """All that live now."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):
            head, _, tail = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")
            fields = tail.split()
            if fields[0] in "ZX":
                continue
            argv = Path("/proc", entry, "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            found[int(entry)] = Process(
                int(entry), int(fields[1]), int(fields[19]), head.partition("(")[2], tuple(argv)
            )
    return found


def family(all_: Table, pid: int) -> list[Process]:
    """Process *pid* and all below it."""
    found, below = [], [all_[pid]] if pid in all_ else []
    while below:
        one = below.pop()
        found.append(one)
        below += [other for other in all_.values() if other.parent == one.pid]
    return found


def given(word: str) -> list[Process]:
    """Those with *word* as one of their arguments."""
    return [one for one in table().values() if word in one.argv]


def monitor(all_: Table, app: str) -> Process | None:
    """LXC's monitor of an app."""
    title = f"[lxc monitor] /var/lib/lxc {app}"
    return next((one for one in all_.values() if one.words.rstrip().endswith(f" {title}")), None)


def inside(all_: Table, app: str) -> list[Process]:
    """The processes of an app, its first one first."""
    above = monitor(all_, app)
    return [one for one in family(all_, above.pid) if one is not above] if above else []


def of_apps(all_: Table, apps: Iterable[str]) -> set[int]:
    """The monitors of *apps* and all below them."""
    above = [monitor(all_, app) for app in apps]
    return {below.pid for one in above if one for below in family(all_, one.pid)}


def memory(pid: int) -> int | None:
    """Anonymous memory in octets: what a leak makes grow. None when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return None


def descriptors(pid: int) -> int | None:
    """How many files it has open."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return None
