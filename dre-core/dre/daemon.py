# SPDX-License-Identifier: Apache-2.0
"""Programs of others that go on as daemons after they were started: found again and ended.

Each is known by a pid file that it was told to write, and is only taken for itself when its command line names that
file. It supervises nothing: whoever needs the daemon asks again whether it runs.
"""

import contextlib
import os
import select
import signal
from pathlib import Path

from dre.errors import DreError

END_WAIT = 5.0  # seconds from SIGTERM to the end


def find(pid_file: Path, lost: bool = False) -> int | None:
    """The process that was told to write *pid_file*, or None; with *lost*, also one that had no time to write it."""
    try:
        pid = int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        pid = 0
    if _owns(pid, pid_file):
        return pid
    if lost:
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and _owns(int(entry), pid_file):
                return int(entry)
    return None


def command(pid: int) -> list[str]:
    """The command line of process *pid*; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def end(pid_file: Path, lost: bool = False) -> None:
    """End the process that was told to write *pid_file*, if it runs. Raises DreError when it does not end."""
    pid = find(pid_file, lost)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
                if not select.select([fd], [], [], END_WAIT)[0]:
                    raise DreError(f"process {pid} ({command(pid)[:1]}) does not end")
            finally:
                os.close(fd)
    pid_file.unlink(missing_ok=True)


def _owns(pid: int, pid_file: Path) -> bool:
    return pid > 0 and any(str(pid_file) in word for word in command(pid))
