# SPDX-License-Identifier: Apache-2.0
"""`make -C DIR deb` gives the packages of that directory and no others, also from a tree that git does not know."""

import os
import re
import subprocess

import pytest
from conftest import DIRECTORIES, ROOT, environment

PACKAGES = set(re.findall(r"^Package: (.*)$", (ROOT / "debian/control").read_text(), re.MULTILINE))


def packages_of(directory):
    """What the Makefile of *directory* says it makes."""
    return re.search(r"^DEBS = (.*)$", (ROOT / directory / "Makefile").read_text(), re.MULTILINE)[1].split()


def test_every_package_belongs_to_one_directory():
    # daware-mod has no commands: its one program is where the specification has it.
    ours = [package for directory in (*DIRECTORIES, "daware-mod") for package in packages_of(directory)]
    assert sorted([*ours, "dre"]) == sorted(PACKAGES)


@pytest.fixture
def copy(tmp_path):
    """A copy of the tree that git does not know."""
    files = subprocess.run([ROOT / "packaging/files"], capture_output=True, text=True, check=True).stdout.split("\n")
    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["cp", "--parents", "-t", copy, *filter(None, files)], cwd=ROOT, check=True)
    return copy


def make(*argv):
    """make(1), as it ended."""
    env = {**environment(), "DEB_BUILD_PROFILES": "nocheck"}
    return subprocess.run(["make", *argv], env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="builds packages: DRE_FULL=1")
def test_one_directory(copy):
    done = make("-C", copy / "dbox", "deb")
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name.partition("_")[0] for path in (copy / "dist").iterdir()}
    assert made == set(packages_of("dbox"))


@pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="packs the tree: DRE_FULL=1")
def test_the_source_package_for_a_release(copy):
    done = make("-C", copy, "source", "RELEASE=noble")
    assert done.returncode == 0, done.stdout + done.stderr
    (changes,) = (copy / "dist/noble").glob("*_source.changes")
    assert re.search(r"^Distribution: noble$", changes.read_text(), re.MULTILINE)
    assert re.search(r"^Version: [0-9.]+~ubuntu24\.04\.1$", changes.read_text(), re.MULTILINE)
    archive = changes.with_name(changes.name.replace("_source.changes", ".tar.xz"))
    listed = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True).stdout.splitlines()
    inside = {name.partition("/")[2] for name in listed}
    assert {"debian/po/ja.po", "debian/tests/control", "dre-core/dre/event.py"} <= inside


def test_a_release_that_is_none_of_ours_is_refused():
    done = make("-C", ROOT, "source", "RELEASE=buster")
    assert done.returncode == 2 and "usage: build-deb --source" in done.stderr
