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


def find(program: str, pid_file: Path, lost: str = "") -> int | None:
    """The *program* that was told to write *pid_file*, or None.

    With *lost*, also one in this network whose file ends so: it had no time to write it, or its directory is gone.
    """
    try:
        pid = int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        pid = 0
    if _is(pid, program, str(pid_file)):
        return pid
    for entry in os.listdir("/proc") if lost else ():
        if entry.isdecimal() and _is(int(entry), program, lost) and _network(int(entry)) == _network(os.getpid()):
            return int(entry)
    return None


def command(pid: int) -> list[str]:
    """The command line of process *pid*; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def end(program: str, pid_file: Path, lost: str = "") -> None:
    """End the *program* that was told to write *pid_file*, if it runs. Raises DreError when it does not end."""
    while (pid := find(program, pid_file, lost)) is not None:
        _end(pid, program, lost or str(pid_file))
    pid_file.unlink(missing_ok=True)


def _end(pid: int, program: str, file: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if not _is(pid, program, file):
                return  # it has ended, and the number was given away, before we held it
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            if not select.select([fd], [], [], END_WAIT)[0]:
                raise DreError(f"{program} (process {pid}) does not end")
        finally:
            os.close(fd)


def settle(program: str, pid_file: Path) -> None:
    """Take what has just been started out of the control group of whoever called us: it shall not end with that.

    Only where systemd watches groups; where the top group takes no process, as in a container, it stays where it is.
    """
    pid = find(program, pid_file)
    for place in ("", "unified", "systemd"):
        group = Path("/sys/fs/cgroup", place, "cgroup.procs")
        if pid is not None and group.exists():
            with contextlib.suppress(OSError):
                group.write_text(str(pid))


def _is(pid: int, program: str, file: str) -> bool:
    words = command(pid) if pid > 0 else []
    # Not just anything that names the file: somebody may be looking at it.
    return bool(words) and Path(words[0]).name == program and any(word.endswith(file) for word in words)


def _network(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""  # it has ended
