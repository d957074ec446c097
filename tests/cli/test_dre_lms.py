# SPDX-License-Identifier: Apache-2.0
"""dre-lms: what it refuses, and that it never says clean of what it could not look into."""

import pytest


@pytest.fixture
def lms(run, tmp_path):
    """dre-lms with settings by which no libvirt answers."""
    conf = tmp_path / "dre.conf"
    conf.write_text(f'DRE_SYS_URI="qemu+unix:///system?socket={tmp_path}/none"\n')
    return lambda *argv: run("dre-lms", "--config", conf, *argv)


@pytest.mark.parametrize(
    "argv, named",
    [
        ((), "SYSTEM"),
        (("Not-A-Name",), "Not-A-Name"),
        (("pay1", "--count", "0"), "--count 0"),
        (("pay1", "--interval", "often"), "often"),
        (("pay1", "--ps", "--count", "2"), "--ps"),
        (("pay1", "--report", "/tmp/none", "--count", "2"), "--report"),
        (("pay1", "--report", "/tmp"), "/tmp: exists already"),
        (("pay1", "--report", "/nowhere/one"), "/nowhere"),
        (("pay1", "--memory", "1M"), "--report"),
        (("pay1", "--report", "/tmp/none", "--memory", "much"), "much"),
    ],
)
def test_wrong_usage_is_named(lms, argv, named):
    done = lms(*argv)
    assert (done.returncode, done.stdout) == (2, b"")
    assert named in done.stderr.decode().splitlines()[0]


def test_without_libvirt_nothing_is_said_of_the_system(lms):
    done = lms("pay1")
    assert (done.returncode, done.stdout) == (6, b"")
    assert b"libvirt" in done.stderr
