# SPDX-License-Identifier: Apache-2.0
"""libdresys leads a real system through its life; virsh is the witness that nothing is left of it."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT, environment, program
from system_ground import Host

pytestmark = [
    pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="as before a release: DRE_FULL=1"),
    pytest.mark.skipif(
        not (shutil.which("gcc", path="/usr/bin") and os.path.exists("/usr/include/json-c/json.h")),
        reason="needs gcc and libjson-c-dev",
    ),
]


def test_the_life_of_a_system():
    with Host() as host:
        life = host.place / "life"
        library = [ROOT / f"libdre/src/{name}.c" for name in ("serve", "verbs", "sys")]
        sources = [ROOT / "tests/c/libdresys_life.c", *library]
        argv = ["gcc", "-std=c11", "-Wall", "-Werror", f"-I{ROOT}/libdre/include", *sources, "-ljson-c", "-o", life]
        subprocess.run(list(map(str, argv)), check=True, timeout=60)
        argv = [*host.inside, life, host.conf, program("dre-sys"), host.small(), "t-csys"]
        done = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, env=environment(), timeout=180, check=False
        )
        assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr
        assert "t-csys" not in host.virsh("list", "--all")
