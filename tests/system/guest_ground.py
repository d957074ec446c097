# SPDX-License-Identifier: Apache-2.0
"""A guest that is up in seconds: Debian's kernel for clouds and busybox, without services, for tests that talk to it.

It counts, on its console and on its disk, and answers by TCP on port 7 each line that it is sent, after a token which
it has drawn at its boot: who gets the same token back over the same connection talks to the same running guest.
"""

import contextlib
import ctypes
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time

import pytest
from system_ground import need

MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci")
MODULES += ("failover", "net_failover", "virtio_net", "virtio_blk")
CACHE = pathlib.Path("/var/cache/dre-test/kernel")
INIT = """#!/busybox sh
b=/busybox
$b mkdir -p /proc /dev
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in MODULES; do $b insmod /$module.ko; done
for word in $($b cat /proc/cmdline); do
    case $word in ip=*) IFS=:; set -- ${word#ip=}; unset IFS;; esac
done
$b ip address add $1/24 dev eth0
$b ip link set eth0 up
$b cat /proc/sys/kernel/random/uuid >/token
$b nc -ll -p 7 -e /answer &
n=0
while :; do
    n=$((n + 1))
    printf '%08x\\n' $n >/dev/ttyS0
    [ $((n % 16)) -ne 0 ] || printf '%08x\\n' $n | $b dd of=/dev/vda bs=512 conv=notrunc 2>/dev/null
    $b usleep 50000
done
"""
ANSWER = "#!/busybox sh\nread -r token </token\nwhile read -r word; do echo $token $word; done\n"


def _kernel():
    """vmlinuz and the modules, of the package that linux-image-cloud-amd64 depends on; kept for the next time."""
    need("apt-get", "dpkg-deb", "busybox")
    told = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True)
    names = [line.split()[1] for line in told.stdout.splitlines() if line.strip().startswith("Depends: linux-image-")]
    if not names:
        pytest.skip("apt knows no linux-image-cloud-amd64")
    kept = CACHE / names[0]
    if not kept.exists():
        work = CACHE / ".making"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        done = subprocess.run(["apt-get", "download", names[0]], cwd=work, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"no Debian archive can be reached: {done.stderr}")
        subprocess.run(["dpkg-deb", "-x", *work.glob("*.deb"), work / "x"], check=True, timeout=120)
        (work / "made").mkdir()
        for name in ("boot/vmlinuz-*", *(f"lib/modules/*/kernel/**/{module}.ko" for module in MODULES)):
            (found,) = (work / "x").glob(name)
            shutil.copy(found, work / "made" / found.name.partition("-")[0])
        (work / "made").rename(kept)
        shutil.rmtree(work)
    return kept


def _archive(files):
    """A newc cpio archive, as the kernel unpacks it; see its initramfs buffer format."""
    found = b""
    for number, (name, mode, octets) in enumerate((*files, ("TRAILER!!!", 0, b"")), 1):
        words = (number, mode, 0, 0, 1, 0, len(octets), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % word for word in words) + name.encode() + b"\0"
        found += head + bytes(-len(head) % 4) + octets + bytes(-len(octets) % 4)
    return found


def busybox():
    """That of the host, which needs no library, as a file of an image."""
    return "busybox", 0o100755, pathlib.Path("/bin/busybox").read_bytes()


def image(host, name="tiny", kernel=None, files=None):
    """The name of an image of that guest on *host*, as dre-base makes them.

    With *kernel* that one, and *files* are all there is in it: names, modes and octets, `init` among them.
    """
    place = host.place / "state/base" / name
    if place.exists():
        return name
    kept = None if kernel else _kernel()
    place.mkdir(parents=True)
    shutil.copy(kernel or kept / "vmlinuz", place / "vmlinuz")
    if kept:
        files = [("init", 0o100755, INIT.replace("MODULES", " ".join(MODULES)).encode())]
        files += [("answer", 0o100755, ANSWER.encode()), busybox()]
        files += [(f"{module}.ko", 0o100644, (kept / f"{module}.ko").read_bytes()) for module in MODULES]
    (place / "initrd.img").write_bytes(gzip.compress(_archive(files), 1))
    shutil.copy(host.small(), place / "image.qcow2")
    digest = hashlib.sha256((place / "image.qcow2").read_bytes()).hexdigest()
    manifest = {"name": name, "sha256": digest, "cmdline": "rdinit=/init quiet panic=1 console=ttyS0"}
    (place / "image.json").write_text(json.dumps(manifest))
    return name


@contextlib.contextmanager
def inside(space):
    """Be in the network namespace *space*, a path; sockets made there stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as home, open(space) as other:
        assert libc.setns(other.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), 0) == 0, os.strerror(ctypes.get_errno())


class Talk:
    """A TCP connection to the guest, over which one line after the other is asked and answered; a `with`-block."""

    def __init__(self, address, space, patience=60):
        deadline = time.monotonic() + patience
        while True:
            try:
                with inside(space):
                    self.peer = socket.create_connection((address, 7), timeout=2)
                break
            except OSError:  # it is not up yet
                assert time.monotonic() < deadline, f"{address} does not answer"
                time.sleep(0.1)
        self.peer.settimeout(patience)
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines, self.asked, self.token = self.peer.makefile("rb"), 0, None
        self.ask()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self.peer.close()

    def ask(self):
        """Ask once; the seconds until the answer came. The answer must be the next one of the same guest."""
        self.asked += 1
        begun = time.monotonic()
        self.peer.sendall(b"%d\n" % self.asked)
        token, number = self.lines.readline().split()
        assert int(number) == self.asked
        assert self.token in (None, token)
        self.token = token
        return time.monotonic() - begun

    def until(self, ended):
        """Ask a hundred times a second until `ended()`, and once more; the longest that an answer took."""
        longest = 0.0
        while not ended():
            longest = max(longest, self.ask())
            time.sleep(0.01)
        return max(longest, self.ask())
