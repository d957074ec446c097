# SPDX-License-Identifier: Apache-2.0
"""dre-base makes a disk that boots in three ways into a system like no other; QEMU, ssh, e2fsprogs and sfdisk look.

One small image is made and shared by all tests; its own boot loader, and making it anew, are for DRE_FULL=1. What
dre-base keeps to be quicker stays in $DRE_TEST_CACHE for the next run.
"""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from conftest import environment, program

CACHE = pathlib.Path(os.environ.get("DRE_TEST_CACHE", "/var/cache/dre-test"))
FULL = os.environ.get("DRE_FULL") == "1"
BOOT_WAIT = 300
OVMF = pathlib.Path("/usr/share/ovmf/OVMF.fd")
WANTED = ["--package", "hello", "linux-image-cloud-amd64", "--size", "1G"]
ROOT_OFFSET = 5 << 20

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86"),
    pytest.mark.skipif(not pathlib.Path("/usr/lib/grub/i386-pc/boot.img").exists(), reason="needs grub-pc-bin"),
]
full = pytest.mark.skipif(not FULL, reason="takes minutes: DRE_FULL=1")


class Place:
    def __init__(self, directory):
        self.directory = directory
        self.base = directory / "state/base"
        self.conf = directory / "dre.conf"
        self.conf.write_text(f'DRE_CORE_STATE_DIR="{directory}/state"\nDRE_CORE_RUN_DIR="{directory}/run"\n')
        self.key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", self.key], check=True)

    def argv(self, *argv):
        return [program("dre-base"), "--config", str(self.conf), *map(str, argv)]

    def env(self):
        return {**environment(), "SOURCE_DATE_EPOCH": "1750000000"}

    def run(self, *argv, timeout=900):
        return subprocess.run(self.argv(*argv), capture_output=True, timeout=timeout, env=self.env(), check=False)

    def make(self, name, *argv):
        return self.run("--name", name, "--ssh-key", f"{self.key}.pub", *WANTED, *argv)

    def digest(self, name, file="image.qcow2"):
        return capture("sha256sum", self.base / name / file).split()[0]


@pytest.fixture(scope="module")
def place():
    done = subprocess.run(["apt-get", "update", "-qq"], capture_output=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip("no Debian archive can be reached")
    directory = CACHE / "base-image"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear(directory)
        yield Place(directory)
        clear(directory)


def clear(directory):
    """Leave nothing of a run, or of one that was killed, but what dre-base kept."""
    for path in (*directory.iterdir(), *directory.glob("state/*"), *directory.glob("state/base/*")):
        if path.name not in ("lock", "state", "base", ".cache"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def small(place):
    """The directory of the image `small`."""
    os.umask(0o077)  # what an administrator may have
    start = time.monotonic()
    done = place.make("small")
    os.umask(0o022)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    place.seconds = time.monotonic() - start
    return place.base / "small"


@pytest.fixture(scope="module")
def raw(place, small):
    """Its content as the system sees it."""
    capture("qemu-img", "convert", "-O", "raw", small / "image.qcow2", place.directory / "raw")
    yield place.directory / "raw"
    (place.directory / "raw").unlink()


def capture(*argv, **kwargs):
    done = subprocess.run(
        [*map(str, argv)], capture_output=True, timeout=300, check=True, env=environment(), text=True, **kwargs
    )
    return done.stdout


def debugfs(raw, command):
    return capture("debugfs", "-R", command, f"{raw}?offset={ROOT_OFFSET}")


def nothing_left(place):
    mounts = [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if str(place.base) in line]
    builds = subprocess.run(["pgrep", "-f", f"{place.base}"], capture_output=True, check=False).stdout
    hidden = [name for name in os.listdir(place.base) if name.startswith(".") and name != ".cache"]
    return (mounts, builds, hidden)


def test_the_manifest_says_what_is_there(place, small, raw, tmp_path):
    manifest = json.loads((small / "image.json").read_text())
    info = json.loads(capture("qemu-img", "info", "--output=json", small / "image.qcow2"))
    assert (info["format"], info["virtual-size"], manifest["format"], manifest["size"]) == (
        "qcow2",
        1 << 30,
        "qcow2",
        1 << 30,
    )
    assert manifest["sha256"] == place.digest("small")
    assert (manifest["kernel_sha256"], manifest["initrd_sha256"]) == (
        place.digest("small", "vmlinuz"),
        place.digest("small", "initrd.img"),
    )
    (tmp_path / "status").write_text(debugfs(raw, "cat /var/lib/dpkg/status"))
    (tmp_path / "info").mkdir()
    form = "${binary:Package} ${Version}\n"
    listed = capture("dpkg-query", f"--admindir={tmp_path}", "-W", "-f", form).splitlines()
    assert {name.partition(":")[0]: version for name, version in manifest["packages"].items()} == {
        line.split()[0].partition(":")[0]: line.split()[1] for line in listed
    }
    assert (manifest["wanted"], manifest["imported"], manifest["mirror"]) == (
        ["hello", "linux-image-cloud-amd64"],
        False,
        None,
    )
    assert manifest["kernel"] in debugfs(raw, "ls /boot")
    assert manifest["ssh_keys"] == [(place.directory / "key.pub").read_text().strip()]
    assert json.loads(place.run("list", "--json").stdout)["packages"] == len(listed)
    assert place.run("check", "small").returncode == 0


def test_others_may_read_it_whatever_the_umask_was(small):
    for path in (small.parent, small):
        assert path.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in small.iterdir()} == {0o644}


def test_the_disk_is_whole(raw):
    table = json.loads(capture("sfdisk", "--json", raw))["partitiontable"]
    assert table["label"] == "gpt"
    assert [(part["name"], part["start"] * 512) for part in table["partitions"]] == [
        ("bios", 34 * 512),
        ("esp", 1 << 20),
        ("root", ROOT_OFFSET),
    ]
    assert "No errors detected." in capture("sfdisk", "--verify", raw)
    capture("e2fsck", "-fn", f"{raw}?offset={ROOT_OFFSET}")
    assert "BOOTX64  EFI" in capture("mdir", "-i", f"{raw}@@1M", "::/EFI/BOOT")


def test_it_has_no_identity_of_its_own(place, raw):
    assert debugfs(raw, "cat /etc/machine-id") == ""
    assert "ssh_host" not in debugfs(raw, "ls /etc/ssh")
    assert "hostname" not in debugfs(raw, "ls -p /etc").split("/")
    assert re.search("^root:[!*]", debugfs(raw, "cat /etc/shadow"), re.MULTILINE)
    assert debugfs(raw, "cat /root/.ssh/authorized_keys") == (place.directory / "key.pub").read_text()
    assert "Packages" not in debugfs(raw, "ls /var/lib/apt/lists")
    assert ".deb" not in debugfs(raw, "ls /var/cache/apt/archives")
    assert "unsafe" not in debugfs(raw, "cat /etc/dpkg/dpkg.cfg.d/99mmdebstrap")
    assert "policy-rc.d" not in debugfs(raw, "ls /usr/sbin")


@full
def test_making_it_again_gives_the_same_octets(place, small):
    start = time.monotonic()
    done = place.make("again")
    assert (done.returncode, done.stderr) == (0, b"")
    print(f"first {place.seconds:.1f} s, with what was kept {time.monotonic() - start:.1f} s")
    assert [place.digest("again", file) for file in ("image.qcow2", "vmlinuz", "initrd.img")] == [
        place.digest("small", file) for file in ("image.qcow2", "vmlinuz", "initrd.img")
    ]
    assert place.run("delete", "again").returncode == 0


@full
def test_making_it_from_nothing_gives_the_same_octets(place, small):
    (place.base / ".cache").rename(place.directory / "aside")
    try:
        assert place.make("again").returncode == 0
        assert place.digest("again") == place.digest("small")
        assert place.run("delete", "again").returncode == 0
    finally:
        shutil.rmtree(place.base / ".cache", ignore_errors=True)
        (place.directory / "aside").rename(place.base / ".cache")


@full
def test_what_was_kept_is_not_used_when_the_archive_has_newer(place, small):
    kept = list((place.base / ".cache").glob("*.root"))
    assert len(kept) == 1
    status = kept[0] / "var/lib/dpkg/status"
    packages = status.read_text().split("\n\n")
    old = [text.replace("\nVersion: ", "\nVersion: 0~") if "Package: gzip\n" in text else text for text in packages]
    status.write_text("\n\n".join(old))
    assert place.make("again").returncode == 0
    assert json.loads((place.base / "again/image.json").read_text())["packages"]["gzip"][:2] != "0~"
    assert place.digest("again") == place.digest("small")
    assert place.run("delete", "again").returncode == 0


def test_the_same_again_does_nothing(place, small):
    before = (small / "image.json").read_bytes()
    for more in ([], ["--if-older", "1d"]):
        done = place.make("small", *more)
        assert (done.returncode, done.stderr) == (0, b"dre-base: small: already there\n")
    assert (small / "image.json").read_bytes() == before


@pytest.mark.parametrize("how", [["--replace"], pytest.param(["--if-older", "0s"], marks=full)])
def test_when_making_it_anew_fails_the_old_one_stays(place, small, how):
    before = (small / "image.json").read_bytes()
    done = place.make("small", *how, "--package", "no-such-package-at-all")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"no-such-package-at-all" in done.stderr
    assert (small / "image.json").read_bytes() == before
    assert place.run("check", "small").returncode == 0
    assert nothing_left(place) == ([], b"", [])


def test_a_disk_too_small_is_refused_with_the_reason(place, small):
    done = place.make("tiny", "--size", "256M")
    assert done.returncode == 2
    assert b"--size 256M is too small: the packages take " in done.stderr
    assert not (place.base / "tiny").exists()
    assert nothing_left(place) == ([], b"", [])


@pytest.mark.parametrize("name", ["killed", "small"])
def test_killed_at_any_moment_there_is_no_half_image(place, small, name):
    argv = ["--name", name, "--ssh-key", f"{place.key}.pub", *WANTED, *(["--replace"] if name == "small" else [])]
    digest = place.digest("small")
    for _ in range(int(os.environ.get("DRE_KILLS", "1"))):
        child = subprocess.Popen(place.argv(*argv), env=place.env())
        time.sleep(random.uniform(0, 8))  # the moment is what is tested, not a wait for something
        child.kill()
        child.wait()
        there = (place.base / name).exists()
        assert place.run("check", name).returncode == (0 if there else 3)
        assert nothing_left(place) == ([], b"", [])
        assert place.digest("small") == digest
        if there and name == "killed":
            assert place.run("delete", name).returncode == 0


class Guest:
    """QEMU with an overlay on the image; gone with its block."""

    def __init__(self, place, small, where, size="1G", address="10.0.2.15"):
        self.place, self.where, self.serial = place, where, where / "serial"
        where.mkdir()
        self.serial.touch()
        capture("qemu-img", "create", "-f", "qcow2", "-b", small / "image.qcow2", "-F", "qcow2", where / "disk", size)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.argv = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-cpu", "qemu64", "-m", "512"]
        self.argv += ["-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{self.serial}"]
        self.argv += ["-drive", f"file={where}/disk,if=virtio,cache=unsafe", "-device", "virtio-rng"]
        self.argv += ["-nic", f"user,model=virtio,hostfwd=tcp:127.0.0.1:{self.port}-{address}:22"]
        self.argv += ["-chardev", f"socket,path={where}/agent,server=on,wait=off,id=agent", "-device", "virtio-serial"]
        self.argv += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]

    @contextlib.contextmanager
    def running(self, *argv):
        child = subprocess.Popen([*self.argv, *map(str, argv)], stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + BOOT_WAIT
            while b" login: " not in self.serial.read_bytes():
                assert child.poll() is None, "QEMU ended"
                assert time.monotonic() < deadline, self.serial.read_bytes()[-2000:]
                time.sleep(0.2)
            yield
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()

    def ssh(self, command, deadline=60):
        argv = ["ssh", "-i", self.place.key, "-p", str(self.port), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        argv += [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            f"UserKnownHostsFile={self.where}/known",
            "-o",
            "LogLevel=ERROR",
        ]
        end = time.monotonic() + deadline
        while True:
            done = subprocess.run(
                [*argv, "root@127.0.0.1", command], capture_output=True, timeout=120, check=False, text=True
            )
            if done.returncode != 255 or time.monotonic() > end:
                assert done.returncode == 0, done.stderr
                return done.stdout
            time.sleep(1)  # sshd is not there yet

    def agent(self):
        """The name that the guest agent tells."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(60)
            link.connect(str(self.where / "agent"))
            link.sendall(b'{"execute":"guest-get-host-name"}\n')
            return json.loads(link.makefile("rb").readline())["return"]["host-name"]


@pytest.fixture(scope="module")
def seen():
    """The machine-ids and host keys that were met."""
    return []


def meet(guest, seen):
    told = guest.ssh(
        "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; systemctl is-system-running"
    ).split()
    assert len(told[0]) == 32 and told[0] not in seen and told[1] not in seen
    assert told[1] in (guest.where / "known").read_text()
    assert told[2] in ("running", "starting")
    assert guest.ssh("systemctl --failed --no-legend") == ""
    seen += told[:2]


@full  # the guest ring boots one in any case
def test_booted_directly_it_is_what_the_host_says(place, small, seen, tmp_path):
    files = (
        "f+ /etc/hostname 0644 root root - web7\n"
        r"f+ /etc/systemd/network/10-dre.network 0644 root root - "
        r"[Match]\nName=eth0\n[Network]\nAddress=10.0.2.77/24\nGateway=10.0.2.2\nDNS=10.0.2.3\n"
        "\n"
    )
    credential = base64.b64encode(files.encode()).decode()
    guest = Guest(place, small, tmp_path / "guest", size="3G", address="10.0.2.77")
    line = json.loads((small / "image.json").read_text())["cmdline"]
    kernel = ["-kernel", small / "vmlinuz", "-initrd", small / "initrd.img", "-append", line]
    oem = ["-smbios", f"type=11,value=io.systemd.credential.binary:tmpfiles.extra={credential}"]
    with guest.running(*kernel, *oem):
        assert guest.ssh("hostname; ip -4 -br addr show eth0 | tr -s ' ' | cut -d' ' -f3").split() == [
            "web7",
            "10.0.2.77/24",
        ]
        assert guest.agent() == "web7"
        assert int(guest.ssh("df -B1 --output=size / | tail -1")) > 2.8 * 2**30
        assert guest.ssh("uname -r").strip() == json.loads((small / "image.json").read_text())["kernel"]
        assert "nameserver" in guest.ssh("cat /etc/resolv.conf")
        meet(guest, seen)


@full
def test_booted_by_bios_it_asks_for_an_address(place, small, seen, tmp_path):
    guest = Guest(place, small, tmp_path / "guest")
    with guest.running():
        assert guest.ssh(
            "ip -4 -br addr show eth0 | tr -s ' ' | cut -d' ' -f3; test -d /sys/firmware/efi || echo bios"
        ).split() == [
            "10.0.2.15/24",
            "bios",
        ]
        meet(guest, seen)


@full
@pytest.mark.skipif(not OVMF.exists(), reason="needs ovmf")
def test_booted_by_uefi(place, small, seen, tmp_path):
    guest = Guest(place, small, tmp_path / "guest")
    with guest.running("-bios", OVMF):
        assert guest.ssh("test -d /sys/firmware/efi && echo efi") == "efi\n"
        meet(guest, seen)


def test_delete_removes_all_but_what_is_kept(place, small):
    assert place.run("delete", "small").returncode == 0
    assert os.listdir(place.base) == [".cache"]
