# SPDX-License-Identifier: Apache-2.0
"""dre-sysmon: what it refuses."""

import pytest


@pytest.fixture
def sysmon(run, settings, tmp_path):
    """dre-sysmon with settings by which no libvirt answers."""
    conf = settings(DRE_SYS_URI=f"qemu+unix:///system?socket={tmp_path}/none")
    return lambda *argv: run("dre-sysmon", *argv, "--config", conf)


@pytest.mark.parametrize(
    "argv, named",
    [
        ((), "a verb is missing"),
        (("io",), "SYSTEM"),
        (("io", "Not-A-Name"), "Not-A-Name"),
        (("io", "pay1", "--head", "1401"), "--head 1401"),
        (("io", "pay1", "--head", "-1"), "--head -1"),
        (("io", "pay1", "--count", "0"), "--count 0"),
        (("io", "pay1", "--interval", "soon"), "'soon'"),
        (("io", "pay1", "--interval", "1ms"), "--interval 1ms"),
        (("io", "pay1", "--send-keys", "a b shift+nokey"), "'nokey'"),
        (("io", "pay1", "--send-frame", "0102"), "'0102'"),
        (("io", "pay1", "--send-frame", "01x2" * 8), "01x2"),
        (("io", "pay1", "--link", "vnet0"), "--link"),
    ],
)
def test_wrong_usage_is_named(sysmon, argv, named):
    done = sysmon(*argv)
    assert (done.returncode, done.stdout) == (2, b"")
    assert named in done.stderr.decode().splitlines()[0]


@pytest.mark.parametrize("argv", [(), ("--net",), ("--send-keys", "a"), ("--send-frame", "ff" * 14)])
def test_without_libvirt_nothing_is_said_of_the_system(sysmon, argv):
    done = sysmon("io", "pay1", *argv)
    assert (done.returncode, done.stdout) == (6, b"")
    assert b"libvirt" in done.stderr
