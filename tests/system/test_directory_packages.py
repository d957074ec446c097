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


@pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="builds packages: DRE_FULL=1")
def test_one_directory(tmp_path):
    files = subprocess.run([ROOT / "packaging/files"], capture_output=True, text=True, check=True).stdout.split("\n")
    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["cp", "--parents", "-t", copy, *filter(None, files)], cwd=ROOT, check=True)
    done = subprocess.run(
        ["make", "-C", copy / "dbox", "deb"],
        env={**environment(), "DEB_BUILD_PROFILES": "nocheck"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name.partition("_")[0] for path in (copy / "dist").iterdir()}
    assert made == set(packages_of("dbox"))
