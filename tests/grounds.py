# SPDX-License-Identifier: Apache-2.0
"""Which system tests may run beside each other: those that stand on different ground.

Apps share a bridge and LXC's directory, systems a libvirtd, and so on; the second word of a file's name tells the
ground. With `pytest -n 2 --dist loadgroup` each ground is worked on by one process; the largest come first, so that
the ends meet. Tests of commands need no ground, but those of a file share what it made for them, and those of a page
its server: with `-n 2` one process gets them all.
"""

import os
import pathlib

import pytest

GROUNDS = ("app", "sys", "base", "bridge", "dbox")
OTHERS = "host"
# Left for a release, with DRE_FULL=1: they take longest, and others here, the demo or tests/vm try what is near to it.
LONG = {
    "test_app_faults": {"test_a_first_process_that_lost_its_monitor_is_out_of_the_way_of_the_next_start"},
    "test_app_services_survive_kill": {"test_keep_killed_at_any_change_forgets_no_crash"},
    "test_base_image": {
        "test_a_disk_too_small_is_refused_with_the_reason",
        "test_killed_at_any_moment_there_is_no_half_image[small]",
    },
    "test_bridge_attach": {"test_taps_of_running_systems_are_put_back"},
    "test_bridge_names": {"test_addresses_that_are_refused"},
    "test_dbox_key_in_token": {"test_in_a_file_with_a_passphrase", "test_in_a_tpm"},
    "test_dbox_page": {"test_browser_catches_a_box_that_lies"},
    "test_dbox_rotates_its_key": {"test_rotated_by_the_number_of_tree_heads"},
    "test_dscript_shop": {"test_memory_that_runs_full_restarts_the_app_and_what_depends_on_it"},
    "test_monitor_actions": {"test_failure_talk_and_time_are_bounded_and_told_and_nothing_stays[dre]"},
    "test_monitor_correlate_equals_sec": {"test_real_time"},
    "test_monitor_page_web": {"test_in_a_browser_on_a_phone_and_at_a_desk[390-True]"},
    "test_sys_boot": {"test_a_cd_boots_before_an_empty_disk[pc]"},
    "test_sys_dscript": {"test_systems_move_to_another_host_by_ssh_as_a_script_says"},
    "test_sys_export": {"test_an_export_of_what_began_warm_wants_its_image_alone"},
    "test_sys_handbook": {"test_systems_move_as_it_is_written"},
    "test_sys_migrate": {"test_a_cut_cable_and_a_dead_libvirt_leave_it_here"},
    "test_sys_migrate_guest": {"test_who_talks_to_it_goes_on_talking"},
    "test_sys_migrate_live": {"test_what_goes_wrong_there_leaves_it_running_here"},
    "test_sysmon_io": {"test_each_frame_is_told_once_with_its_direction"},
}
SCRATCH = ("test_app_copy_survives_kill", "test_app_faults_kill")  # in directories of their own; nothing is started


def ground(path):
    """The ground that the tests of the file *path* stand on."""
    word = path.stem.split("_")[1]
    return word if word in GROUNDS and path.stem not in SCRATCH else OTHERS


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Mark each system test with its ground; in order of grounds, and within one as collected. Of commands, pages."""
    kinds = {item.path.parent.name for item in items}
    if kinds == {"cli"}:
        items.sort(key=lambda item: "_page_" not in item.path.stem)
    if kinds != {"system"}:
        return
    order = {name: number for number, name in enumerate((*GROUNDS, OTHERS))}
    for item in items:
        if item.name in LONG.get(item.path.stem, ()):
            item.add_marker(pytest.mark.long)
            if os.environ.get("DRE_FULL") != "1":
                item.add_marker(pytest.mark.skip(reason="takes long: DRE_FULL=1, as before a release"))
        item.add_marker(pytest.mark.xdist_group(ground(item.path)))
    items.sort(key=lambda item: order[ground(item.path)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For tests/cli alone, when nothing else is wished."""
    if config.getoption("dist") != "load" or not all("cli" in pathlib.Path(path).parts for path in config.args):
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return file.partition("_page_")[0]

    return Scheduling(config, log)
