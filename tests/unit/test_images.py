# SPDX-License-Identifier: Apache-2.0
"""What is an image that a system can be based on; qemu-img makes the files."""

import fcntl
import json
import shutil
import subprocess

import pytest
from dre import conf, images, trees
from dre.errors import NotFoundError, UsageError

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img (qemu-utils)")


@pytest.fixture
def settings(settings):
    return conf.load(settings())


@pytest.fixture
def store(tmp_path):
    (tmp_path / "state/base").mkdir(parents=True)
    return tmp_path / "state/base"


def qemu_img(*argv):
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, timeout=30)


def make(directory, kernel=True, **changed):
    directory.mkdir()
    qemu_img("create", "-f", "qcow2", directory / "image.qcow2", "10M")
    manifest = {"name": directory.name, "cmdline": "root=LABEL=x rw", "imported": not kernel, **changed}
    (directory / "image.json").write_text(json.dumps(manifest))
    for name in ("vmlinuz", "initrd.img") if kernel else ():
        (directory / name).write_bytes(b"x")
    return directory


def test_a_name_is_looked_for_in_the_store(settings, store):
    image = make(store / "one")
    found = images.find(settings, "one")
    assert (found.name, found.directory, found.disk) == ("one", image, image / "image.qcow2")
    assert (found.kernel, found.initrd) == (image / "vmlinuz", image / "initrd.img")
    assert (found.cmdline, found.format, found.size) == ("root=LABEL=x rw", "qcow2", 10 << 20)
    assert found.manifest["name"] == "one"
    assert images.find(settings, str(image)) == found


def test_without_kernel_it_boots_by_itself(settings, store):
    make(store / "one", kernel=False)
    found = images.find(settings, "one")
    assert (found.kernel, found.initrd, found.cmdline) == (None, None, None)


def test_an_image_in_use_is_held_and_looked_at_again(settings, store):
    image = make(store / "one")
    found = images.find(settings, "one")
    (image / "image.json").write_text(json.dumps({"name": "one", "cmdline": "replaced"}))
    with images.used(settings, found) as now:
        assert now.cmdline == "replaced"
        lock = trees.lock_file(settings, image)
        with lock.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(image)
    with pytest.raises(NotFoundError, match="just been deleted"), images.used(settings, found):
        pass


def test_a_path_is_a_disk_without_kernel(settings, tmp_path):
    qemu_img("create", "-f", "qcow2", tmp_path / "disk.img", "3M")
    found = images.find(settings, str(tmp_path / "disk.img"))
    assert (found.name, found.disk, found.kernel) == ("disk", tmp_path / "disk.img", None)
    assert (found.format, found.size, found.manifest) == ("qcow2", 3 << 20, {})


@pytest.mark.parametrize("offset, octets", [(510, b"\x55\xaa"), (0x438, b"\x53\xef"), (0x10040, b"_BHRfS_M")])
def test_a_raw_disk_has_a_partition_table_or_a_file_system(settings, tmp_path, offset, octets):
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(1 << 20)
        stream.seek(offset)
        stream.write(octets)
    assert images.find(settings, str(disk)).format == "raw"


@pytest.mark.parametrize("text", ["nosuch", "/nonexistent/disk.qcow2", "./nosuch"])
def test_what_is_not_there(settings, text):
    with pytest.raises(NotFoundError):
        images.find(settings, text)


@pytest.mark.parametrize("text", ["", "a:b", "-x", "json:{}"])
def test_what_is_no_name(settings, text):
    with pytest.raises(UsageError):
        images.find(settings, text)


@pytest.mark.parametrize(
    "octets", [b"", b"hello\n", b"QFI\xfb" + bytes(500), bytes(1 << 20)], ids=["empty", "text", "qcow2", "zeroes"]
)
def test_what_is_no_image(settings, tmp_path, octets):
    (tmp_path / "x").write_bytes(octets)
    with pytest.raises(UsageError):
        images.find(settings, str(tmp_path / "x"))


@pytest.mark.parametrize("path", ["/dev/zero", "/etc"])
def test_a_device_or_another_directory_is_no_image(settings, path):
    with pytest.raises(UsageError):
        images.find(settings, path)


@pytest.mark.parametrize(
    "argv",
    [
        ["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "x"],
        ["-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "x", "10M"],
        ["-f", "qed", "-b", "base.qcow2", "-F", "qcow2", "x"],
        ["-f", "vmdk", "-o", "subformat=monolithicFlat", "x", "10M"],
        ["-f", "parallels", "x", "10M"],
    ],
)
def test_an_image_that_needs_another_file_or_is_of_another_format(settings, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-f", "qcow2", "base.qcow2", "10M")
    qemu_img("create", *argv)
    with pytest.raises(UsageError):
        images.find(settings, "./x")


def test_a_tree_is_told_from_an_image(settings, store):
    (store / "web/etc").mkdir(parents=True)
    (store / "web/etc/dre-base.json").write_text("{}")
    with pytest.raises(UsageError, match="a tree for apps"):
        images.find(settings, "web")


@pytest.mark.parametrize("content", ["", "[]", "\xff"])
def test_a_manifest_that_cannot_be_read(settings, store, content):
    (make(store / "one") / "image.json").write_text(content)
    with pytest.raises(UsageError, match="not a manifest"):
        images.find(settings, "one")


def test_a_disk_that_is_lost_or_of_another_format(settings, store):
    disk = make(store / "one") / "image.qcow2"
    qemu_img("create", "-f", "vdi", disk, "10M")
    with pytest.raises(UsageError, match="format vdi"):
        images.find(settings, "one")
    disk.unlink()
    with pytest.raises(UsageError, match="no such file"):
        images.find(settings, "one")
