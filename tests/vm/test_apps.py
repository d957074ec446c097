# SPDX-License-Identifier: Apache-2.0
"""Tests of apps of the system ring once more, where the kernel is stock, cgroups are pure v2 and init is systemd.

Each file runs in a fresh guest: of those of CHOSEN some tests, and with DRE_VM_ALL=1, as before a release, all of every
file.
"""

import os
import pathlib
import re
import subprocess
import xml.etree.ElementTree

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SYSTEM = ROOT / "tests" / "system"
VARIABLES = {"DRE_TEST_INSTALLED": "1", "DRE_REQUIRE_ALL": "1", "DRE_KILLS": os.environ.get("DRE_VM_KILLS", "1")}
ALL = os.environ.get("DRE_VM_ALL") == "1"
DEADLINE = 3600 if ALL else 900  # of one file

# Tests that cannot be in the guest, each with its reason. Any other skip in there is a failure.
EXCLUDED = {}


# Software emulation is ten times slower than the host: the life of apps, and what control groups, the kernel or CRIU
# make different here.
CHOSEN = {
    "undo": (
        "test_undo_brings_back_files_deletions_and_replaced_directories",
        "test_undo_restores_the_limits_of_the_snapshot",
        "test_intent_left_by_a_killed_undo_is_ended_by_recover",
    ),
    "limits_stop_hogs": (
        "test_cpu_hog_is_throttled_to_its_quota",
        "test_memory_hog_is_ended_and_the_app_lives",
        "test_fork_bomb_is_stopped_and_the_app_lives",
    ),
    "survives_kill": ("test_kill[undo]", "test_kill[create]"),
    "limits": (
        "test_live_and_persistent",
        "test_what_fails_in_the_middle_takes_all_back",
        "test_memory_below_present_use_is_refused_and_nothing_changes",
    ),
    "life": (
        "test_life",
        "test_exec_passes_status_stdin_and_stdout",
        "test_freeze_and_thaw",
        "test_lxc_tools_start_and_stop_it",
        "test_program_that_ends_is_seen_as_crashed",
    ),
    "unprivileged": ("test_files_do_not_know_the_ids", "test_tools_of_lxc"),
    "checkpoint": ("test_memory_file_offset_disk_and_socket_go_on_from_the_checkpoint_twice",),
    "groups": ("test_life", "test_quota_holds_for_all_of_it_together"),
    "hides_host": ("test_hidden",),
    "push_is_confined": ("test_push_and_pull",),
    "escapes": ("test_attempts_fail[--unprivileged]",),
    "stop_is_graceful": ("test_slow_program_ends_by_itself",),
    "recovers_from_crash": ("test_monitor_killed",),
    "checkpoint_refuses": ("test_an_unprivileged_app",),
}


def files():
    """The files, with the tests that are chosen of each; none chosen are all."""
    if ALL:
        size = {path: path.read_text().count("\ndef test_") for path in SYSTEM.glob("test_app_*.py")}
        return {path: () for path in sorted(size, key=lambda path: (-size[path], path.name))}
    return {SYSTEM / f"test_app_{name}.py": tests for name, tests in CHOSEN.items()}


FILES = files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_in_the_guest(guest, path, record_property):
    place = f"tests/system/{path.name}"
    left_out = [f"--deselect=tests/system/{test}" for test in EXCLUDED if test.startswith(f"{path.name}::")]
    words = ["-q", "--junitxml=/job/report", *left_out, *([f"{place}::{test}" for test in FILES[path]] or [place])]
    tests = [found for found in (ROOT / "tests").rglob("*") if "vm" not in found.parts]
    guest.push_files(ROOT, [*tests, *(ROOT / "dre-core/man").iterdir(), ROOT / "pyproject.toml"], "/job")
    command = ["sh", "-c", 'cd /job && exec /usr/bin/python3 -m pytest "$@"', "sh", *words]
    try:
        done = guest.call(command, DEADLINE, **VARIABLES)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"not ended after {DEADLINE} s:\n{error.stdout}")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    cases = list(xml.etree.ElementTree.fromstring(guest.agent.read("/job/report")).iter("testcase"))
    for case in cases:
        record_property(f"{path.name}::{case.get('name')}", float(case.get("time")))
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
