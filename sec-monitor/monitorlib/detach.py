# SPDX-License-Identifier: Apache-2.0
"""Go on in the background by python-daemon (PEP 3143), for hosts without systemd.

It is called when all is ready, so that whoever starts a service is told by the exit code why it cannot run.
"""

import atexit
import contextlib
import os

from dre import files
from dre.conf import Conf
from dre.errors import DONE, FAILED


def detach(conf: Conf, name: str) -> None:
    """Become a daemon, whose process id stands in *name*.pid of the run directory until it ends.

    What it has opened stays open; what it says goes to the log *name*.log. The process that called ends here, with 0.
    Raises OSError.
    """
    from daemon import DaemonContext

    place = conf.core_run_dir / f"{name}.pid"
    conf.core_log_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    ends = os.pipe()
    if os.fork():
        os.close(ends[1])
        os._exit(FAILED if not os.read(ends[0], 1) else DONE)  # told once the file is there
    os.close(ends[0])
    with open(conf.core_log_dir / f"{name}.log", "ab", buffering=0) as log:
        DaemonContext(
            detach_process=True, files_preserve=_ours(), stdout=log, stderr=log, signal_map={}, umask=0o022
        ).open()
    files.write_atomic(place, f"{os.getpid()}\n")
    atexit.register(place.unlink, missing_ok=True)
    os.write(ends[1], b"1")
    os.close(ends[1])


def _ours() -> list[int]:
    """The descriptors that this process has opened. Others were inherited: somebody may wait for their end."""
    made = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the directory itself
            if not os.get_inheritable(number):
                made.append(number)
    return made
