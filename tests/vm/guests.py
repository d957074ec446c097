# SPDX-License-Identifier: Apache-2.0
"""Guests of the VM ring: systems of dre-sys on a host of their own, each with a checkpoint that every test begins at.

The host is namespaces in which all that dre-sys and libvirt keep lies on a layer above what saved.py made, at the same
paths. So any number of them run from one saved state and change nothing in it; all of one ends with its first process.
"""

import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/system")]
from system_ground import Host  # noqa: E402

NAMES, NETWORK = ("guest1", "guest2"), "10.99.0"
ALL = os.environ.get("DRE_VM_ALL") == "1"  # all tests, as before a release
WANTED = NAMES if ALL else NAMES[:1]  # with our packages and a checkpoint; to install them takes minutes
HARDWARE = ("--memory", "2G", "--vcpus", "2")  # of each; one warm state fits them all
READY = "ready"  # the checkpoint
PLACE = pathlib.Path("/var/tmp")
HERE = pathlib.Path("/run/dre-vm")  # where hosts have their files, whichever of the layers they are on
ENVIRONMENT = {"USER": "root", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}

# It slept while the world went on. The name server is one that nobody has: no host's settings may decide what it sees.
AWAKE = """
date --utc --set "@$0" >/dev/null
echo 'nameserver 192.0.2.53' >/etc/resolv.conf
"""


class Ground(Host):
    """A host of guests that goes on from *layers*, the newest first, with the images in *images*."""

    unshared, options = ("--mount", "--net", "--pid"), ("--fork", "--kill-child", "--mount-proc")
    prefix, seen = "dre-vm-", HERE

    def __init__(self, images, *layers, parent=PLACE, limits=False):
        """With *limits* its systems are in control groups, whose names are those of the whole machine."""
        self.images, self.layers, self.parent, self.limits = images, layers, parent, limits
        self.guests = {name: Guest(self, name) for name in NAMES}
        _sweep()
        super().__init__()

    def _prepare(self):
        super()._prepare()
        self.lock = os.open(self.place, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def settings(self):
        return {
            **super().settings(),
            "DRE_BRIDGE_IF": "br0",
            "DRE_BRIDGE_ADDRESS": f"{NETWORK}.254/24",
            "DRE_BRIDGE_DNS": "no",
            "DRE_BRIDGE_DHCP": "no",
            "DRE_SYS_DEFAULT_GATEWAY": f"{NETWORK}.254",
        }

    def mounts(self):
        work, below = _work(self.place), self.layers or (_work(self.place) / "nothing",)
        for path in (HERE, work / "work", *below, self.place / "state/base"):
            path.mkdir(parents=True, exist_ok=True)
        # volatile: nothing waits for the disk.
        options = f"lowerdir={':'.join(map(str, below))},upperdir={self.place},workdir={work}/work,volatile"
        return [
            "ip link set lo up",
            f"mount -t overlay -o {options} none {HERE}",
            f"mount --bind {self.images} {HERE}/state/base",
            *("mount --rbind /sys/fs/cgroup /mnt", "umount -R -l /sys", "mount -t sysfs none /sys"),  # of its network
            "mount --rbind /mnt /sys/fs/cgroup",
        ]

    def apart(self):
        if not self.limits:
            with (self.place / "host/etc-libvirt/qemu.conf").open("a") as stream:
                stream.write("cgroup_controllers = []\n")
        return []

    def first_pid(self):
        """That of the sleep below unshare, for a process does not enter its own namespace of pids."""
        return int(pathlib.Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text())

    def keep(self, place):
        """End, and make what has become of it the layer *place*."""
        for name in self.guests:
            self.dre("stop", "--timeout", "0", name)
        self._kill()
        for name in ("run", "host/run-libvirt"):  # of this boot of the host alone
            shutil.rmtree(self.place / name, ignore_errors=True)
        subprocess.run(["sync", "-f", self.place], check=True, timeout=300)
        self.place.rename(place)

    def end(self):
        self._kill()
        for path in (_work(self.place), self.place):
            shutil.rmtree(path, ignore_errors=True)
        os.close(self.lock)

    def _kill(self):
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()


def _work(place):
    """Where overlayfs works for the layer *place*."""
    return place.with_name(f"{place.name}.work")


def _sweep():
    """Remove what hosts left whose owner was killed."""
    for conf in PLACE.glob(f"{Ground.prefix}*/dre.conf"):
        # BlockingIOError: its owner is alive. FileNotFoundError: somebody else has swept.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = os.open(conf.parent, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(_work(conf.parent), ignore_errors=True)
                shutil.rmtree(conf.parent)
            finally:
                os.close(lock)


class Guest:
    """One system; what tests do with it they do by dre-sys."""

    def __init__(self, host, name):
        self.host, self.name, self.number = host, name, NAMES.index(name) + 1
        self.shared: object = None  # by whom it is shared since it was restarted

    def restart(self):
        """Let it go on from its checkpoint, with the present time."""
        self.stop()  # else it would be saved first
        self.shared = None
        self.host.dre("checkpoint", "restart", self.name, READY)
        self.ok(["sh", "-euc", AWAKE, f"{time.time():.3f}"])

    def stop(self):
        """End it, as a power failure does."""
        self.host.dre("stop", "--timeout", "0", self.name)

    def call(self, command, timeout=120, stdin=b"", **variables):
        """Run an argv, or a text for sh, as root in the guest; CompletedProcess with text, whatever the status.

        Raises subprocess.TimeoutExpired when it has not ended in *timeout* seconds; it was killed then.
        """
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        env = [word for key, text in (ENVIRONMENT | variables).items() for word in ("--env", f"{key}={text}")]
        begun = time.monotonic()
        # The guest kills it, so that what it printed is seen.
        words = ["exec", *env, self.name, "--", "timeout", "--kill-after=5", timeout, *argv]
        done = self.host.dre(*words, check=False, timeout=timeout + 60, stdin=stdin)
        if done.returncode in (124, 137) and time.monotonic() - begun >= timeout:
            raise subprocess.TimeoutExpired(argv, timeout, done.stdout, done.stderr)
        return done

    def ok(self, command, timeout=120, stdin=b"", **variables):
        """Like call, but the command must succeed; returns its stdout."""
        done = self.call(command, timeout, stdin, **variables)
        assert done.returncode == 0, f"{command}: exit status {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def push(self, path, target):
        """Copy a file or a whole directory of the host to *target* in the guest."""
        path = pathlib.Path(path)
        if path.is_dir():
            self.push_files(path, sorted(path.rglob("*")), target)
        else:
            self.host.dre("push", self.name, path, target)

    def push_files(self, top, paths, target):
        """Copy *paths*, all below *top*, to the same places below *target*."""
        octets = io.BytesIO()
        with tarfile.open(fileobj=octets, mode="w:gz", compresslevel=3) as archive:
            for path in paths:
                if "__pycache__" not in path.parts:
                    archive.add(path, path.relative_to(top), recursive=False)
        script = 'mkdir -p "$0" && tar -xzf - --no-same-owner -C "$0"'
        self.ok(["sh", "-c", script, target], stdin=octets.getvalue())

    def pull(self, path, target):
        """Copy a file of the guest to *target* on the host."""
        self.host.dre("pull", self.name, path, target)

    def remains(self):
        """The serial console and, if the agent still answers, the end of the journal."""
        text = self.host.dre("log", "--lines", "60", self.name, check=False).stdout
        with contextlib.suppress(Exception):
            text += "\n--- journal ---\n" + self.call("journalctl -b --no-pager -n 80", timeout=20).stdout
        return text
