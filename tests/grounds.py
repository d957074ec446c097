# SPDX-License-Identifier: Apache-2.0
"""Which system tests may run beside each other: those that stand on different ground.

Apps share a bridge and LXC's directory, systems a libvirtd, and so on; the second word of a file's name tells the
ground. With `pytest -n 2 --dist loadgroup` each ground is worked on by one process; the largest come first, so that
the ends meet. Tests of commands need no ground, but those of a file share what it made for them, and those of a page
its server: with `-n 2` one process gets them all.
"""

import pathlib

import pytest

GROUNDS = ("app", "sys", "base", "bridge", "dbox")
OTHERS = "host"
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
