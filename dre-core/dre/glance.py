# SPDX-License-Identifier: Apache-2.0
"""Apps at a glance: their names, the state of each, its address and its init, from few files and nothing slow to load.

What this cannot tell, dre.app can: it asks LXC, and reads our own files whatever they look like. Here they are read as
dre.app writes them.
"""

from __future__ import annotations

import os

from dre import freezer, units
from dre.errors import DreError

TYPE_CHECKING = False  # as of the module typing, which is slow to load
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from dre.conf import Conf

GROUPS = "/sys/fs/cgroup"
SOCKETS = "/proc/net/unix"  # the names of all sockets of this host, those of LXC's monitors among them
UNKNOWN = "unknown"  # no state of ours
BLOCK = 1 << 16


def names(conf: Conf) -> list[str]:
    """All apps, partial ones included, in order."""
    try:
        return sorted(
            entry for entry in os.listdir(f"{conf.place('core_state_dir')}/app/state") if units.is_name(entry)
        )
    except FileNotFoundError:
        return []


def rows(conf: Conf) -> Iterator[dict[str, Any]]:
    """What a person's list shows of each app."""
    homes, containers = f"{conf.place('core_state_dir')}/app/state", conf.place("app_lxc_path")
    notes = f"{conf.place('core_run_dir')}/app"
    host = Host()
    for name in names(conf):
        row = _row(name, f"{homes}/{name}", f"{containers}/{name}", f"{notes}/{name}", host)
        if row is None:
            from dre.app import App  # the slow way

            row = App(conf, name).brief(host)
        yield row


class Host:
    """What is the same for all apps that are looked at, found once and only when it is wanted."""

    def __init__(self) -> None:
        self._sockets: str | None = None
        self._unified: bool | None = None
        self._groups: tuple[int, str] = (0, "")  # of the process that was asked for last

    def serves(self, directory: str) -> bool:
        """Whether a monitor of LXC serves the container in *directory*: cheaper than to ask it."""
        name = f"{directory}/command"
        if self._sockets is None:
            with open(SOCKETS) as file:
                self._sockets = file.read()
        # LXC replaces a name that would not fit into a socket's address by a number.
        return len(name) > 100 or f"@{name}\n" in self._sockets

    def groups(self, pid: int) -> str:
        """The control groups of process *pid*, as the kernel has them. Raises OSError when it is gone."""
        if self._groups[0] != pid:
            self._groups = pid, text(f"/proc/{pid}/cgroup")
        return self._groups[1]

    def holds(self, pid: int) -> bool:
        """Whether the container of process *pid* is frozen. Raises OSError when it is gone, DreError if none can be."""
        if self._unified is None:
            self._unified = there(f"{GROUPS}/cgroup.controllers")
        path = freezer.file(self.groups(pid), self._unified)
        return freezer.held(text(f"{GROUPS}/{path}"), self._unified)


def state(home: str, directory: str, init: Sequence[int] | None, wanted: bool, host: Host) -> tuple[str, int | None]:
    """The state of an app, and its init where that is known; UNKNOWN when only LXC can tell it.

    *home* is our directory of it, *directory* LXC's; *init* is what `start` noted of its first process and *wanted*
    that it was not stopped since.
    """
    pid = alive(init)
    if pid is not None:
        try:
            return "frozen" if host.holds(pid) else "running", pid
        except (OSError, DreError):
            pass  # it ended while we looked; a kernel without that group
    if there(f"{directory}/config") and host.serves(directory):
        return UNKNOWN, None
    return at_rest(home, directory, wanted), None


def at_rest(home: str, directory: str, wanted: bool) -> str:
    """The state of an app that no monitor serves."""
    whole = there(f"{home}/app.json") and there(f"{directory}/config") and not there(f"{home}/intent.json")
    return "partial" if not whole else "crashed" if wanted else "stopped"


def alive(noted: Sequence[int] | None) -> int | None:
    """The pid of a process noted with its start time, when it is still that process."""
    return noted[0] if noted and started(noted[0]) == noted[1] else None


def started(pid: int) -> int | None:
    """When process *pid* began, in clock ticks since boot; with the pid this identifies it. None when it is gone."""
    try:
        words = text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if words[0] in "ZX" else int(words[19])


def text(path: str) -> str:
    """As `octets`; what is not UTF-8 is replaced."""
    return octets(path).decode(errors="replace")


def octets(path: str) -> bytes:
    """What is in a file of the disk, or in one of the kernel's that it tells at once.

    Not through Path or a stream: a list of many apps reads hundreds.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        blocks = [os.read(fd, BLOCK)]
        while len(blocks[-1]) == BLOCK:
            blocks.append(os.read(fd, BLOCK))
    finally:
        os.close(fd)
    return b"".join(blocks)


def _row(name: str, home: str, directory: str, notes: str, host: Host) -> dict[str, Any] | None:
    """The row of an app, whose record and lease lie at *notes*; None when it takes more to tell."""
    try:
        init, wanted = _record(f"{notes}.json")
        found, pid = state(home, directory, init, wanted, host)
        address = _address(home, notes)
    except ValueError:
        return None
    if found == UNKNOWN:
        return None
    return {"name": name, "state": found, "ip": [address.partition("/")[0]] if address else [], "pid": pid}


def _record(path: str) -> tuple[list[int] | None, bool]:
    """What was noted of the last start: its init, and whether it is wanted. Raises ValueError if it looks unlike it."""
    try:
        record = text(path)
    except FileNotFoundError:
        return None, False
    # In a string these quotes would have backslashes.
    _, known, rest = record.partition('"init": [')
    if not known and '"init"' in record:
        raise ValueError
    init = [int(word) for word in rest.partition("]")[0].split(", ")] if known else None
    return init, '"wanted": true' in record


def _address(home: str, notes: str) -> str | None:
    """The address with its length, as in App.address. Raises ValueError where app.json looks otherwise."""
    try:
        _, known, rest = text(f"{home}/app.json").partition('\n "ip": ')  # a string holds no newline
        word = rest.partition("\n")[0].rstrip(",")
        if word == "null":
            return None
        if not known or "\\" in word or len(word) < 2 or word[0] + word[-1] != '""':
            raise ValueError
        return word[1:-1] if word != '"dhcp"' else text(f"{notes}.lease").strip()
    except FileNotFoundError:
        return None


def there(path: str) -> bool:
    """Whether there is something at *path*: quicker than Path."""
    return os.access(path, os.F_OK)
