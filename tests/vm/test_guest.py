# SPDX-License-Identifier: Apache-2.0
"""What the build machine cannot show: pure cgroup v2, systemd units and a stock kernel, in a guest booted once."""

import os
import pathlib
import re
import shutil
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import guest  # noqa: E402  (this ring's own module, beside the tests)


@pytest.fixture(scope="session")
def back(tmp_path_factory):
    """The job's directory after the one boot; the .debs of dist/ are installed in the guest."""
    if os.geteuid() != 0:
        pytest.skip("building the guest image needs root")
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no qemu-system-x86_64: apt-get install qemu-system-x86 qemu-utils")
    packages = sorted((ROOT / "dist").glob("*.deb"))
    assert packages, "no packages in dist/: run make deb"
    job = tmp_path_factory.mktemp("job")
    shutil.copytree(ROOT / "tests", job / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (job / "debs").mkdir()
    for package in packages:
        shutil.copy(package, job / "debs")
    shutil.copy(HERE / "run", job / "run")
    status, place = guest.boot(job, timeout=840)
    assert status == 0, f"the guest did not end its job; see {place}"
    yield place
    shutil.rmtree(place.parent)


def log(back, step):
    return (back / f"{step}.log").read_text(errors="replace")


def succeeded(back, step):
    assert (back / f"{step}.rc").read_text().strip() == "0", log(back, step)[-6000:]


def passed(back, step):
    """A pytest step: it ended well, some tests passed, and none was skipped."""
    succeeded(back, step)
    summary = log(back, step).splitlines()[-1]
    assert int(re.search(r"(\d+) passed", summary)[1]) > 0
    assert "skipped" not in summary, log(back, step)[-3000:]


def test_the_guest_is_pure_cgroup_v2_with_systemd(back):
    assert log(back, "world").split()[:2] == ["cgroup2fs", "systemd"]


def test_packages_install_without_network(back):
    succeeded(back, "install")


def test_apps_work_on_pure_cgroup_v2(back):
    passed(back, "apps")


def test_apps_are_confined_by_apparmor_where_it_is(back):
    assert "lxc-container-default-cgns" in log(back, "world")


def test_apps_start_where_apparmor_has_no_profile(back):
    passed(back, "unconfined")


def test_bridge_works_on_a_stock_kernel(back):
    passed(back, "bridge")


def test_units_start_and_stay(back):
    succeeded(back, "units")


def test_evidence_is_taken_and_verified_in_the_guest(back):
    succeeded(back, "evidence")


def test_no_unit_of_ours_failed(back):
    succeeded(back, "failed")
    assert not re.search(r"dre|dbox|dscript", log(back, "failed")), log(back, "failed")
