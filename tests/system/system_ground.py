# SPDX-License-Identifier: Apache-2.0
"""Ground for tests of systems: a libvirt of their own in a mount namespace, a bridge, and an image that boots.

The host's own libvirt, its domains and its files are not touched. /dev/kvm is hidden there: where it is only emulated,
libvirt asks at every definition what KVM can do, for a minute and a half.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import uuid

import pytest
from programs import environment, program

PRIVATE = ("/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
BRIDGE, NETWORK = "dret7", "10.231.107"
# What libvirt has found out of QEMU, which takes it seconds; it looks itself whether that is of this QEMU.
KNOWN, KEPT = pathlib.Path("host/var-cache-libvirt/qemu/capabilities"), pathlib.Path("/var/cache/dre-test/libvirt")

# Real mode: ebp = 0; tick: hlt (until the timer's next interrupt); ebp++; store it at 0x8000; its eight hexadecimal
# digits and a newline to port 0x3f8; each 16th time write 0x8000 to the disk's second sector (int 13h); again.
COUNTER = bytes.fromhex(
    "31c08ed88ec06631edfbf4664566892e0080be08006689eb66c1c30488d8240f04303c3976020427baf803ee4e75e9b00aeef7c50f0075d2"
    "b80103b90200ba8000bb0080cd13ebc2"
)

# Runs a program that goes into the background, and is the parent of what that starts and leaves. libvirt waits until a
# QEMU that has ended is gone; the first process of a container may look for such ones only every two seconds.
PARENT = """
import ctypes, os, subprocess, sys
begun, tell = os.pipe()
if os.fork():
    os.close(tell)
    sys.exit(not os.read(begun, 1))
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
subprocess.run(sys.argv[1:], check=True)
os.write(tell, b"1")
for number in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""


def need(*programs):
    """Skip, saying why, where a program is missing."""
    for name in programs:
        if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{name} is not installed")


class Host:
    """A host of systems. Use it as a `with`-block; `dre` and `virsh` run on it."""

    unshared, options = ("--mount",), ()  # the namespaces, and what else unshare is told
    parent, prefix = "/var/tmp", "dre-sys-"
    alone = None

    def __init__(self):
        self._prepare()
        self.conf = self.place / "dre.conf"
        self.conf.write_text("".join(f'{key}="{value}"\n' for key, value in self.settings().items()))
        self.conf.chmod(0o644)
        self._begin_or_end()

    @property
    def seen(self):
        """Where its own programs see what is in self.place."""
        return self.place

    def settings(self):
        """What is in its dre.conf."""
        return {
            "DRE_CORE_STATE_DIR": self.seen / "state",
            "DRE_CORE_RUN_DIR": self.seen / "run",
            "DRE_CORE_ETC_DIR": self.seen / "etc",
            "DRE_CORE_LOG_DIR": self.seen / "log",
            "DRE_MONITOR_SINK": self.seen / "run/events.sock",
            "DRE_BRIDGE_IF": BRIDGE,
            "DRE_BRIDGE_ADDRESS": f"{NETWORK}.1/24",
            "DRE_BRIDGE_NAT": "no",
            "DRE_SYS_DEFAULT_GATEWAY": f"{NETWORK}.1",
            "DRE_SYS_VIRT": "tcg",
        }

    def _prepare(self):
        need("libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "nsenter")
        if os.geteuid() != 0:
            pytest.skip("needs root")
        if "--net" not in self.unshared:
            # Its bridge is the real host's, and there is one of that name: one such host at a time.
            self.alone = os.open("/run/lock/dre-test-systems", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.alone, fcntl.LOCK_EX)
        # Not below /tmp of pytest's, through which QEMU's user could not pass.
        self.place = pathlib.Path(tempfile.mkdtemp(prefix=self.prefix, dir=self.parent))
        self.place.chmod(0o755)
        self.holder = None

    def _begin_or_end(self):
        try:
            self._begin()
        except BaseException:
            self.end()
            raise

    def _begin(self):
        binds = []
        for path in PRIVATE:
            mine = pathlib.Path("host", path.strip("/").replace("/", "-"))
            (self.place / mine).mkdir(parents=True)
            os.makedirs(path, exist_ok=True)
            binds.append(f"mount --bind {self.seen / mine} {path}")
        (self.place / "host/etc-libvirt/qemu.conf").write_text(
            'stdio_handler = "file"\nsecurity_driver = "none"\nnamespaces = []\n'
        )
        if KEPT.is_dir():
            shutil.copytree(KEPT, self.place / KNOWN)
        hidden = self.place / "host/kvm"
        hidden.touch(mode=0o600)  # QEMU's user may not open it: then libvirt does not ask again at every definition
        hide = f"[ ! -e /dev/kvm ] || mount --bind {hidden} /dev/kvm"
        lines = ["set -e", "mount --make-rprivate /", *self.mounts(), *binds, hide, *self.apart()]
        # The shell waits for whoever has lost its parent, where it is the first of a namespace of pids.
        script = "; ".join([*lines, "echo ready", "setpriv --pdeathsig KILL sleep 36000 & wait"])
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", *self.unshared, *self.options, "sh", "-c", script]
        self.holder = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment())
        assert self.holder.stdout.readline() == b"ready\n"
        self.inside = ("nsenter", "-t", str(self.first_pid()), *(f"-{word[2]}" for word in self.unshared), "--")
        self.connect()
        self.begin_libvirt()

    def mounts(self):
        """What is to be mounted before all else, as lines of a shell."""
        return []

    def first_pid(self):
        """The process that holds the namespaces."""
        return self.holder.pid

    def apart(self):
        """What else is to be done in the namespaces, as lines of a shell."""
        return []

    def connect(self):
        """Make the network of the namespaces."""

    def begin_libvirt(self, *options):
        """Start libvirt, and wait until it answers."""
        words = ("libvirtd", "-d", "--pid-file", self.seen / "libvirtd.pid", *options)
        self.call("/usr/bin/python3", "-c", PARENT, *words)
        deadline = time.monotonic() + 60
        while self.call("virsh", "version", check=False).returncode != 0:
            assert time.monotonic() < deadline, "libvirtd does not answer"
            time.sleep(0.2)

    def end_libvirt(self):
        """End libvirt as its service would; its domains go on."""
        pid = int((self.place / "libvirtd.pid").read_text())
        os.kill(pid, 15)
        deadline = time.monotonic() + 30
        while os.path.exists(f"/proc/{pid}/exe"):
            assert time.monotonic() < deadline, "libvirtd does not end"
            time.sleep(0.05)

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

    def begin(self, *argv, **kwargs):
        """dre-sys at work: its Popen."""
        words = [*self.inside, program("dre-sys"), "--config", self.conf, *argv]
        return subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, env=environment(), **kwargs)

    def virsh(self, *argv):
        """The words of virsh, our witness."""
        return self.call("virsh", "-q", *argv).stdout

    def small(self, name="small", code=b""):
        """An image that boots nothing but is one: a disk with a partition table. *code* is its boot sector's."""
        path = self.place / f"{name}.qcow2"
        if path.exists():
            return path
        raw = self.place / f"{name}.raw"
        with raw.open("wb") as stream:
            stream.truncate(8 << 20)
            stream.write(code)
            stream.seek(510)
            stream.write(b"\x55\xaa")
        self.call("qemu-img", "convert", "-O", "qcow2", raw, path)
        raw.unlink()
        return path

    def counting(self):
        """An image whose boot sector counts 18 times a second, on the serial console and in the disk's next sector."""
        return self.small("counting", COUNTER)

    def _keep_known(self):
        """Keep what libvirt knows of QEMU for the next one."""
        KEPT.mkdir(parents=True, exist_ok=True)
        for path in (self.place / KNOWN).glob("*.xml"):
            if not (KEPT / path.name).exists() or (KEPT / path.name).read_bytes() != path.read_bytes():
                shutil.copy(path, KEPT / f".{path.name}.{os.getpid()}")
                (KEPT / f".{path.name}.{os.getpid()}").rename(KEPT / path.name)

    def end(self):
        """End what was started, and remove it."""
        if self.holder is not None:
            for name in self.call("virsh", "-q", "list", "--name", check=False).stdout.split():
                self.call("virsh", "-q", "destroy", name, check=False)
            # What a libvirt that crashed has left, and does not know any more, too.
            left = [(path, 9) for path in (self.place / "host/run-libvirt/qemu").glob("*.pid")]
            for path, number in (*left, (self.place / "libvirtd.pid", 15), (self.place / "sshd.pid", 15)):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                    os.kill(int(path.read_text()), number)
            self.call(program("dre-bridge"), "--config", self.conf, "down", "--force", check=False)
            self.holder.kill()
            self.holder.wait()
            self._keep_known()
        shutil.rmtree(self.place, ignore_errors=True)
        if self.alone is not None:
            os.close(self.alone)


class Apart(Host):
    """A host with a network of its own, so that it waits for no other and none for it; its systems are not limited."""

    unshared = ("--mount", "--net")

    def apart(self):
        with (self.place / "host/etc-libvirt/qemu.conf").open("a") as stream:
            stream.write("cgroup_controllers = []\n")
        return ["ip link set lo up", "umount -R -l /sys", "mount -t sysfs none /sys"]  # of its network


class There(Host):
    """A second host, with network, name and files of its own at the paths of the first, on a cable between the two."""

    unshared = ("--mount", "--net", "--uts")
    cable, address = "dret8", "10.231.112"

    def __init__(self, first):
        self._prepare()
        self.first, self.conf = first, first.conf
        self.uri = f"qemu+tcp://{self.address}.2/system"
        self._begin_or_end()

    def apart(self):
        (self.place / "host/etc-libvirt/libvirtd.conf").write_text(self._listening(2))
        with (self.place / "host/etc-libvirt/qemu.conf").open("a") as stream:
            stream.write(f'migration_host = "{self.address}.2"\n')
        shared = self.place / "shared"  # the files of the first, for tests of shared storage
        shared.mkdir()
        (self.first.place / "state").mkdir(exist_ok=True)
        lines = [
            f"mount --bind {self.first.place}/state {shared}",
            "hostname dre-there",
            "umount -R -l /sys",
            "mount -t sysfs none /sys",
        ]  # its own network, and none of the cgroups of the first
        for name in ("state", "run", "etc", "log"):
            mine, theirs = self.place / name, self.first.place / name
            for path in (mine, theirs):
                path.mkdir(exist_ok=True)
            lines.append(f"mount --bind {mine} {theirs}")
        return lines

    def connect(self):
        end, other = f"{self.cable}a", f"{self.cable}b"
        # The kernel takes its time over the network namespace of the last one.
        self.first.call("ip", "link", "del", end, check=False)
        for words in (
            ("add", end, "type", "veth", "peer", "name", other, "netns", self.holder.pid),
            ("set", end, "up"),
        ):
            self.first.call("ip", "link", *words)
        self.first.call("ip", "address", "add", f"{self.address}.1/30", "dev", end)
        self.call("ip", "address", "add", f"{self.address}.2/30", "dev", other)
        for name in ("lo", other):
            self.call("ip", "link", "set", name, "up")

    def begin_libvirt(self):
        super().begin_libvirt("--listen")

    def begin_sshd(self):
        """Let root of the first host in by ssh; returns what to call this one."""
        keys = self.place / "ssh"
        keys.mkdir(mode=0o700)
        for name in ("host", "id_ed25519"):
            self.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name)
        (keys / "authorized_keys").write_text((keys / "id_ed25519.pub").read_text())
        (keys / "known_hosts").write_text(f"{self.address}.2 {(keys / 'host.pub').read_text()}")
        os.makedirs("/run/sshd", exist_ok=True)
        os.makedirs("/root/.ssh", mode=0o700, exist_ok=True)
        self.first.call("mount", "--bind", keys, "/root/.ssh")  # in its namespace alone
        options = ("StrictModes=no", "UsePAM=no", f"HostKey={keys}/host", f"PidFile={self.place}/sshd.pid")
        words = [word for option in (*options, f"AuthorizedKeysFile={keys}/authorized_keys") for word in ("-o", option)]
        self.call("/usr/sbin/sshd", "-f", "/dev/null", "-p", "22", *words)
        return f"root@{self.address}.2"

    def answer_back(self):
        """Let this host reach the libvirt of the first one, too: at its `uri`."""
        first = self.first
        first.uri = f"qemu+tcp://{self.address}.1/system"
        (first.place / "host/etc-libvirt/libvirtd.conf").write_text(self._listening(1))
        with (first.place / "host/etc-libvirt/qemu.conf").open("a") as stream:
            stream.write(f'migration_host = "{self.address}.1"\n')
        first.end_libvirt()
        first.begin_libvirt("--listen")

    def begin_tls(self):
        """Let in by TLS, too, who has a certificate of an authority made for that; returns the URI to call."""
        need("openssl")
        keys = self.first.place / "tls"
        keys.mkdir(mode=0o755)
        (keys / "empty").write_text("[req]\ndistinguished_name = none\n[none]\n")  # openssl's own would say CA of each
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", keys / "empty"]
        authority = ["-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE"]
        self.call(*words, *authority, "-keyout", keys / "ca.key", "-out", keys / "ca-cert.pem")
        for name in ("server", "client"):
            whom = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{self.address}.1,IP:{self.address}.2"]
            signed = ["-CA", keys / "ca-cert.pem", "-CAkey", keys / "ca.key", "-keyout", keys / f"{name}-key.pem"]
            self.call(*words, *whom, *signed, "-out", keys / f"{name}-cert.pem")
        for old, new in (("ca-cert", "cacert"), ("client-cert", "clientcert"), ("client-key", "clientkey")):
            (keys / f"{new}.pem").symlink_to(f"{old}.pem")  # libvirt and QEMU call them differently
        for path in keys.iterdir():
            path.chmod(0o644)  # QEMU's user reads them
        for host, number in ((self.first, 1), (self, 2)):
            files = {"ca_file": "ca-cert.pem", "cert_file": "server-cert.pem", "key_file": "server-key.pem"}
            lines = "".join(f'{key} = "{keys / name}"\n' for key, name in files.items())
            text = self._listening(number).replace("listen_tls = 0", "listen_tls = 1")
            (host.place / "host/etc-libvirt/libvirtd.conf").write_text(text + lines)
            with (host.place / "host/etc-libvirt/qemu.conf").open("a") as stream:
                stream.write(f'default_tls_x509_cert_dir = "{keys}"\ndefault_tls_x509_verify = 1\n')
        self.first.end_libvirt()
        self.first.begin_libvirt("--listen")
        self.end_libvirt()
        self.begin_libvirt()
        return f"qemu+tls://{self.address}.2/system?pkipath={keys}"

    def _listening(self, number):
        """libvirtd.conf of the host with that number on the cable."""
        return (
            f'listen_tls = 0\nlisten_tcp = 1\nlisten_addr = "{self.address}.{number}"\nauth_tcp = "none"\n'
            f'host_uuid = "{uuid.uuid5(uuid.NAMESPACE_OID, f"{self.place}{number}")}"\n'
        )

    def cut(self, whole="down"):
        """Cut the cable, or with "up" mend it."""
        self.first.call("ip", "link", "set", f"{self.cable}a", whole)

    def kill_libvirt(self):
        """End libvirt there at once, as a crash would; its domains go on."""
        os.kill(int((self.place / "libvirtd.pid").read_text()), 9)
