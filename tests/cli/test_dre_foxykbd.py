# SPDX-License-Identifier: Apache-2.0
"""dre-foxykbd: what it refuses, and that it never says anything of what it could not look at."""

import pytest


@pytest.fixture
def foxy(run, tmp_path):
    """dre-foxykbd with settings by which no libvirt answers."""
    conf = tmp_path / "dre.conf"
    conf.write_text(f'DRE_SYS_URI="qemu+unix:///system?socket={tmp_path}/none"\nDRE_CORE_RUN_DIR="{tmp_path}/run"\n')
    return lambda *argv: run("dre-foxykbd", "--config", conf, *argv)


@pytest.mark.parametrize(
    "argv, named",
    [
        ((), "SYSTEM"),
        (("Not-A-Name",), "Not-A-Name"),
        (("pay1", "--windows", "21"), "--windows 21"),
        (("pay1", "--windows", "0"), "--windows 0"),
        (("pay1", "--windows", "1000"), "--windows 1000"),
        (("pay1", "--false-alarm", "0"), "--false-alarm 0"),
        (("pay1", "--false-alarm", "nan"), "--false-alarm nan"),
        (("pay1", "--false-alarm", "0.2"), "--false-alarm 0.2"),
        (("pay1", "--false-alarm", "0.00001"), "windows cannot tell less than"),
        (("pay1", "--windows", "10"), "windows cannot tell less than 0.004"),
        (("pay1", "--seed", "x"), "--seed"),
    ],
)
def test_wrong_usage_is_named(foxy, argv, named):
    done = foxy(*argv)
    assert (done.returncode, done.stdout) == (2, b"")
    assert named in done.stderr.decode().splitlines()[0]


@pytest.mark.parametrize("argv", [(), ("--slow",)])
def test_without_libvirt_nothing_is_said_of_the_system(foxy, argv):
    done = foxy("pay1", *argv)
    assert (done.returncode, done.stdout) == (6, b"")
    assert b"libvirt" in done.stderr
