# SPDX-License-Identifier: Apache-2.0
"""kill -9 of clone, rename and import after every single change of the file system: then one whole app or the other.

strace kills, at the Nth system call that changes a name; with DRE_KILLS=50 all moments are tried, else every third.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess

import pytest
from conftest import environment, program

KILLS = int(os.environ.get("DRE_KILLS", "2"))
CALLS = "mkdir,rename,unlink,unlinkat,rmdir,symlink,?renameat2,?mkdirat"


class World:
    """dre-app on scratch directories; nothing is started."""

    def __init__(self, config, place):
        self.config, self.place = config, place
        self.home, self.lxc = place / "state/app/state", place / "lxc"

    def run(self, *argv, before=()):
        words = [*before, program("dre-app"), "--config", self.config, *map(str, argv)]
        return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)

    def __call__(self, *argv, code=0):
        done = self.run(*argv)
        assert done.returncode == code, f"{argv}: {done.returncode}: {done.stderr}"
        return done.stdout.strip()

    def killed_at(self, number, *argv):
        """Run dre-app, killed at its change *number*; False when it had fewer."""
        inject = f"inject={CALLS}:signal=KILL:when={number}"
        done = self.run(*argv, before=("strace", "-qq", "-o", self.place / "trace", "-e", inject))
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode != 0

    def names(self):
        return self("list").split()[::4]

    def whole(self, name, digest):
        """The app is there, with nothing of another beside it."""
        assert self("digest", name) == digest
        assert not (self.home / name / "intent.json").exists()
        assert f"{self.lxc}/{name}/rootfs" in (self.lxc / name / "config").read_text()
        assert sorted(os.listdir(self.lxc / name)) == sorted(os.listdir(self.lxc / self.first))


@pytest.fixture
def world(settings, tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; packaging/install-tools check brings it")
    (tmp_path / "lxc").mkdir()
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/sh").touch()
    made = World(settings(DRE_APP_LXC_PATH=tmp_path / "lxc"), tmp_path)
    made.first = "web1"
    made("create", "web1", "--base", tmp_path / "tree", "--ip", "none", "--privileged")
    (tmp_path / "lxc/web1/delta/state").write_text("good\n")
    made("snapshot", "save", "web1", "good")
    return made


def tried():
    """The moments, from the first on, without an end."""
    return itertools.count(1) if KILLS >= 50 else itertools.count(random.randint(1, 3), 3)


def test_rename(world):
    digest, seen = world("digest", "web1"), set()
    asked = itertools.cycle((("status", "web1"), ("status", "shop"), ("recover",), ("rename", "web1", "shop")))
    for number in tried():
        if not world.killed_at(number, "rename", "web1", "shop"):
            break
        world.run(*next(asked))
        world("recover")
        (name,) = world.names()
        seen.add(name)
        world.first = name
        world.whole(name, digest)
        assert os.listdir(world.home) == os.listdir(world.lxc) == [name]
        assert world("snapshot", "list", name).startswith("good ")
        if name == "shop":
            world("rename", "shop", "web1")
    assert number > 8 and seen == {"web1", "shop"}
    assert world.names() == ["shop"]


def test_clone(world):
    digest = world("digest", "web1")
    for number in tried():
        if not world.killed_at(number, "clone", "web1", "web2"):
            break
        world("recover")
        if world.names() != ["web1"]:  # killed after the last thing it had to do
            world("destroy", "web2")
        world.whole("web1", digest)
        assert (os.listdir(world.home), os.listdir(world.lxc)) == (["web1"], ["web1"])
    assert number > 8
    world.whole("web2", digest)


def test_import(world):
    tree = world.home.parent.parent / "base/small"
    tree.parent.mkdir()
    (world.place / "tree").rename(tree)
    world("destroy", "web1")
    world("create", "web1", "--base", "small", "--ip", "none", "--privileged")
    (world.lxc / "web1/delta/state").write_text("good\n")
    digest = world("digest", "web1")
    world("snapshot", "save", "web1", "good")
    file = world.place / "web1.tar"
    world("export", "--snapshots", "--no-compress", "web1", file)
    for number in tried():
        if not world.killed_at(number, "import", "--allow-privileged", "--as", "web2", file):
            break
        world("recover")
        if world.names() != ["web1"]:  # killed after the last thing it had to do
            world("destroy", "web2")
        world.whole("web1", digest)
        assert (os.listdir(world.home), os.listdir(world.lxc)) == (["web1"], ["web1"])
    assert number > 8
    world.whole("web2", digest)
    assert world("snapshot", "list", "web2") == world("snapshot", "list", "web1")
