# SPDX-License-Identifier: Apache-2.0
"""What tests/vm/try and tests/vm/shell do with this checkout: its packages in a saved state, its files in the guest."""

import pathlib
import subprocess
import sys

import saved

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def state(tree):
    """The saved state to start from; with *tree* any will do: our packages in it are not used."""
    found = saved.newest() if tree else None
    if not found:
        command = [ROOT / "packaging/build-deb"]
        subprocess.run(command, check=True, env={"DEB_BUILD_PROFILES": "nocheck"}, stdout=sys.stderr)
        found = saved.obtain(say=lambda text: print(text, file=sys.stderr))
    return found


def push(guest, compiled):
    """The files that belong to the tree, to /job; *compiled*, because programs start slowly enough under TCG."""
    names = subprocess.run([ROOT / "packaging/files"], check=True, capture_output=True, text=True).stdout.split("\n")
    guest.push_files(ROOT, [ROOT / name for name in names if name and (ROOT / name).exists()], "/job")
    if compiled:
        guest.ok("python3 -m compileall -q -j2 /job/dre-core/dre", timeout=300)
