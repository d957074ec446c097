# SPDX-License-Identifier: Apache-2.0
"""Where the path of the apps is btrfs, a snapshot is a subvolume, undo and all else are as elsewhere, and a clone
shares its blocks.

The witnesses are btrfs(8), tar with sha256sum by the recipe of the man page, and strace, which kills at the Nth call
that changes a name or a subvolume.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import app_ground
import pytest
import test_app_copy_survives_kill as kills
from app_ground import Ground

NAME, OTHER = "t-btrfs", "t-btrfs-two"
LARGE = 48 << 20
RECIPE = """tar --create --format=pax --sort=name --numeric-owner --sparse --sparse-version=0.0 --xattrs \
--pax-option='delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f' \
--xattrs-include='user.*' --xattrs-include=security.capability --xattrs-include='system.posix_acl_*' \
--xattrs-include=trusted.overlay.opaque --xattrs-include=trusted.overlay.redirect -C "$0" -f - . | sha256sum"""


@pytest.fixture
def disk(tmp_path):
    """A btrfs of its own."""
    if (
        "btrfs" not in pathlib.Path("/proc/filesystems").read_text()
        and subprocess.run(["modprobe", "-q", "btrfs"]).returncode
    ):
        pytest.skip("this kernel has no btrfs")
    image = tmp_path / "disk.img"
    place = pathlib.Path(tempfile.mkdtemp(prefix="t-btrfs", dir="/var/tmp"))
    place.chmod(0o711)  # below tmp_path only root may pass, and so no unprivileged app
    with image.open("wb") as stream:
        stream.truncate(400 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)
    place.rmdir()


@pytest.fixture
def world(settings, disk, tmp_path):
    """dre-app on the btrfs; nothing is started. One app, whose delta has what a copy may lose."""
    (disk / "lxc").mkdir()
    (tmp_path / "state/base/small/bin").mkdir(parents=True)
    (tmp_path / "state/base/small/bin/sh").touch()
    (disk / "state").mkdir()
    (tmp_path / "state/base").rename(tmp_path / "base")
    shutil.copytree(tmp_path / "base", disk / "state/base")
    made = kills.World(settings(DRE_APP_LXC_PATH=disk / "lxc", DRE_CORE_STATE_DIR=disk / "state"), disk)
    made.first = "web1"
    made("create", "web1", "--base", "small", "--ip", "none", "--privileged")
    delta = disk / "lxc/web1/delta"
    (delta / "state").write_text("good\n")
    (delta / "opaque").mkdir(mode=0o750)
    os.setxattr(delta / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(delta / "state", "user.note", b"kept")
    os.link(delta / "state", delta / "opaque/link")
    os.mknod(delta / "gone", 0o020000, 0)
    os.chown(delta / "opaque", 1000, 1001)
    os.utime(delta / "opaque", ns=(1, 1_700_000_000_123_456_789))
    return made


def used(place):
    subprocess.run(["sync", "-f", place], check=True)
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def btrfs(*argv):
    return subprocess.run(["btrfs", *argv], capture_output=True, text=True, check=True).stdout


def subvolumes(place, *options):
    """The paths of the subvolumes, as btrfs(8) lists them."""
    listed = btrfs("subvolume", "list", *options, place).splitlines()
    return sorted(line.split(" path ", 1)[1] for line in listed)


def by_hand(delta):
    done = subprocess.run(["sh", "-c", RECIPE, delta], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def saved_in(disk, name, tag):
    return disk / "state/app/state" / name / "snapshot" / tag


@pytest.mark.parametrize("ids", ["--privileged", "--unprivileged"])
def test_snapshot_undo_and_clone(run, settings, disk, tmp_path, ids):
    tree = app_ground.make_tree(tmp_path / "tree")
    with Ground(run, settings, DRE_APP_LXC_PATH=disk / "lxc", DRE_CORE_STATE_DIR=disk / "state") as app:
        (disk / "lxc").mkdir()
        app("create", NAME, "--base", tree, "--ip", "none", ids)
        assert subvolumes(disk) == [f"lxc/{NAME}"]
        delta = disk / "lxc" / NAME / "delta"
        assert (delta.parent.stat().st_mode & 0o7777, delta.stat().st_mode & 0o7777) == (0o710, 0o755)
        (delta / "large").write_bytes(os.urandom(LARGE))
        with (delta / "holes").open("wb") as stream:
            stream.seek(1 << 22)
            stream.write(b"end")
        app("start", NAME)
        app("exec", NAME, "--", "sh", "-c", "rm /etc/release; echo good >/state")
        before = used(disk)
        app("snapshot", "save", NAME, "good", "--freeze")
        assert app("status", NAME) == "running"
        assert used(disk) - before < LARGE / 4
        assert subvolumes(disk, "-r") == [f"state/app/state/{NAME}/snapshot/good/tree"]
        digest = app("digest", NAME)
        listed = json.loads(app("snapshot", "list", NAME, "--json"))
        assert digest == listed["digest"] == by_hand(saved_in(disk, NAME, "good") / "tree/delta")
        app("exec", NAME, "--", "sh", "-c", "rm /large; echo bad >/state; echo back >/etc/release")
        app("undo", NAME, "good")
        assert app("digest", NAME) == digest == by_hand(delta)
        assert app("exec", NAME, "--", "sh", "-c", "cat /state; test -e /etc/release || echo gone") == "good\ngone"
        app("stop", NAME, "--timeout", "1")
        assert used(disk) - before < LARGE / 4
        app("clone", NAME, OTHER)
        assert used(disk) - before < LARGE / 4
        assert (disk / "lxc" / OTHER / "delta/large").read_bytes() == (delta / "large").read_bytes()
    assert subvolumes(disk) == []


def test_everything_that_reads_a_snapshot(world, disk):
    delta = disk / "lxc/web1/delta"
    digest = by_hand(delta)
    world("snapshot", "save", "web1", "good", "--description", "before")
    assert world("digest", "web1") == digest
    with pytest.raises(OSError, match="Read-only file system"):
        (saved_in(disk, "web1", "good") / "tree/delta/state").write_text("forged\n")
    (delta / "state").write_text("bad\n")
    world("clone", "--tag", "good", "web1", "web2")
    assert by_hand(disk / "lxc/web2/delta") == digest
    world("export", "--tag", "good", "--snapshots", "--no-compress", "web1", disk / "web1.tar")
    packed = subprocess.run(["tar", "-xOf", disk / "web1.tar", "snapshot/good/delta.tar"], stdout=subprocess.PIPE)
    summed = subprocess.run(["sha256sum"], input=packed.stdout, capture_output=True, check=True).stdout.decode()
    listed = json.loads(world("snapshot", "list", "web1", "--json"))
    assert summed.split()[0] == listed["digest"] == digest and listed["size"] == len(packed.stdout)
    world("import", "--as", "web3", "--allow-privileged", disk / "web1.tar")
    assert by_hand(disk / "lxc/web3/delta") == digest
    world("rename", "web1", "shop")
    world("snapshot", "load", "shop", "good")
    assert by_hand(disk / "lxc/shop/delta") == digest
    (disk / "lxc/web3/delta/more").touch()
    world("snapshot", "load", "web3", "good")  # came as an archive, and stays one
    assert by_hand(disk / "lxc/web3/delta") == digest
    world("snapshot", "save", "shop", "later")
    assert "shop good" in world("snapshot", "prune", "--keep", "1", "shop")
    assert subvolumes(disk, "-r") == ["state/app/state/shop/snapshot/later/tree"]
    for name in ("shop", "web2", "web3"):
        world("destroy", name)
    assert subvolumes(disk) == []
    assert os.listdir(disk / "lxc") == os.listdir(disk / "state/app/state") == []


def test_forged_snapshot_is_refused(world, disk):
    world("snapshot", "save", "web1", "good")
    tree = saved_in(disk, "web1", "good") / "tree"
    btrfs("property", "set", tree, "ro", "false")
    (tree / "delta/state").write_text("evil\n")
    done = world.run("snapshot", "load", "web1", "good")
    assert done.returncode == 1 and "is damaged" in done.stderr
    assert (disk / "lxc/web1/delta/state").read_text() == "good\n"


def test_snapshots_elsewhere_are_archives(world, disk, settings, tmp_path):
    (tmp_path / "state").rmdir()
    shutil.copytree(disk / "state", tmp_path / "state")
    world.config = settings(DRE_APP_LXC_PATH=disk / "lxc")
    world("snapshot", "save", "web1", "good")
    assert sorted(os.listdir(tmp_path / "state/app/state/web1/snapshot/good")) == ["delta.tar", "meta.json"]
    assert subvolumes(disk) == ["lxc/web1"]


@pytest.fixture
def killed(world, disk):
    """Run dre-app, killed at one of its changes after the other, with the names and tags there are after each."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; packaging/install-tools check brings it")

    def after(*argv):
        for number in kills.tried():
            more = world.killed_at(number, *argv)
            world("recover")
            home = disk / "state/app/state"
            names, tags = (
                sorted(os.listdir(home)),
                sorted(f"{path.parent.parent.name} {path.name}" for path in home.glob("*/snapshot/*")),
            )
            kept = ["state/app/state/{}/snapshot/{}/tree".format(*tag.split()) for tag in tags]
            assert names == world.names() == sorted(os.listdir(disk / "lxc"))
            assert subvolumes(disk) == [*(f"lxc/{name}" for name in names), *kept]
            if not more:
                assert number > 2
                return
            yield names, tags

    return after


def test_killed_while_a_snapshot_is_saved_loaded_or_deleted(world, disk, killed):
    digest = world("digest", "web1")
    for _, tags in killed("snapshot", "save", "web1", "good"):
        assert tags in ([], ["web1 good"])
        if tags:  # killed after the last thing it had to do
            world("snapshot", "delete", "web1", "good")
    for _, tags in killed("snapshot", "load", "web1", "good"):
        assert tags == ["web1 good"]
        world.whole("web1", digest)
    for _, tags in killed("snapshot", "delete", "web1", "good"):
        if not tags:
            world("snapshot", "save", "web1", "good")
    world("snapshot", "save", "web1", "good")
    place = saved_in(disk, "web1", "good")
    place.rename(place.with_name(".good.gone"))  # killed just before the subvolume goes, which is no change of a name
    world("recover")
    assert subvolumes(disk) == ["lxc/web1"] and os.listdir(place.parent) == []
    world.whole("web1", digest)


def test_killed_while_it_is_made_or_destroyed(world, disk, killed):
    create = ("create", "web2", "--base", "small", "--ip", "none", "--privileged")
    for names, _ in killed(*create):
        assert names in (["web1"], ["web1", "web2"])
        if "web2" in names:
            world("destroy", "web2")
    world("snapshot", "save", "web2", "good")
    for names, tags in killed("destroy", "web2"):
        if "web2" in names:
            assert tags == ["web2 good"]
        else:
            world(*create)
            world("snapshot", "save", "web2", "good")
    assert world.names() == ["web1"]
