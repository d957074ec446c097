# SPDX-License-Identifier: Apache-2.0
"""One guest: a QEMU process under TCG that boots a disk or goes on from a saved state, and what tests do with it.

A saved state is a directory: `disk.qcow2`, `ram` and `device`. The guest's memory is the file `ram` itself: while a
state is being made it is mapped shared, so that saving it writes only the devices; later guests map it privately, start
at once, and change nothing in it. Any number of guests may run from one state.
"""

import contextlib
import fcntl
import io
import os
import pathlib
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time

from qapi import Agent, Monitor

PLACE, PREFIX = pathlib.Path("/var/tmp"), "dre-vm-"
MEGABYTES = 2048
# The second line is for speed under TCG: each of them made processes start faster.
KERNEL = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet systemd.unified_cgroup_hierarchy=1"
KERNEL += " mitigations=off tsc=reliable clocksource=tsc init_on_alloc=0"
# Whatever is changed here no longer fits states saved before: it is part of their names.
HARDWARE = (
    *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
    *("-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64", "-smp", "2"),
    *("-m", f"{MEGABYTES}M", "-append", KERNEL),
    *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-net-pci,netdev=net,romfile="),
    *("-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto", "-device", "virtio-serial-pci"),
    *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0", "-device", "virtconsole,chardev=shell"),
)

# The guest slept while the world went on. Its random numbers are its own: QEMU gives each a new generation id.
# The name server is one that nobody has: no host's own settings may decide what a test sees.
AWAKE = """
set -eu
date --utc --set "@$NOW" >/dev/null
echo "$NAME" >/etc/hostname
hostname "$NAME"
echo 'nameserver 192.0.2.53' >/etc/resolv.conf
"""


def _sweep():
    """Remove what guests left whose owner was killed; where only a console is, it was kept on purpose."""
    for disk in PLACE.glob(f"{PREFIX}*/disk.qcow2"):
        # BlockingIOError: its owner is alive. FileNotFoundError: somebody else has swept.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), (disk.parent / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(disk.parent)


class Machine:
    """A running guest. Use it as a `with`-block, or call end()."""

    def __init__(self, kernel, disk, ram, *, share=False, incoming=False, peers=None):
        """Start QEMU with the *disk* and *ram* as they are; *kernel* is the directory of vmlinuz and initrd.img.

        *peers* are the two sockets, own and other, of a network of two guests.
        """
        _sweep()
        self.work = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
        self.lock = (self.work / "lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.console, self.disk, self.ram = self.work / "console", self.work / "disk.qcow2", ram
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", self.disk], check=True, timeout=60
        )
        net = "hubport,id=net,hubid=0"
        if peers:
            net = "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}".format(*peers)
        memory = f"memory-backend-file,id=ram,size={MEGABYTES}M,mem-path={ram},share={'on' if share else 'off'}"
        command = [
            # Nobody else ends it when the tests are killed. (It ends with the thread that started it.)
            *("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", *HARDWARE),
            *("-kernel", kernel / "vmlinuz", "-initrd", kernel / "initrd.img", "-object", memory),
            *("-drive", f"file={self.disk},if=none,id=disk,cache=unsafe,discard=unmap", "-netdev", net),
            *("-serial", f"file:{self.console}", "-chardev", self._socket("agent"), "-chardev", self._socket("shell")),
            *("-qmp", f"unix:{self.work}/monitor,server=on,wait=off"),
            *(("-incoming", "defer") if incoming else ()),
        ]
        self.monitor = self.agent = None
        with (self.work / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.monitor = Monitor(self.work / "monitor")
            self.agent = Agent(self.work / "agent")
        except BaseException as error:
            said = (self.work / "qemu.log").read_text(errors="replace")
            self.end()
            raise RuntimeError(f"QEMU did not start: {said}") from error

    def _socket(self, name):
        return f"socket,id={name},path={self.work}/{name},server=on,wait=off"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end()

    def call(self, command, timeout=120, stdin=b"", **variables):
        """Run an argv, or a text for sh, as root in the guest; CompletedProcess with text, whatever the status."""
        return self.agent.call(command, timeout, stdin, **variables)

    def ok(self, command, timeout=120, stdin=b"", **variables):
        """Like call, but the command must succeed; returns its stdout."""
        done = self.call(command, timeout, stdin, **variables)
        assert done.returncode == 0, f"{command}: exit status {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def push(self, path, target):
        """Copy a file or a whole directory of the host to *target* in the guest."""
        path = pathlib.Path(path)
        if not path.is_dir():
            self.agent.write(path.read_bytes(), target)
            return
        self.push_files(path, sorted(path.rglob("*")), target)

    def push_files(self, top, paths, target):
        """Copy *paths*, all below *top*, to the same places below *target*."""
        octets = io.BytesIO()
        with tarfile.open(fileobj=octets, mode="w:gz", compresslevel=3) as archive:
            for path in paths:
                if "__pycache__" not in path.parts:
                    archive.add(path, path.relative_to(top), recursive=False)
        self.ok(["mkdir", "-p", target])
        place = f"/run/push.{secrets.token_hex(4)}"
        self.agent.write(octets.getvalue(), place)
        self.ok(["tar", "-xzf", place, "--no-same-owner", "-C", target])
        self.ok(["rm", place])

    def pull(self, path, target):
        """Copy a file of the guest to *target* on the host."""
        pathlib.Path(target).write_bytes(self.agent.read(path))

    def save(self, place):
        """Stop the guest and make the directory *place* of disk, memory and devices; the guest is no more then.

        It was started with share=True and its `ram` lies in *place* already.
        """
        self.ok("sync")
        self.agent.close()
        self.monitor("stop")
        self._ignore_shared()
        self.monitor("migrate", uri=f"exec:cat >{place}/device")
        self.monitor.migrated(timeout=120)
        with contextlib.suppress(ConnectionError):
            self.monitor("quit")
        self.process.wait(60)
        shutil.move(self.disk, place / "disk.qcow2")

    def load(self, place):
        """Go on from the state in *place*, with the present time."""
        self._ignore_shared()
        self.monitor("migrate-incoming", uri=f"exec:cat {place}/device")
        self.monitor.migrated(timeout=120)
        self.monitor("cont")

    def awake(self, name):
        """Tell the guest who it is and what time it is."""
        self.agent.sync(timeout=120)
        self.ok(AWAKE, NOW=f"{time.time():.3f}", NAME=name)

    def _ignore_shared(self):
        capability = {"capability": "x-ignore-shared", "state": True}
        self.monitor("migrate-set-capabilities", capabilities=[capability])

    def remains(self):
        """The serial console and, if the agent still answers, the end of the journal."""
        text = self.console.read_text(errors="replace")[-4000:] if self.console.exists() else ""
        with contextlib.suppress(Exception):
            text += "\n--- journal ---\n" + self.call("journalctl -b --no-pager -n 80", timeout=20).stdout
        return text

    def end(self, keep=False):
        """End QEMU; with *keep* the console stays, else nothing does."""
        self.process.kill()
        self.process.wait(30)
        for wire in (self.agent, self.monitor, self.lock):
            if wire:
                wire.close()
        if keep:
            for path in self.work.iterdir():
                if path != self.console:
                    path.unlink()
        else:
            shutil.rmtree(self.work, ignore_errors=True)


def boot(kernel, disk, ram, timeout=600):
    """A freshly booted guest, all units started, whose memory is the new file *ram*."""
    with open(ram, "wb") as file:
        os.truncate(file.fileno(), MEGABYTES << 20)
    machine = Machine(kernel, disk, ram, share=True)
    try:
        machine.agent.sync(timeout)
        machine.ok(
            "systemctl is-system-running --wait >/dev/null || systemctl is-system-running | grep -qx degraded", 200
        )
    except BaseException:
        print(machine.remains())
        machine.end()
        raise
    return machine


def restore(kernel, state, name="guest", *, ram=None, peers=None):
    """A guest that goes on from *state*; with *ram*, a copy of its memory, it can be saved again."""
    machine = Machine(kernel, state / "disk.qcow2", ram or state / "ram", share=bool(ram), incoming=True, peers=peers)
    try:
        machine.load(state)
        machine.awake(name)
    except BaseException:
        print(machine.remains())
        machine.end()
        raise
    return machine
