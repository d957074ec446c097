# SPDX-License-Identifier: Apache-2.0
"""What tests of CRIU stand on: an app that counts into an open file, keeps a mark in memory, and answers by TCP.

DRE_TEST_CRIU is a directory with a criu to use instead of the host's.
"""

import os
import shutil
import socket
import subprocess
import time

import pytest
from app_ground import LXC, Ground

PATH = ":".join(filter(None, (os.environ.get("DRE_TEST_CRIU"), "/usr/sbin:/usr/bin:/sbin:/bin")))
PROGRAM = """
import os, socket, threading, time
server = socket.create_server(("0.0.0.0", 8080))
lines = open("/lines", "w+")
held = open("/held/file") if os.path.exists("/held/file") else None
count, mark = 0, "none"
counting = threading.Lock()
def work():
    global count
    while True:
        with counting:
            count += 1
            lines.write(f"{count}\\n")
            lines.flush()
        time.sleep(0.02)
threading.Thread(target=work, daemon=True).start()
print("begun", flush=True)
while True:
    peer, _ = server.accept()
    with peer:
        word = peer.recv(100).decode()
        mark = mark if word == "?" else word
        with counting:
            peer.sendall(f"{os.getpid()} {mark} {count} {lines.tell()}".encode())
"""


def need_criu():
    """Skip, with criu's own reason, where it cannot work."""
    for name in ("criu", "iptables-restore", "ip6tables-restore"):
        if shutil.which(name, path=PATH) is None:
            pytest.skip(f"{name} is not installed")
    done = subprocess.run(["criu", "check"], capture_output=True, text=True, env={"PATH": PATH})
    if done.returncode != 0:
        pytest.skip(f"criu check: {(done.stderr + done.stdout).strip().splitlines()[0]}")


def with_path(run, path=PATH):
    """run, with another PATH, and with the patience that CRIU and two hosts in one emulated guest need."""
    return lambda *argv, **keys: run(*argv, prefix=("env", f"PATH={path}"), **{"timeout": 300, **keys})


class Counting(Ground):
    """A Ground with one counting app."""

    def __init__(self, run, settings, name, address, *options, path=PATH, **keys):
        super().__init__(with_path(run, path), settings, **keys)
        self.name, self.address, self.options = name, address, options

    def __enter__(self):
        super().__enter__()
        try:
            self("create", self.name, "--base", "host", "--ip", f"{self.address}/24", *self.options, "--",
                 "/usr/bin/python3", "/counter.py")  # fmt: skip
            (self.delta / "counter.py").write_text(PROGRAM)
            self("start", self.name)
            self.ask()
        except BaseException as error:
            self.__exit__(error)
            raise
        return self

    @property
    def delta(self):
        return LXC / self.name / "delta"

    @property
    def checkpoints(self):
        return self.place / "state/app/state" / self.name / "checkpoint"

    def ask(self, word="?"):
        """(pid, mark, count, offset) as the program in the app tells over a new connection; *word* becomes the mark."""
        with self._connected() as peer:
            peer.sendall(word.encode())
            pid, mark, count, offset = peer.recv(100).decode().split()
        return int(pid), mark, int(count), int(offset)

    def _connected(self):
        for _ in range(100):
            try:
                return socket.create_connection((self.address, 8080), timeout=5)
            except ConnectionRefusedError:
                time.sleep(0.05)
        raise AssertionError(f"nobody listens on {self.address}")

    def mark(self):
        """The mark that the program has in memory."""
        return self.ask()[1]
