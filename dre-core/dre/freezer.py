# SPDX-License-Identifier: Apache-2.0
"""Whether the processes of a container are held: which file of its control group tells it, version 1 and 2 alike.

Apart from dre.cgroup for who wants to know but this of many. Loads nothing that is slow.
"""

import errno
import os

from dre.errors import DreError


def group(path: str) -> str:
    """The container's own group in *path*: an init such as systemd moves itself further down."""
    parts = path.strip("/").split("/")
    for index, part in enumerate(parts):
        if part.startswith("lxc.payload."):
            return "/".join(parts[: index + 1])
    return "/".join(parts)


def file(membership: str, unified: bool) -> str:
    """The file, from the root of control groups on; *membership* is the text of /proc/PID/cgroup of its init.

    Raises OSError when the process is gone, DreError where the kernel has no such group.
    """
    _, known, rest = f"\n{membership}".partition("\n0::/" if unified else ":freezer:/")
    if not known:
        raise DreError("the kernel has no freezer control group")
    path = rest.partition("\n")[0]
    if unified:
        return f"{group(path)}/cgroup.events"
    if not path:  # of a process that ends the kernel says so, and no app is in the root group
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return f"freezer/{group(path)}/freezer.state"


def held(text: str, unified: bool) -> bool:
    """What the *text* of that file says."""
    return "frozen 1\n" in text if unified else not text.startswith("THAWED")
