# SPDX-License-Identifier: Apache-2.0
"""A system goes into one file and comes back with the same on its disks, of which nothing is believed on the way.

The disks here boot nothing; qemu-img, qemu-io, tar and sha256sum make them and look at them.
"""

import hashlib
import io
import json
import pathlib
import shutil
import tarfile

import pytest
from system_ground import NETWORK, Apart


@pytest.fixture(scope="module")
def host():
    with Apart() as made:
        yield made


@pytest.fixture
def system(host):
    """The name of a stopped system."""
    host.dre("create", "s1", "--base", host.small(), "--memory", "64M", "--ip", f"{NETWORK}.5/24")
    yield "s1"
    host.dre("destroy", "--force", "s1", check=False)


def home(host, name="s1"):
    return pathlib.Path(host.place, "state/sys/state", name)


def test_an_exported_system_comes_back_under_another_name(host, system):
    """What is on its disk is the same, octet for octet, and needs no image."""
    place = host.place / "s1.dre"
    host.call("qemu-io", "-c", "write -P 7 1M 64k", home(host) / "disk.qcow2")
    host.dre("export", system, place)
    host.dre("import", "--as", "s2", place)
    try:
        told = json.loads(host.call("qemu-img", "info", "--output=json", home(host, "s2") / "disk.qcow2").stdout)
        assert "backing-filename" not in told
        host.call("qemu-img", "compare", home(host) / "disk.qcow2", home(host, "s2") / "disk.qcow2")
        assert host.dre("import", "--as", "s2", place, check=False).returncode == 1
        host.dre("start", "s2")
        assert host.virsh("domstate", "s2").strip() == "running"
    finally:
        host.dre("destroy", "--force", "s2")


def forged(host, **fields):
    """An archive that was changed on its way: *fields* of the description, or members."""
    disk = fields.pop("disk", host.small())
    octets = disk.read_bytes()
    system = {"base": "x", "image": None, "memory": 64 << 20, "vcpus": 1, "ip": None, "uefi": False, "cloud": False}
    about = {"name": "disk.qcow2", "length": len(octets), "sha256": hashlib.sha256(octets).hexdigest()}
    head = {"format": "dre-sys/1", "name": "s2", "system": {**system, "ssh_keys": []}, "disks": [about]}
    for key, value in fields.items():
        (head["system"] if key in head["system"] else about if key in about else head)[key] = value
    place = host.place / "forged.dre"
    with tarfile.open(place, "w") as tar:
        for name, content in (("manifest.json", json.dumps(head).encode()), (about["name"], octets)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return place


def test_a_forged_archive_is_refused(host):
    secret = host.place / "secret"
    secret.write_text("secret\n" * 200)
    hostile = host.place / "hostile.qcow2"
    host.call("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, hostile, "1M")
    for fields in (
        {"disk": hostile},
        {"sha256": "0" * 64},
        {"length": 5},
        {"name": "../../../etc/passwd"},
        {"memory": -1},
        {"vcpus": "many"},
        {"ssh_keys": ["/etc/passwd"]},
        {"format": "dre-app/1"},
        {"disks": [{}]},
    ):
        done = host.dre("import", forged(host, **fields), check=False)
        assert (done.returncode in (1, 2), done.stdout, done.stderr.count("\n")) == (True, "", 1), (fields, done.stderr)
        assert (host.virsh("list", "--all", "--name").split(), home(host, "s2").exists()) == ([], False)
    host.dre("import", forged(host))
    host.dre("destroy", "s2")


def of_dre_base(host, name, octet):
    """An image as dre-base makes them, of 8 MiB: half of it is *octet*, whose digest is in its manifest."""
    place = host.place / "state/base" / name
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(host.small(), place / "image.qcow2")
    host.call("qemu-io", "-c", f"write -P {octet} 1M 4M", place / "image.qcow2")
    digest = hashlib.sha256((place / "image.qcow2").read_bytes()).hexdigest()
    (place / "image.json").write_text(json.dumps({"name": name, "sha256": digest}))
    return place


def content(host, disk):
    """sha256sum of what a guest would read of the disk."""
    raw = host.place / "content.raw"
    host.call("qemu-img", "convert", "-O", "raw", disk, raw)
    return host.call("sha256sum", raw).stdout.split()[0]


def test_an_export_without_its_image_wants_the_same_image(host):
    image = of_dre_base(host, "img", 5)
    host.dre("create", "s1", "--base", "img", "--memory", "64M", "--ip", "none", "--disk", "16M")
    try:
        disk = home(host) / "disk.qcow2"
        host.call("qemu-io", "-c", "write -P 7 2M 64k", "-c", "write -z 3M 64k", "-c", "write -P 9 6M 64k", disk)
        host.dre("snapshot", "save", "s1", "early")
        early = content(host, disk)
        host.call("qemu-io", "-c", "write -P 8 4M 64k", disk)
        for name, more in (
            ("whole", ()),
            ("part", ("--without-image",)),
            ("past", ("--without-image", "--tag", "early")),
        ):
            host.dre("export", "s1", host.place / name, "--no-compress", *more)
        assert (host.place / "part").stat().st_size * 4 < (host.place / "whole").stat().st_size
        for name, wanted in (("whole", content(host, disk)), ("part", content(host, disk)), ("past", early)):
            host.dre("import", "--as", "s2", host.place / name)
            assert content(host, home(host, "s2") / "disk.qcow2") == wanted, name
            told = json.loads(host.call("qemu-img", "info", "--output=json", home(host, "s2") / "disk.qcow2").stdout)
            assert told.get("full-backing-filename") == (None if name == "whole" else str(image / "image.qcow2"))
            host.dre("destroy", "s2")
        with tarfile.open(host.place / "part") as tar:
            tar.extract("disk.qcow2", host.place / "out")
        told = json.loads(host.call("qemu-img", "info", "--output=json", host.place / "out/disk.qcow2").stdout)
        assert "backing-filename" not in told
        host.dre("destroy", "s1")
        of_dre_base(host, "img", 6)
        refused = host.dre("import", host.place / "part", check=False)
        assert (refused.returncode, "is another one here" in refused.stderr) == (3, True), refused.stderr
        shutil.rmtree(image)
        refused = host.dre("import", host.place / "part", check=False)
        assert (refused.returncode, "is not here" in refused.stderr) == (3, True), refused.stderr
        assert host.virsh("list", "--all", "--name").split() == []
        host.dre("create", "s1", "--base", host.small(), "--memory", "64M", "--ip", "none")
        refused = host.dre("export", "s1", host.place / "part", "--without-image", check=False)
        assert (refused.returncode, "not an image of dre-base" in refused.stderr) == (1, True), refused.stderr
    finally:
        host.dre("destroy", "--force", "s1", "s2", check=False)
        shutil.rmtree(image, ignore_errors=True)


def warmed(host, image):
    """s1 on a disk between it and its image, as after a warm start: a chain of three."""
    between = host.place / "state/sys/warm/key/disk.qcow2"
    between.parent.mkdir(parents=True, exist_ok=True)
    host.call("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image / "image.qcow2", between)
    host.call("qemu-io", "-c", "write -P 3 2M 1M", "-c", "write -z 4M 64k", between)
    disk = home(host) / "disk.qcow2"
    host.call("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", between, disk)
    # Of the image, of the disk between, and of none: written over, and made zero.
    words = ["write -P 7 1M 64k", "write -P 8 2M 64k", "write -z 2560k 64k", "write -z 3M 64k", "write -P 9 6M 64k"]
    host.call("qemu-io", *(word for line in words for word in ("-c", line)), disk)
    return disk


def test_an_export_of_what_began_warm_wants_its_image_alone(host):
    image = of_dre_base(host, "img", 5)
    host.dre("create", "s1", "--base", "img", "--memory", "64M", "--ip", "none")
    try:
        disk = warmed(host, image)
        host.dre("snapshot", "save", "s1", "early")
        early = content(host, disk)
        host.call("qemu-io", "-c", "write -P 6 4608k 64k", disk)
        wanted = content(host, disk)
        assert wanted != early
        refused = host.dre("export", "s1", host.place / "past", "--without-image", "--tag", "early", check=False)
        assert (refused.returncode, "warm start" in refused.stderr) == (1, True), refused.stderr
        assert sorted(path.name for path in home(host).iterdir()) == ["disk.qcow2", "system.json"]
        host.dre("export", "s1", host.place / "part", "--without-image", "--no-compress")
        host.dre("export", "s1", host.place / "whole", "--no-compress")
        host.dre("export", "s1", host.place / "past", "--no-compress", "--tag", "early")
        assert (host.place / "part").stat().st_size * 2 < (host.place / "whole").stat().st_size
        assert content(host, disk) == wanted  # the system itself is as it was
        assert host.virsh("snapshot-list", "s1", "--name").split() == ["early"]
        host.dre("destroy", "s1")
        shutil.rmtree(host.place / "state/sys/warm")  # of this host alone: what comes back does not know it
        for name, digest, below in (("part", wanted, 1), ("whole", wanted, 0), ("past", early, 0)):
            host.dre("import", "--as", "s2", host.place / name)
            assert content(host, home(host, "s2") / "disk.qcow2") == digest, name
            words = ("qemu-img", "info", "--backing-chain", "--output=json", home(host, "s2") / "disk.qcow2")
            told = json.loads(host.call(*words).stdout)
            assert [one["filename"] for one in told[1:]] == [str(image / "image.qcow2")][:below]
            host.dre("destroy", "s2")
    finally:
        host.dre("destroy", "--force", "s1", "s2", check=False)
        for path in (image, host.place / "state/sys/warm"):
            shutil.rmtree(path, ignore_errors=True)
