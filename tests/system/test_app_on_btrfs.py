# SPDX-License-Identifier: Apache-2.0
"""Where the path of the apps is btrfs, snapshots and undo are as elsewhere, and a clone shares its blocks."""

import os
import pathlib
import subprocess

import app_ground
import pytest
from app_ground import Ground

NAME, OTHER = "t-btrfs", "t-btrfs-two"
LARGE = 48 << 20


@pytest.fixture
def disk(tmp_path):
    """A btrfs of its own."""
    if (
        "btrfs" not in pathlib.Path("/proc/filesystems").read_text()
        and subprocess.run(["modprobe", "-q", "btrfs"]).returncode
    ):
        pytest.skip("this kernel has no btrfs")
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as stream:
        stream.truncate(400 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def used(place):
    subprocess.run(["sync", "-f", place], check=True)
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_snapshot_undo_and_clone(run, settings, disk, tmp_path):
    tree = app_ground.make_tree(tmp_path / "tree")
    with Ground(run, settings, DRE_APP_LXC_PATH=disk / "lxc", DRE_CORE_STATE_DIR=disk / "state") as app:
        (disk / "lxc").mkdir()
        app("create", NAME, "--base", tree, "--ip", "none", "--privileged")
        delta = disk / "lxc" / NAME / "delta"
        (delta / "large").write_bytes(os.urandom(LARGE))
        with (delta / "holes").open("wb") as stream:
            stream.seek(1 << 22)
            stream.write(b"end")
        app("start", NAME)
        app("exec", NAME, "--", "sh", "-c", "rm /etc/release; echo good >/state")
        app("snapshot", "save", NAME, "good", "--freeze")
        digest = app("digest", NAME)
        app("exec", NAME, "--", "sh", "-c", "rm /large; echo bad >/state; echo back >/etc/release")
        app("undo", NAME, "good")
        assert app("digest", NAME) == digest
        assert app("exec", NAME, "--", "sh", "-c", "cat /state; test -e /etc/release || echo gone") == "good\ngone"
        app("stop", NAME, "--timeout", "1")
        before = used(disk)
        app("clone", NAME, OTHER)
        assert used(disk) - before < LARGE / 4
        assert (disk / "lxc" / OTHER / "delta/large").read_bytes() == (delta / "large").read_bytes()
