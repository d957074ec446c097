# SPDX-License-Identifier: Apache-2.0
"""Parts of dre-base that make no image: keys, identifiers, wishes, what is kept, and who uses an image."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from dre import conf
from dre.errors import NotFoundError, UsageError

SHARE = "/usr/share/dre-base" if os.environ.get("DRE_TEST_INSTALLED") == "1" else str(ROOT / "dre-base")
sys.path.insert(0, SHARE)
from baselib import cache, disk, images, keys, usage  # noqa: E402
from baselib.store import Store  # noqa: E402
from baselib.wish import Wish  # noqa: E402

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@pytest.fixture
def place(settings, tmp_path):
    (tmp_path / "state/base").mkdir(parents=True)
    return Store(conf.load(settings()), tmp_path / "state/base")


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")
def test_keys_that_ssh_keygen_makes(tmp_path, kind):
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a comment", "-f", tmp_path / "key"], check=True)
    line = (tmp_path / "key.pub").read_text()
    (tmp_path / "both").write_text(f"# mine\n\n{line}{KEY}\n")
    assert keys.read(tmp_path / "both") == [line.strip(), KEY]
    with pytest.raises(UsageError, match="a private key"):
        keys.read(tmp_path / "key")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no key\n",
        "hello\n",
        KEY[:-4] + "\n" + KEY[:40],
        KEY.replace("ssh-ed25519", "ssh-rsa"),
        f'command="reboot" {KEY}',
        f"{KEY} a\x00b",
        f"{KEY}\nroot:x:0:0",
        "ssh-ed25519 !!!!",
    ],
)
def test_what_is_no_public_key(tmp_path, text):
    (tmp_path / "key").write_text(text)
    with pytest.raises(UsageError):
        keys.read(tmp_path / "key")


def test_a_file_of_keys_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError):
        keys.read(tmp_path / "key")


def test_identifiers_are_random_or_all_from_the_seed():
    assert disk.Ids(None).uuid("root") != disk.Ids(None).uuid("root")
    assert disk.Ids("x").uuid("root") == disk.Ids("x").uuid("root")
    assert len({disk.Ids(seed).uuid(what) for seed in "xy" for what in ("root", "disk")}) == 4


@pytest.mark.parametrize("text", ["", "-1", "x", "1.5", "99999999999", "٣"])
def test_an_epoch_that_is_no_time(monkeypatch, text):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError):
        images.source_date_epoch()


def test_a_disk_that_no_system_fits_into():
    with pytest.raises(UsageError):
        images.ImageWish(Wish("bookworm"), 100 << 20)


def test_what_is_kept_is_bounded_and_the_dearest_goes_last(place, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 100_000)
    kept = cache.Cache(place.conf, place.directory)
    archives = tmp_path / "archives"
    archives.mkdir()
    for number in range(5):
        (archives / f"p{number}_1_all.deb").write_bytes(bytes(20_000))
        os.utime(archives / f"p{number}_1_all.deb", (number, number))
    kept.collect(archives)
    assert sorted(os.listdir(kept.directory)) == [f"p{number}_1_all.deb" for number in range(5)]
    assert os.listdir(archives) == []
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(40_000))
    kept.keep(["bookworm"], root)
    names = sorted(os.listdir(kept.directory))
    assert names[-2:] == ["p3_1_all.deb", "p4_1_all.deb"] and len(names) == 3
    with kept.root(["bookworm"]) as found:
        assert (found / "file").stat().st_size == 40_000
        kept.forget(["bookworm"])  # somebody else found it outdated
        assert len(list(kept.directory.glob("*.gone/file"))) == 1
    with kept.root(["bookworm"]) as found:
        assert found is None
    kept.collect(archives)
    assert list(kept.directory.glob("*.gone")) == []


def test_packages_that_were_kept_are_lent(place, tmp_path):
    kept = cache.Cache(place.conf, place.directory)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/a_1_all.deb").write_bytes(b"a")
    kept.collect(tmp_path / "one")
    kept.lend(tmp_path / "two")
    kept.lend(tmp_path / "two")
    assert (tmp_path / "two/a_1_all.deb").read_bytes() == b"a"


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img (qemu-utils)")
@pytest.mark.parametrize("quote", ["'", '"'])
def test_domains_of_libvirt_that_use_an_image(place, tmp_path, monkeypatch, quote):
    image = place.directory / "one"
    image.mkdir()
    domains = tmp_path / "qemu"
    domains.mkdir()
    monkeypatch.setattr(usage, "LIBVIRT", (domains, tmp_path / "nothing"))
    elsewhere = tmp_path / "a & b.qcow2"
    for argv in (
        ["-f", "qcow2", image / "image.qcow2", "1M"],
        ["-f", "qcow2", "-b", image / "image.qcow2", "-F", "qcow2", elsewhere],
    ):
        subprocess.run(["qemu-img", "create", *argv], check=True, capture_output=True)
    assert usage.users(place, "one") == []
    for name, path in (
        ("overlay", str(elsewhere).replace("&", "&amp;")),
        ("itself", image / "image.qcow2"),
        ("neighbour", f"{image}-2/image.qcow2"),
        ("gone", tmp_path / "gone.qcow2"),
    ):
        (domains / f"{name}.xml").write_text(f"<disk><source file={quote}{path}{quote}/></disk>")
    (domains / "kernel.xml").write_text(f"<kernel>{image}/vmlinuz</kernel>")
    assert usage.users(place, "one") == ["itself", "kernel", "overlay"]


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img (qemu-utils)")
def test_an_overlay_that_is_its_own_base_ends(place, tmp_path):
    image = place.directory / "one"
    image.mkdir()
    (image / "image.qcow2").write_bytes(b"")
    over = tmp_path / "state/sys/state/web/disk.qcow2"
    over.parent.mkdir(parents=True)
    for argv in (["create", "-f", "qcow2", over, "1M"], ["rebase", "-u", "-b", over, "-F", "qcow2", over]):
        subprocess.run(["qemu-img", *argv], check=True, capture_output=True)
    assert usage.users(place, "one") == []
