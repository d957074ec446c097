# SPDX-License-Identifier: Apache-2.0
"""What tests/vm/try and tests/vm/shell do with this checkout: its packages in a saved state, its files in the guest."""

import contextlib
import subprocess
import sys

import saved
from guests import ROOT


def state(tree):
    """The saved state to start from; with *tree* any will do: our packages in it are not used."""
    found = saved.newest() if tree else None
    if not found:
        command = [ROOT / "packaging/build-deb"]
        subprocess.run(command, check=True, env={"DEB_BUILD_PROFILES": "nocheck"}, stdout=sys.stderr)
        found = saved.obtain(say=lambda text: print(text, file=sys.stderr))
    return found


@contextlib.contextmanager
def guest(tree):
    """A fresh guest with the files that belong to this tree in /job."""
    with state(tree) as found, found.ground() as host:
        made = host.guests["guest1"]
        made.restart()
        names = subprocess.run([ROOT / "packaging/files"], check=True, capture_output=True, text=True).stdout.split(
            "\n"
        )
        made.push_files(ROOT, [ROOT / name for name in names if name and (ROOT / name).exists()], "/job")
        if tree:  # programs start slowly enough under TCG
            made.ok("python3 -m compileall -q -j2 /job/dre-core/dre", timeout=300)
        yield made
