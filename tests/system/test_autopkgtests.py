# SPDX-License-Identifier: Apache-2.0
"""The tests that debian/tests/control declares pass on the installed packages."""

import os
import re
import subprocess
import tempfile

import pytest
from conftest import ROOT

NAMES = re.findall(r"^Tests: (.*)$", (ROOT / "debian/tests/control").read_text(), re.MULTILINE)


@pytest.mark.skipif(os.environ.get("DRE_TEST_INSTALLED") != "1", reason="for installed packages: DRE_TEST_INSTALLED=1")
@pytest.mark.parametrize("name", NAMES)
def test_autopkgtest(name):
    # Not tmp_path: the D-Box gives up root, and its user may not look into pytest's directories.
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        run(name, scratch)


def run(name, scratch):
    done = subprocess.run(
        [ROOT / "debian/tests" / name],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "AUTOPKGTEST_TMP": scratch},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # As autopkgtest judges it: what is said on stderr is a failure, too.
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
