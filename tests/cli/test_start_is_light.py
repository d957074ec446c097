# SPDX-License-Identifier: Apache-2.0
"""What a command loads before it does anything is most of what it costs: a list loads next to nothing.

By name and not by the clock: a module that comes back here is seen on any machine.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import environment, program

HEAVY = {"argparse", "dataclasses", "enum", "inspect", "ipaddress", "json", "pathlib", "re", "subprocess", "typing"}
SLOW_FOR_ALL = {"asyncio", "cryptography", "lxc", "libvirt", "pyroute2", "shutil", "ssl", "yaml", "dre.streams"}
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def loaded(name, *argv, code=0):
    """The modules that are loaded when command *name* ends, but for those that any Python program here begins with."""
    argv = ["/usr/bin/python3", "-v", program(name), *map(str, argv)]
    done = subprocess.run(argv, capture_output=True, env=environment(), timeout=60, text=True)
    assert done.returncode == code, done.stderr
    bare = subprocess.run([*argv[:2], "-c", "pass"], capture_output=True, env=environment(), timeout=60, text=True)
    return modules(done.stderr) - modules(bare.stderr)


def modules(told):
    return set(re.findall(r"^import '([\w.]+)' #", told, re.MULTILINE))


@root
def test_a_list_loads_nothing_that_is_slow(settings, tmp_path):
    config = settings(DRE_APP_LXC_PATH=tmp_path / "lxc", DRE_BRIDGE_IF="br1", DRE_BRIDGE_ADDRESS="10.231.101.1/24")
    place = tmp_path / "state/app/state/web1"
    for directory in (place, tmp_path / "lxc/web1"):
        directory.mkdir(parents=True)
    (place / "app.json").write_text('{\n "name": "web1",\n "ip": "10.231.101.2/24"\n}\n')
    (tmp_path / "lxc/web1/config").touch()
    path = pathlib.Path(config)
    kept = [line for line in path.read_text().splitlines(True) if not line.startswith("DRE_DBOX_DATABASE=")]
    path.write_text("".join(kept))  # whose form is checked, but by who has apps it is not set
    found = loaded("dre-app", "--config", config, "list")
    assert found & (HEAVY | SLOW_FOR_ALL) == set()
    assert "dre.glance" in found and "dre.app" not in found


@pytest.mark.parametrize("name", ["dre-app", "dre-sys"])
def test_a_version_loads_no_verb(name):
    found = loaded(name, "--version")
    assert found & SLOW_FOR_ALL == set()
    assert [module for module in found if module.startswith(("dre.cmd.app.m", "dre.cmd.sys."))] == []


@root
def test_a_verb_loads_what_it_needs_alone():
    found = loaded("dre-app", "status", "nope", code=3)
    assert found & SLOW_FOR_ALL == set()
    assert {module for module in found if module.startswith("dre.cmd.app.")} == {
        "dre.cmd.app.listing",
        "dre.cmd.app.reading",
    }


def test_the_words_here_are_modules():
    """Else what is not there would prove nothing."""
    assert HEAVY - set(sys.stdlib_module_names) == set()
