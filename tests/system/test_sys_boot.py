# SPDX-License-Identifier: Apache-2.0
"""What a system boots: a CD, the disk of an image by UEFI firmware, a cloud image that its seed tells who it is.

GRUB of a CD made here tells of itself in a moment. Images with a whole system, which take minutes to make and to boot,
are for DRE_FULL=1.
"""

import json
import os
import pathlib
import secrets
import shutil
import subprocess
import time

import pytest
import yaml
from programs import environment, program
from system_ground import NETWORK, Apart, need

FULL = os.environ.get("DRE_FULL") == "1"
full = pytest.mark.skipif(not FULL, reason="makes and boots an image, which takes minutes: DRE_FULL=1")
OVMF = pytest.mark.skipif(not pathlib.Path("/usr/share/qemu/firmware").is_dir(), reason="needs ovmf")
BOOT_WAIT = 300


@pytest.fixture(scope="module")
def host():
    with Apart() as made:
        yield made


def told(host, name, word, seconds=BOOT_WAIT):
    """Wait until the serial console tells *word*; all of it."""
    deadline = time.monotonic() + seconds
    while word not in (text := host.dre("log", name, check=False).stdout):
        assert time.monotonic() < deadline, text[-2000:]
        assert host.virsh("domstate", name).strip() == "running", text[-2000:]
        time.sleep(0.2)
    return text


@pytest.fixture
def cd(host):
    """A CD that boots by BIOS and by UEFI, and the words that its GRUB tells."""
    need("grub-mkrescue", "mformat", "xorriso")
    for platform in ("i386-pc", "x86_64-efi"):
        if not pathlib.Path("/usr/lib/grub", platform).is_dir():
            pytest.skip(f"GRUB for {platform} is not installed: grub-pc-bin, grub-efi-amd64-bin")
    place, word = host.place / "cd", secrets.token_hex(8)
    (place / "boot/grub").mkdir(parents=True)
    lines = ["serial --unit=0", "terminal_output serial", f"echo {word} by $grub_platform", "sleep 3600"]
    (place / "boot/grub/grub.cfg").write_text("".join(f"{line}\n" for line in lines))
    host.call("grub-mkrescue", "-o", host.place / "cd.iso", place)
    yield host.place / "cd.iso", word
    shutil.rmtree(place)
    (host.place / "cd.iso").unlink()


@pytest.mark.parametrize("firmware", ["pc", pytest.param("efi", marks=OVMF)])
def test_a_cd_boots_before_an_empty_disk(host, cd, firmware):
    iso, word = cd
    refused = host.dre("create", "b1", "--iso", iso, "--memory", "128M", check=False)
    assert (refused.returncode, "--disk-size" in refused.stderr) == (2, True), refused.stderr
    missing = host.dre("create", "b1", "--iso", "/nonexistent.iso", "--disk-size", "16M", check=False)
    assert (missing.returncode, host.virsh("list", "--all")) == (3, "")
    options = ["--uefi"] if firmware == "efi" else []
    host.dre("create", "b1", "--iso", iso, "--disk-size", "16M", "--memory", "128M", *options)
    try:
        host.dre("start", "b1")
        assert f"{word} by {firmware}" in told(host, "b1", f"{word} by")
        assert str(iso) in host.virsh("domblklist", "b1")
        assert host.virsh("vncdisplay", "b1").startswith("127.0.0.1:")
    finally:
        host.dre("destroy", "--force", "b1", check=False)
    assert iso.exists()  # it is not ours
    assert host.virsh("list", "--all") == ""
    assert not list((host.place / "host/var-lib-libvirt/qemu/nvram").glob("b1*"))  # nor are variables of UEFI left


def test_without_its_cd_the_disk_boots(host, cd):
    """An installer's CD is taken out by virsh, as the man page has it."""
    iso, _ = cd
    host.dre("create", "b2", "--iso", iso, "--base", host.counting(), "--memory", "64M")
    try:
        host.virsh("change-media", "b2", "sda", "--eject", "--config")
        host.dre("start", "b2")
        assert "00000010" in told(host, "b2", "00000010")  # the count of the disk's boot sector
    finally:
        host.dre("destroy", "--force", "b2", check=False)


def seed(host, name):
    """What is in the seed of a cloud image, by name of the file; xorriso and blkid look."""
    place = host.place / "state/sys/state" / name / "seed.iso"
    assert host.call("blkid", "-p", "-o", "value", "-s", "LABEL", place).stdout == "cidata\n"
    out = host.place / "seed"
    host.call("xorriso", "-indev", place, "-osirrox", "on", "-extract", "/", out)
    host.call("chmod", "-R", "u+w", out)
    found = {path.name: path.read_text() for path in out.iterdir()}
    shutil.rmtree(out)
    return found


def test_a_seed_tells_who_it_is(host):
    need("xorriso", "ssh-keygen")
    keys = [host.place / "one", host.place / "two"]
    for number, key in enumerate(keys):
        comment = ["", '- x: "a" \' # {}'][number]  # what YAML would take for its own
        host.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key)
    words = [word for key in keys for word in ("--ssh-key", f"{key}.pub")]
    small = ("--base", host.small(), "--memory", "64M", "--cloud-init")
    host.dre("create", "b3", *small, "--ip", f"{NETWORK}.5/24", "--mac", "52:54:00:12:34:56", *words)
    host.dre("create", "b4", *small, "--ip", "dhcp")
    try:
        found = seed(host, "b3")
        assert sorted(found) == ["meta-data", "network-config", "user-data"]
        meta, network = (yaml.safe_load(found[name]) for name in ("meta-data", "network-config"))
        assert meta["local-hostname"] == "b3"
        assert network["version"] == 2
        (first,) = network["ethernets"].values()
        assert first["match"] == {"macaddress": "52:54:00:12:34:56"}
        assert (first["addresses"], first["gateway4"]) == ([f"{NETWORK}.5/24"], f"{NETWORK}.1")
        assert found["user-data"].startswith("#cloud-config\n")
        user = yaml.safe_load(found["user-data"])
        lines = [pathlib.Path(f"{key}.pub").read_text().strip() for key in keys]
        assert (user["hostname"], user["ssh_authorized_keys"]) == ("b3", lines)
        assert user["users"][0]["ssh_authorized_keys"] == lines
        other = seed(host, "b4")
        (link,) = yaml.safe_load(other["network-config"])["ethernets"].values()
        assert (link["dhcp4"], "addresses" in link) == (True, False)
        assert yaml.safe_load(other["meta-data"])["instance-id"] != meta["instance-id"]
    finally:
        host.dre("destroy", "--force", "b3", "b4", check=False)


@pytest.fixture(scope="module")
def image(host):
    """The name of an image of dre-base with cloud-init in it."""
    if subprocess.run(["apt-get", "update", "-qq"], capture_output=True, timeout=120, check=False).returncode != 0:
        pytest.skip("no Debian archive can be reached")
    words = [program("dre-base"), "--config", host.conf, "--quiet", "--name", "cloudy", "--size", "2G"]
    words += ["--package", "cloud-init", "linux-image-cloud-amd64"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment(), timeout=1200)
    assert done.returncode == 0, done.stderr
    return "cloudy"


def guest(host, name, script, **kwargs):
    """The words that sh prints in the guest."""
    return host.dre("exec", name, "--", "sh", "-c", script, **kwargs).stdout.split()


ADDRESSES = "ip -4 -br addr show dev $(ls /sys/class/net | grep -v lo) | tr -s ' ' | cut -d' ' -f3"


@full
@OVMF
def test_an_image_boots_by_uefi_and_is_what_the_host_says(host, image):
    host.dre("create", "b5", "--base", image, "--uefi", "--memory", "512M", "--ip", f"{NETWORK}.77/24")
    try:
        host.dre("start", "b5", "--wait", BOOT_WAIT, timeout=BOOT_WAIT + 60)
        assert guest(host, "b5", "test -d /sys/firmware/efi && echo efi; hostname") == ["efi", "b5"]
        deadline = time.monotonic() + 60
        while guest(host, "b5", ADDRESSES) != [f"{NETWORK}.77/24"]:  # by DHCP: no kernel's command line tells it
            assert time.monotonic() < deadline, guest(host, "b5", ADDRESSES)
            time.sleep(0.5)
        row = json.loads(host.dre("status", "b5", "--json").stdout)
        assert (row["state"], row["ip"]) == ("running", [f"{NETWORK}.77"])
    finally:
        host.dre("destroy", "--force", "b5", check=False)


@full
def test_a_cloud_image_is_told_by_its_seed(host, image):
    """Imported as anybody's own: a disk alone, without a kernel or a manifest."""
    need("xorriso", "ssh")
    own, key = host.place / "own.qcow2", host.place / "key"
    shutil.copy(host.place / "state/base" / image / "image.qcow2", own)
    host.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    words = ("--ip", f"{NETWORK}.78/24", "--ssh-key", f"{key}.pub", "--memory", "512M")
    host.dre("create", "b6", "--base", own, "--cloud-init", *words)
    try:
        host.dre("start", "b6", "--wait", BOOT_WAIT, timeout=BOOT_WAIT + 60)
        deadline = time.monotonic() + BOOT_WAIT
        script = "cloud-init query ds.meta_data.local-hostname; cloud-init query subplatform; blkid -L cidata"
        while not (found := guest(host, "b6", script, check=False)):
            assert time.monotonic() < deadline
            time.sleep(2)
        assert (found[0], found[2]) == ("b6", f"({found[3]})"), found  # where it was told that
        ssh = ["ssh", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        ssh += ["-o", "ConnectTimeout=30", "-o", "BatchMode=yes", f"root@{NETWORK}.78", "hostname"]
        while (done := host.call(*ssh, check=False)).returncode != 0:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(1)
        assert done.stdout == "b6\n"
        assert guest(host, "b6", ADDRESSES) == [f"{NETWORK}.78/24"]
    finally:
        host.dre("destroy", "--force", "b6", check=False)
