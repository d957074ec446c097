# SPDX-License-Identifier: Apache-2.0
"""dre-bridge from the outside, where it refuses: nothing on the host changes."""

import pytest
from conftest import nobody


def test_verb_missing(run, settings):
    done = run("dre-bridge", "--config", settings())
    assert done.returncode == 2
    assert done.stderr.startswith(b"dre-bridge: a verb is missing\nusage: dre-bridge ")


def test_show_of_an_absent_bridge(run, settings):
    done = run("dre-bridge", "--config", settings(DRE_BRIDGE_IF="dret2none"), "show")
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == b"dre-bridge: dret2none: no such bridge; dre-bridge up makes it\n"


def test_show_of_an_interface_that_is_no_bridge(run, settings):
    assert run("dre-bridge", "--config", settings(DRE_BRIDGE_IF="lo"), "show").returncode == 3


@pytest.mark.parametrize("verb", ["up", "down"])
def test_changes_need_root(run, settings, verb):
    done = run("dre-bridge", "--config", settings(DRE_BRIDGE_IF="dret2none"), verb, prefix=nobody())
    assert (done.returncode, done.stderr) == (4, f"dre-bridge: dre-bridge {verb} needs root\n".encode())


@pytest.mark.parametrize("value", ["$(reboot)", "a/b", "sixteen-letters-x", ""])
def test_bad_name_in_the_settings(run, settings, value):
    path = settings(DRE_BRIDGE_IF=value)
    done = run("dre-bridge", "--config", path, "up")
    assert done.returncode == 2
    assert f"{path}:".encode() in done.stderr and b"DRE_BRIDGE_IF" in done.stderr


def test_address_without_its_length(run, settings):
    done = run("dre-bridge", "--config", settings(DRE_BRIDGE_ADDRESS="10.231.102.1"), "up")
    assert done.returncode == 2
    assert b"DRE_BRIDGE_ADDRESS: expected the address of a host and a length" in done.stderr
