# SPDX-License-Identifier: Apache-2.0
"""Tests of apps of the system ring once more, where the kernel is stock, cgroups are pure v2 and init is systemd.

Each file runs in a fresh guest, two at a time: those of FIRST, and with DRE_VM_ALL=1, as before a release, every one.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import xml.etree.ElementTree

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SYSTEM = ROOT / "tests" / "system"
VARIABLES = {"DRE_TEST_INSTALLED": "1", "DRE_REQUIRE_ALL": "1", "DRE_KILLS": os.environ.get("DRE_VM_KILLS", "1")}
DEADLINE = 900  # of one file

# Tests that cannot be in the guest, each with its reason. Any other skip in there is a failure.
EXCLUDED = {}


def count(path):
    return path.read_text().count("\ndef test_")


# Software emulation is ten times slower than the host: the life of apps, and what control groups, the kernel or CRIU
# make different here.
FIRST = (
    "checkpoint",
    "checkpoint_refuses",
    "escapes",
    "groups",
    "hides_host",
    "life",
    "limits",
    "limits_stop_hogs",
    "push_is_confined",
    "recovers_from_crash",
    "stop_is_graceful",
    "survives_kill",
    "undo",
    "unprivileged",
)
ALL = os.environ.get("DRE_VM_ALL") == "1"
PATHS = SYSTEM.glob("test_app_*.py") if ALL else [SYSTEM / f"test_app_{name}.py" for name in FIRST]
FILES = sorted(PATHS, key=lambda path: (-count(path), path.name))


def run(state, path):
    """(result, seconds by test, junit text) of one file in a guest of its own."""
    with state.guest() as guest:
        tests = [found for found in (ROOT / "tests").rglob("*") if "vm" not in found.parts]
        guest.push_files(ROOT, [*tests, ROOT / "pyproject.toml"], "/job")
        left_out = [f"--deselect=tests/system/{test}" for test in EXCLUDED if test.startswith(f"{path.name}::")]
        command = [
            "/usr/bin/python3",
            "-m",
            "pytest",
            "-q",
            "--junitxml=/job/report",
            *left_out,
            f"tests/system/{path.name}",
        ]
        try:
            done = guest.call(["sh", "-c", 'cd /job && exec "$@"', "sh", *command], DEADLINE, **VARIABLES)
        except subprocess.TimeoutExpired as error:
            return f"{path.name}: not ended after {DEADLINE} s:\n{error.stdout}\n{guest.remains()}", {}
        report = xml.etree.ElementTree.fromstring(guest.agent.read("/job/report"))
        times = {f"{path.name}::{case.get('name')}": float(case.get("time")) for case in report.iter("testcase")}
        text = "" if done.returncode == 0 else f"{done.stdout[-12000:]}{done.stderr[-2000:]}\n{guest.remains()}"
        return text, times


@pytest.fixture(scope="module")
def running(state, request):
    """The results to come, by file; all chosen files are under way from the first test on, two at a time."""
    chosen = [item.callspec.params["path"] for item in request.session.items if hasattr(item, "callspec")]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        results = {path: pool.submit(run, state, path) for path in chosen}
        yield results
        for result in results.values():
            result.cancel()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_in_the_guest(running, path, record_property):
    failure, times = running[path].result()
    for name, seconds in times.items():
        record_property(name, seconds)
    assert not failure, failure
    assert times, "no test ran"


def test_what_is_excluded_exists():
    for test, reason in EXCLUDED.items():
        name, _, function = test.partition("::")
        assert re.search(rf"^def {function}\(", (SYSTEM / name).read_text(), re.M), test
        assert reason


def test_apps_start_where_apparmor_has_no_profile(guest):
    """As on a host that lacks the package apparmor."""
    for profile in ("lxc-containers", "usr.bin.lxc-start"):
        guest.ok(["apparmor_parser", "-R", f"/etc/apparmor.d/{profile}"], timeout=120)
    assert "lxc-container" not in guest.ok("cat /sys/kernel/security/apparmor/profiles")
    guest.ok("dre-app create v-bare --ip none -- sleep infinity && dre-app start v-bare")
    assert guest.ok("dre-app exec v-bare -- cat /proc/self/attr/current").strip() == "unconfined"


def test_apps_are_confined_by_apparmor_where_it_is(guest):
    guest.ok("dre-app create v-bound --ip none -- sleep infinity && dre-app start v-bound")
    assert guest.ok("dre-app exec v-bound -- cat /proc/self/attr/current").startswith("lxc-container-default-cgns")
