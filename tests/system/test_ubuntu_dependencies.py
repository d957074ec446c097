# SPDX-License-Identifier: Apache-2.0
"""Every package can be installed on Ubuntu 24.04 and 26.04 as far as dependencies go, says dose-debcheck's solver."""

import re
import subprocess

import pytest
from conftest import ROOT

RECORDS = {
    "noble": ROOT / "packaging/ubuntu-24.04.Packages",
    "resolute": ROOT / "packaging/ubuntu-26.04.Packages",
}


@pytest.fixture(params=RECORDS)
def release(request):
    """The name of a release."""
    return request.param


@pytest.fixture
def background(release):
    """What is recorded of it."""
    return RECORDS[release]


@pytest.fixture
def ours(tmp_path, release):
    """What the repository offers for it."""
    (index,) = (ROOT / f"repo/dists/{release}/universe").glob("binary-*/Packages")
    copy = tmp_path / "Packages"
    copy.write_bytes(index.read_bytes())
    return copy


def debcheck(packages, background):
    """dose-debcheck's exit status and report."""
    done = subprocess.run(
        ["dose-debcheck", "--failures", "--explain", "--deb-native-arch=amd64", "--bg", background, "--fg", packages],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_package_resolves(ours, background):
    status, report = debcheck(ours, background)
    assert status == 0, report
    assert re.search(r"foreground-packages: [1-9]", report), report


def test_a_missing_dependency_is_found(ours, background):
    ours.write_text(re.sub(r"^Depends: ", "Depends: no-such, ", ours.read_text(), flags=re.MULTILINE))
    status, report = debcheck(ours, background)
    assert status != 0
    assert "no-such" in report


def test_the_record_holds_nothing_superfluous(ours, background):
    wanted = set(re.findall(r"[a-z0-9.+-]+", " ".join(re.findall(r"^Depends: (.*)$", ours.read_text(), re.MULTILINE))))
    assert set(re.findall(r"^Package: (.*)$", background.read_text(), re.MULTILINE)) <= wanted
