# SPDX-License-Identifier: Apache-2.0
"""What the tests of apps stand on: a small tree, a bridge of their own, and a picture of what apps leave on a host.

The picture is taken from /proc and /sys, never by our own code, and holds only what can belong to the test's apps:
other programs on the same host may come and go meanwhile.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import once
from conftest import environment, program

LXC = pathlib.Path("/var/lib/lxc")
BRIDGE = "dret1"
SETTINGS = {"DRE_BRIDGE_IF": BRIDGE, "DRE_BRIDGE_ADDRESS": "10.231.101.1/24", "DRE_BRIDGE_NAT": "no"}
# A dnsmasq on this bridge would outlive the test's settings; who tests it has a bridge for that.
SETTINGS |= {"DRE_BRIDGE_DNS": "no", "DRE_BRIDGE_DHCP": "no"}
PROGRAMS = ("sh", "sleep", "cat", "ls", "dd", "true", "env", "mkdir", "rm", "sync", "kill", "ln", "stat", "mkfifo")


def make_tree(place, more=()):
    """A root file system of a few programs of the host and their libraries; merged /usr, as Debian has it."""
    made = once.directory("-".join(("tree", *more)), lambda path: _make_tree(path, more))
    pathlib.Path(place).parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "-T", made, place], check=True)
    return pathlib.Path(place)


def _make_tree(tree, more):
    for directory in ("usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root"):
        (tree / directory).mkdir(parents=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (tree / link).symlink_to(f"usr/{link}")
    for name in (*PROGRAMS, *more):
        path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin")
        shutil.copy(path, tree / "usr/bin" / name)
        for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True).stdout):
            target = tree / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(library, target)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tree / "etc/release").write_text("from the tree\n")


def tree_digest(tree):
    """One number for all names, modes, times and contents below *tree*."""
    total = hashlib.sha256()
    for directory, names, files in os.walk(tree):
        names.sort()
        for name in sorted(names + files):
            path = pathlib.Path(directory, name)
            status = path.lstat()
            total.update(f"{path} {status.st_mode} {status.st_mtime_ns} {status.st_size}\n".encode())
            if path.is_file() and not path.is_symlink():
                total.update(path.read_bytes())
    return total.hexdigest()


def picture(prefix):
    """What there is of apps whose names begin with *prefix*: mounts, links, control groups, entries of LXC's path."""
    mounts = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    ports = pathlib.Path("/sys/class/net", BRIDGE, "brif")
    links = {name for name in os.listdir("/sys/class/net") if re.fullmatch(r"dv[0-9a-f]{10}", name)}
    attached = set(os.listdir(ports)) if ports.exists() else set()
    loose = {name for name in links if not os.path.exists(f"/sys/class/net/{name}/master")}
    groups = [
        path
        for top in ("/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir()))
        for path in pathlib.Path(top).glob(f"lxc.*.{prefix}*")
    ]
    return {
        "mounts": sorted(mount for mount in mounts if f"/{prefix}" in mount),
        "links": sorted(attached | loose),
        "groups": sorted(map(str, groups)),
        "lxc": sorted(entry for entry in os.listdir(LXC) if prefix in entry),
    }


def kernel(pid, controller, name):
    """The stripped text of file *name* in the control group that process *pid* is in; on version 2 there is but one."""
    v2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if v2 or controller in controllers.split(","):
            return pathlib.Path("/sys/fs/cgroup", "" if v2 else controller, path.lstrip("/"), name).read_text().strip()
    raise AssertionError(f"process {pid} is in no group of {controller}")


def wait_for(condition, timeout=60.0):
    """Wait until *condition* holds; returns what it gave last."""
    deadline = time.monotonic() + timeout
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def alone():
    """Hold the host's apps for this test: two runs of the suite at once would use the same names and bridge."""
    with open("/run/lock/dre-test-apps", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Ground:
    """dre-app called as a user would, on the test's own settings; at the end all its apps are destroyed."""

    def __init__(self, run, settings, **keys):
        self.run = run
        self.config = settings(**{**SETTINGS, **keys})
        self.place = pathlib.Path(self.config).parent

    def __enter__(self):
        self.held = alone()
        self.held.__enter__()
        return self

    def __exit__(self, *error):
        try:
            self._destroy_all()
        finally:
            self.held.__exit__(None, None, None)

    def _destroy_all(self):
        for name in (line.split()[0] for line in self("list").splitlines()):
            self("destroy", "--force", name)

    def __call__(self, *argv, code=0, stdin=b""):
        """stdout of dre-app, which must end with *code*; with another code than 0, its words on stderr."""
        done = self.run("dre-app", "--config", self.config, *argv, stdin=stdin)
        assert done.returncode == code, f"{argv}: {done.returncode}: {done.stderr.decode()}"
        return (done.stderr if code else done.stdout).decode().removesuffix("\n")

    def killed(self, *argv, longest):
        """Whether dre-app was still at work when it was killed at a random moment of *longest* seconds."""
        words = [program("dre-app"), "--config", self.config, *argv]
        with subprocess.Popen(words, env=environment()) as victim:
            with contextlib.suppress(subprocess.TimeoutExpired):
                victim.wait(random.uniform(0, longest))
            victim.send_signal(signal.SIGKILL)
        return victim.returncode == -signal.SIGKILL

    def events(self):
        """The types of the events emitted so far; nobody reads them, so they are spooled."""
        spool = self.place / "state/spool/event/emitted.jsonl"
        return re.findall(r'"type":"([^"]*)"', spool.read_text()) if spool.exists() else []
