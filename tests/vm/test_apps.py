# SPDX-License-Identifier: Apache-2.0
"""Tests of the system ring once more, where the kernel is stock, cgroups are pure v2 and init is systemd.

Chosen tests of several files share a fresh guest, for in there a process takes ten times as long to start; with
DRE_VM_ALL=1, as before a release, each file of apps has one, for all of its tests, and those of RARELY run, too.
"""

import os
import pathlib
import re
import subprocess
import xml.etree.ElementTree

import pytest
from guests import ALL

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SYSTEM = ROOT / "tests" / "system"
VARIABLES = {"DRE_TEST_INSTALLED": "1", "DRE_REQUIRE_ALL": "1", "DRE_KILLS": os.environ.get("DRE_VM_KILLS", "1")}
DEADLINE = 3600 if ALL else 900  # of one guest

# Tests that cannot be in the guest, each with its reason. Any other skip in there is a failure.
EXCLUDED = {}

# The life of apps, and what control groups, the kernel or CRIU make different here.
CHOSEN = {
    "life": (
        "app_life.py::test_life",
        "app_escapes.py::test_attempts_fail[--unprivileged]",
        "bridge.py::test_containers_reach_the_outside_by_nat_and_are_not_reached",
    ),
    "limits": (
        "app_limits.py::test_live_and_persistent",
        "app_limits_stop_hogs.py::test_memory_hog_is_ended_and_the_app_lives",
        "app_limits_stop_hogs.py::test_fork_bomb_is_stopped_and_the_app_lives",
        "app_groups.py::test_quota_holds_for_all_of_it_together",
    ),
    "checkpoint": (
        "app_checkpoint.py::test_memory_file_offset_disk_and_socket_go_on_from_the_checkpoint_twice",
        "app_checkpoint_refuses.py::test_an_unprivileged_app",
    ),
}
RARELY = {
    "scripts": ("dscript_containers.py",),
    "bridge": (  # the kernel switches IPv6 for all interfaces at once
        "bridge.py::test_containers_reach_the_outside_by_nat_and_are_not_reached",
        "bridge_gives.py::test_containers_form_an_address_and_reach_the_outside",
        "bridge.py::test_up_twice_makes_one_bridge_with_its_address",
        "bridge.py::test_down_twice_removes_all_of_it",
        "bridge_uplink.py::test_there_and_back_with_all_that_it_has",
        "bridge_gives.py::test_the_host_still_listens_to_routers",
        "bridge_gives.py::test_who_has_a_reservation_gets_that_address_and_name",
        "bridge_uplink.py::test_an_unreachable_gateway_undoes_it",
        "bridge_uplink.py::test_an_unreachable_gateway_undoes_the_way_back",
        "bridge_uplink.py::test_the_worker_killed_its_caller_takes_all_back",
    ),
}


def batches():
    """What one guest runs, each by its name: tests, or a whole file."""
    if not ALL:
        return CHOSEN
    size = {path: path.read_text().count("\ndef test_") for path in SYSTEM.glob("test_app_*.py")}
    files = sorted(size, key=lambda path: (-size[path], path.name))
    whole = {path.name: (path.name.removeprefix("test_"),) for path in files}
    return {**RARELY, **whole}


BATCHES = batches()


@pytest.mark.parametrize("batch", BATCHES)
def test_in_the_guest(guest, batch, record_property):
    left_out = [f"--deselect=tests/system/{test}" for test in EXCLUDED]
    words = ["-q", "--junitxml=/job/report", *left_out, *(f"tests/system/test_{test}" for test in BATCHES[batch])]
    tests = [found for found in (ROOT / "tests").rglob("*") if "vm" not in found.parts]
    guest.push_files(ROOT, [*tests, *(ROOT / "dre-core/man").iterdir(), ROOT / "pyproject.toml"], "/job")
    command = ["sh", "-c", 'cd /job && exec /usr/bin/python3 -m pytest "$@"', "sh", *words]
    try:
        done = guest.call(command, DEADLINE, **VARIABLES)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"not ended after {DEADLINE} s:\n{error.stdout}")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    cases = list(xml.etree.ElementTree.fromstring(guest.ok("cat /job/report")).iter("testcase"))
    for case in cases:
        record_property(f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}", float(case.get("time")))
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    assert cases, "no test ran"


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
