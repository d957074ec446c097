# SPDX-License-Identifier: Apache-2.0
"""A real rsyslogd of a test's own, with a socket to log to, whose messages go to a program of ours by omprog."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from programs import environment
from unpacked import unpacked


def rsyslogd():
    """The command of rsyslogd: the host's, or the one from its package."""
    if os.access("/usr/sbin/rsyslogd", os.X_OK):
        return ["/usr/sbin/rsyslogd"]
    place = unpacked("rsyslog", "rsyslog", "libestr0", "libfastjson4")
    (modules,) = place.glob("usr/lib/*/rsyslog")
    return ["env", f"LD_LIBRARY_PATH={modules.parent}", place / "usr/sbin/rsyslogd", f"-M{modules}"]


def wait(what, seconds=60):
    """Until *what* returns something true, which is returned."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


class Syslog:
    """rsyslogd with the configuration *text*, in which *argv* stands instead of the command line *binary*."""

    def __init__(self, command, text, binary, argv):
        self.path, self.command = pathlib.Path(tempfile.mkdtemp(prefix="dre-syslog-")), command
        self.path.chmod(0o755)
        self.socket = self.path / "log"
        put = self.path / "put"  # omprog passes no environment on
        lines = "".join(f"export {key}='{value}'\n" for key, value in environment().items() if key.startswith("PY"))
        words = " ".join(map(str, argv))
        put.write_text(f"#!/bin/sh\n{lines}echo $$ >>{self.path}/pids\nexec {words} 2>>{self.path}/said\n")
        put.chmod(0o755)
        assert binary in text
        text = text.replace(binary, str(put)).replace('interval="60"', 'interval="1"')
        text = text.replace('resumeInterval="5"', 'resumeInterval="1"')
        (self.path / "rsyslog.conf").write_text(
            f'global(workDirectory="{self.path}")\nmodule(load="imuxsock" SysSock.Use="off")\n{text}'
            f'input(type="imuxsock" Socket="{self.socket}" RateLimit.Interval="0")\n'
        )
        self.start()

    def start(self):
        self.daemon = subprocess.Popen(
            [*self.command, "-n", "-f", self.path / "rsyslog.conf", "-i", self.path / "pid"],
            stderr=subprocess.DEVNULL,
        )
        wait(self.socket.exists)

    def log(self, *texts):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(self.socket))
            for text in texts:
                sender.send(b"<14>Nov 26 10:00:00 test: " + text)

    def unread(self):
        """The octets that wait in the socket."""
        done = subprocess.run(["ss", "-xaH", "src", self.socket], capture_output=True, check=True)
        (line,) = done.stdout.splitlines()
        return int(line.split()[2])

    def pids(self):
        """Of the programs that it started, the last one last."""
        return [int(word) for word in (self.path / "pids").read_text().split()] if (self.path / "pids").exists() else []

    def kill(self):
        """Kill the program."""
        os.kill(self.pids()[-1], signal.SIGKILL)

    def stop(self):
        wait(lambda: self.unread() == 0)  # these it never had
        self.daemon.terminate()
        assert self.daemon.wait(60) is not None

    def remove(self):
        self.daemon.kill()
        self.daemon.wait()
        for pid in self.pids():  # each is ours: it wrote its number down itself
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if b"--omprog" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.path, ignore_errors=True)
