# SPDX-License-Identifier: Apache-2.0
"""dre-base makes real trees from the archive; the tree's own programs, dpkg and /proc are the witnesses."""

import hashlib
import json
import os
import pathlib
import random
import subprocess
import time

import pytest
from conftest import environment, program

FULL = os.environ.get("DRE_FULL") == "1"
full = pytest.mark.skipif(not FULL, reason="takes a minute: DRE_FULL=1")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def archive_answers():
    done = subprocess.run(["apt-get", "update", "-qq"], capture_output=True, timeout=120, check=False)
    return done.returncode == 0


class Place:
    def __init__(self, directory):
        self.directory = directory
        self.base = directory / "state/base"
        self.conf = directory / "dre.conf"
        self.conf.write_text(
            f'DRE_CORE_STATE_DIR="{directory}/state"\n'
            f'DRE_CORE_RUN_DIR="{directory}/run"\n'
            f'DRE_APP_LXC_PATH="{directory}/lxc"\n'
        )

    def argv(self, *argv):
        return [program("dre-base"), "--config", str(self.conf), *argv]

    def run(self, *argv, timeout=300):
        return subprocess.run(self.argv(*argv), capture_output=True, timeout=timeout, env=environment(), check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if not archive_answers():
        pytest.skip("no Debian archive can be reached")
    return Place(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(place):
    """The tree `small`, and the seconds it took."""
    start = time.monotonic()
    done = place.run("--tree", "small", "--package", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    print(f"a tree took {time.monotonic() - start:.1f} s")
    return place.base / "small", time.monotonic() - start


def chroot(tree, *argv):
    return subprocess.run(
        ["chroot", tree, *argv], capture_output=True, timeout=60, env=environment(), check=True
    ).stdout


def nothing_left(place):
    """No process, no mount and no hidden directory of a build."""
    mounts = [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if str(place.base) in line]
    builds = subprocess.run(["pgrep", "-f", f"mmdebstrap.*{place.base}"], capture_output=True, check=False).stdout
    return (mounts, builds, [name for name in os.listdir(place.base) if name.startswith(".")])


def test_its_programs_run_and_its_packages_are_whole(made):
    tree, _ = made
    assert chroot(tree, "hello") == b"Hello, world!\n"
    assert chroot(tree, "dpkg", "--audit") == b""
    suite = subprocess.run(["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], capture_output=True, check=True)
    assert b"VERSION_CODENAME=" + suite.stdout in (tree / "etc/os-release").read_bytes()


def test_only_the_smallest_system_without_manuals_and_host_data(made):
    tree, _ = made
    documents = [path for path in (tree / "usr/share/doc").rglob("*") if path.is_file()]
    assert {path.name for path in documents} == {"copyright"}
    assert not [path for path in (tree / "usr/share/man").rglob("*") if path.is_file()]
    assert not (tree / "etc/hostname").exists()
    assert b"ii  systemd " not in chroot(tree, "dpkg", "-l")


def test_the_manifest_says_what_the_trees_own_dpkg_says(place, made):
    tree, _ = made
    manifest = json.loads((tree / "etc/dre-base.json").read_bytes())
    own = chroot(tree, "dpkg-query", "-W", "-f", "${binary:Package} ${Version}\n").decode().splitlines()
    assert manifest["packages"] == dict(line.split() for line in own)
    text = "".join(f"{line}\n" for line in sorted(own))
    assert manifest["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(place.run("list", "--json").stdout)["sha256"] == manifest["sha256"]


def test_a_second_call_does_nothing(place, made):
    tree, _ = made
    before = tree.stat().st_ino, (tree / "etc/dre-base.json").read_bytes()
    done = place.run("--tree", "small", "--package", "hello")
    assert (done.returncode, done.stderr) == (0, b"dre-base: small: already there\n")
    assert (tree.stat().st_ino, (tree / "etc/dre-base.json").read_bytes()) == before


def test_check_finds_a_package_that_was_removed(place, made):
    tree, _ = made
    assert place.run("check", "small").returncode == 0
    status = (tree / "var/lib/dpkg/status").read_bytes()
    chroot(tree, "dpkg", "--purge", "hello")
    try:
        done = place.run("check", "small")
        assert (done.returncode, b"small: missing: hello: " in done.stdout) == (1, True)
    finally:
        (tree / "var/lib/dpkg/status").write_bytes(status)


@pytest.mark.parametrize("words", [["--package", "no-such-package-at-all"], ["--suite", "nosuchsuite"]])
def test_what_the_archive_does_not_have_is_said_and_leaves_nothing(place, words):
    done = place.run("--tree", "other", *words)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert words[1].encode() in done.stderr
    assert not (place.base / "other").exists()
    assert nothing_left(place) == ([], b"", [])


def test_an_unreachable_mirror(place):
    done = place.run("--tree", "other", "--mirror", "http://127.0.0.1:9/debian")
    assert (done.returncode, b"127.0.0.1:9" in done.stderr) == (1, True)
    assert not (place.base / "other").exists()


def test_a_mounted_overlay_keeps_its_tree(place, made, tmp_path):
    tree, _ = made
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tree},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "root"], check=True)
    try:
        for argv in (["delete", "small"], ["--tree", "small", "--replace"]):
            done = place.run(*argv)
            assert (done.returncode, str(tmp_path / "root").encode() in done.stderr) == (1, True)
    finally:
        subprocess.run(["umount", tmp_path / "root"], check=True)
    assert (tree / "usr/bin/dpkg").exists()


@pytest.mark.parametrize("replace", [False, pytest.param(True, marks=full)])
def test_killed_at_any_moment_there_is_no_half_tree(place, made, replace):
    seconds = made[1] if FULL else min(made[1], 10)
    name, argv = ("small", ["--replace"]) if replace else ("killed", [])
    for _ in range(int(os.environ.get("DRE_KILLS", "1"))):
        child = subprocess.Popen(place.argv("--tree", name, *argv), env=environment())
        time.sleep(random.uniform(0, seconds))  # the moment is what is tested, not a wait for something
        child.kill()
        if child.wait() == 0:
            continue  # it was faster than before; what it made is whole
        there = (place.base / name).exists()
        assert there or not replace
        assert place.run("check", name).returncode == (0 if there else 3)
        assert nothing_left(place) == ([], b"", [])
        if there and not replace:
            assert place.run("delete", name).returncode == 0


def test_delete_removes_all_of_it(place, made):
    for name in [row.split()[0].decode() for row in place.run("list").stdout.splitlines()]:
        assert place.run("delete", name).returncode == 0
        assert place.run("check", name).returncode == 3
    assert os.listdir(place.base) == []
