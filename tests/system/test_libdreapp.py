# SPDX-License-Identifier: Apache-2.0
"""The example of libdreapp, a C program, leads a real app through its life; lxc-info is the witness."""

import os
import shutil
import subprocess

import pytest
from app_ground import LXC, Ground
from conftest import ROOT, environment, program

EXAMPLE = ROOT / "libdre/examples/app-life.c"
pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc", path="/usr/bin") and os.path.exists("/usr/include/json-c/json.h")),
    reason="needs gcc and libjson-c-dev",
)


def test_the_life_of_an_app(run, settings, tmp_path):
    sources = [ROOT / f"libdre/src/{name}.c" for name in ("serve", "verbs", "app")]
    argv = ["gcc", "-std=c11", "-Wall", "-Werror", f"-I{ROOT}/libdre/include", EXAMPLE, *sources, "-ljson-c"]
    subprocess.run([*map(str, argv), "-o", tmp_path / "life"], check=True, timeout=60)
    with Ground(run, settings) as ground:
        variables = {**environment(), "DRE_CONFIG": str(ground.config), "DRE_APP": program("dre-app")}
        done = subprocess.run([tmp_path / "life", "t-clib"], capture_output=True, text=True, env=variables, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        says, after, state, gone = done.stdout.splitlines()
        assert says == "it says damaged"
        assert after.startswith("after the undo: exit status 1, cat: ")
        assert state.startswith("t-clib is running, ")
        assert gone == "t-clib: no such app"
        assert subprocess.run(["lxc-info", "-P", LXC, "-n", "t-clib"], capture_output=True).returncode != 0
