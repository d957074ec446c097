# SPDX-License-Identifier: Apache-2.0
"""Ground for tests of systems: a libvirt of their own in a mount namespace, a bridge, and an image that boots.

The host's own libvirt, its domains and its files are not touched. /dev/kvm is hidden there: where it is only emulated,
libvirt asks at every definition what KVM can do, for a minute and a half.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest
from conftest import environment, program

PRIVATE = ("/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
BRIDGE, NETWORK = "dret7", "10.231.107"


def need(*programs):
    """Skip, saying why, where a program is missing."""
    for name in programs:
        if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{name} is not installed")


class Host:
    """A host of systems. Use it as a `with`-block; `dre` and `virsh` run on it."""

    def __init__(self):
        need("libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "nsenter")
        if os.geteuid() != 0:
            pytest.skip("needs root")
        # Not below /tmp of pytest's, through which QEMU's user could not pass.
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="dre-sys-", dir="/var/tmp"))
        self.place.chmod(0o755)
        self.conf = self.place / "dre.conf"
        keys = {
            "DRE_CORE_STATE_DIR": self.place / "state",
            "DRE_CORE_RUN_DIR": self.place / "run",
            "DRE_CORE_ETC_DIR": self.place / "etc",
            "DRE_CORE_LOG_DIR": self.place / "log",
            "DRE_MONITOR_SINK": self.place / "run/events.sock",
            "DRE_BRIDGE_IF": BRIDGE,
            "DRE_BRIDGE_ADDRESS": f"{NETWORK}.1/24",
            "DRE_BRIDGE_NAT": "no",
            "DRE_SYS_DEFAULT_GATEWAY": f"{NETWORK}.1",
            "DRE_SYS_VIRT": "tcg",
        }
        self.conf.write_text("".join(f'{key}="{value}"\n' for key, value in keys.items()))
        self.conf.chmod(0o644)
        self.holder = None
        try:
            self._begin()
        except BaseException:
            self.end()
            raise

    def _begin(self):
        binds = []
        for path in PRIVATE:
            mine = self.place / "host" / path.strip("/").replace("/", "-")
            mine.mkdir(parents=True)
            os.makedirs(path, exist_ok=True)
            binds.append(f"mount --bind {mine} {path}")
        (self.place / "host/etc-libvirt/qemu.conf").write_text(
            'stdio_handler = "file"\nsecurity_driver = "none"\nnamespaces = []\n'
        )
        hidden = self.place / "host/kvm"
        hidden.touch(mode=0o600)  # QEMU's user may not open it: then libvirt does not ask again at every definition
        hide = f"[ ! -e /dev/kvm ] || mount --bind {hidden} /dev/kvm"
        script = "; ".join(["set -e", "mount --make-rprivate /", *binds, hide, "echo ready", "exec sleep 3600"])
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", script]
        self.holder = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment())
        assert self.holder.stdout.readline() == b"ready\n"
        self.inside = ("nsenter", "-t", str(self.holder.pid), "-m", "--")
        self.call("libvirtd", "-d", "--pid-file", self.place / "libvirtd.pid")
        deadline = time.monotonic() + 60
        while self.call("virsh", "version", check=False).returncode != 0:
            assert time.monotonic() < deadline, "libvirtd does not answer"
            time.sleep(0.2)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end()

    def call(self, *argv, check=True, timeout=180, stdin=b""):
        """Run *argv* on the host; CompletedProcess with text."""
        done = subprocess.run(
            [*self.inside, *map(str, argv)],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=environment(),
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}: {out}{err}"
        return subprocess.CompletedProcess(argv, done.returncode, out, err)

    def dre(self, *argv, **kwargs):
        """dre-sys with the settings of this host."""
        return self.call(program("dre-sys"), "--config", self.conf, *argv, **kwargs)

    def virsh(self, *argv):
        """The words of virsh, our witness."""
        return self.call("virsh", "-q", *argv).stdout

    def small(self, name="small"):
        """An image that boots nothing but is one: a disk with a partition table."""
        path = self.place / f"{name}.qcow2"
        if path.exists():
            return path
        raw = self.place / f"{name}.raw"
        with raw.open("wb") as stream:
            stream.truncate(8 << 20)
            stream.seek(510)
            stream.write(b"\x55\xaa")
        self.call("qemu-img", "convert", "-O", "qcow2", raw, path)
        raw.unlink()
        return path

    def end(self):
        """End what was started, and remove it."""
        if self.holder is not None:
            for name in self.call("virsh", "-q", "list", "--name", check=False).stdout.split():
                self.call("virsh", "-q", "destroy", name, check=False)
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(int((self.place / "libvirtd.pid").read_text()), 15)
            self.call(program("dre-bridge"), "--config", self.conf, "down", "--force", check=False)
            self.holder.kill()
            self.holder.wait()
        shutil.rmtree(self.place, ignore_errors=True)
