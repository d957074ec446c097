# SPDX-License-Identifier: Apache-2.0
"""dre-libra: what it refuses, and that it never says clean of what it could not look at."""

import pytest


@pytest.fixture
def libra(run, tmp_path):
    """dre-libra with settings by which no libvirt answers."""
    conf = tmp_path / "dre.conf"
    conf.write_text(f'DRE_SYS_URI="qemu+unix:///system?socket={tmp_path}/none"\n')
    return lambda *argv: run("dre-libra", "--config", conf, *argv)


@pytest.mark.parametrize(
    "argv, named",
    [
        ((), "SYSTEM"),
        (("shop1",), "--mount"),
        (("Not-A-Name", "--mount", "/x"), "Not-A-Name"),
        (("shop1", "--mount", "x"), "--mount 'x'"),
        (("shop1", "--mount", "//x"), "--mount '//x'"),
        (("shop1", "--mount", b"/\xff"), "--mount"),
        (("shop1", "--mount", "/x", "--except", "y"), "--except 'y'"),
        (("shop1", "--mount", "/x", "--mount", "/y", "--fileid", "2"), "--fileid"),
        (("shop1", "--mount", "/x", "--fileid", "root"), "--fileid"),
        (("shop1", "--mount", "/x", "--count", "0"), "--count 0"),
        (("shop1", "--mount", "/x", "--interval", "often"), "often"),
        (("shop1", "--mount", "/x", "--timeout", "late"), "late"),
        (("shop1", "--mount", "/x", "--server", "shop"), "--server 'shop'"),
    ],
)
def test_wrong_usage_is_named(libra, argv, named):
    done = libra(*argv)
    assert (done.returncode, done.stdout) == (2, b"")
    assert named in done.stderr.decode().splitlines()[0]


def test_without_libvirt_nothing_is_said_of_the_system(libra):
    done = libra("shop1", "--mount", "/x", "--mount", "/y/../z/", "--server", "fd00::1")
    assert (done.returncode, done.stdout) == (6, b"")
    assert b"libvirt" in done.stderr
