# SPDX-License-Identifier: Apache-2.0
"""Every package can be installed on Ubuntu 24.04, as far as dependencies go, by dose-debcheck's own solver."""

import re
import subprocess

import pytest
from conftest import ROOT

NOBLE = ROOT / "packaging/ubuntu-24.04.Packages"


@pytest.fixture
def ours(tmp_path):
    """What the repository offers for noble."""
    (index,) = (ROOT / "repo/dists/noble/universe").glob("binary-*/Packages")
    copy = tmp_path / "Packages"
    copy.write_bytes(index.read_bytes())
    return copy


def debcheck(packages, background=NOBLE):
    """dose-debcheck's exit status and report."""
    done = subprocess.run(
        ["dose-debcheck", "--failures", "--explain", "--deb-native-arch=amd64", "--bg", background, "--fg", packages],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_package_resolves(ours):
    status, report = debcheck(ours)
    assert status == 0, report
    assert re.search(r"foreground-packages: [1-9]", report), report


def test_a_missing_dependency_is_found(ours):
    ours.write_text(re.sub(r"^Depends: ", "Depends: criu, ", ours.read_text(), flags=re.MULTILINE))
    status, report = debcheck(ours)
    assert status != 0
    assert "criu" in report


def test_the_record_holds_nothing_superfluous(ours):
    wanted = set(re.findall(r"[a-z0-9.+-]+", " ".join(re.findall(r"^Depends: (.*)$", ours.read_text(), re.MULTILINE))))
    assert set(re.findall(r"^Package: (.*)$", NOBLE.read_text(), re.MULTILINE)) <= wanted
