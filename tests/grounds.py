# SPDX-License-Identifier: Apache-2.0
"""Which system tests may run beside each other: those that stand on different ground.

Apps share a bridge and LXC's directory, systems a libvirtd, and so on; the second word of a file's name tells the
ground. With `pytest -n 2 --dist loadgroup` each ground is worked on by one process; the largest come first, so that
the ends meet. Tests of commands need no ground, but those of one file share what it made for them: `-n 2` gives whole
files to its processes.
"""

import pathlib

import pytest

GROUNDS = ("app", "sys", "base", "bridge", "dbox")
OTHERS = "host"


def ground(path):
    """The ground that the tests of the file *path* stand on."""
    word = path.stem.split("_")[1]
    return word if word in GROUNDS else OTHERS


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Mark each system test with its ground; in order of grounds, and within one as collected."""
    order = {name: number for number, name in enumerate((*GROUNDS, OTHERS))}
    if not all(item.path.parent.name == "system" for item in items):
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group(ground(item.path)))
    items.sort(key=lambda item: order[ground(item.path)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`-n 2` in tests/cli is `-n 2 --dist loadfile`."""
    if config.getoption("dist") != "load" or not all("cli" in pathlib.Path(path).parts for path in config.args):
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)
